//! Dead letters and stored offsets, on a database and a broker.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step fails the test")]

use std::time::Duration;

use crate::common::*;
use cart_events::{DomainEvent, Inventory, ProductId};
use event_store::{EventStore, StoreSettings};
use kafka::{Brokers, InvalidMessage, Message, Translation, Translator, TranslatorSettings, json};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use serde::Deserialize;
use serde_json::{Value, json};
use test_support::{Database, eventually, kafka_bootstrap_servers};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Deserialize)]
struct Change {
    product_uuid: ProductId,
    inventory: Inventory,
}

fn takes(message: &Message<'_>) -> Result<DomainEvent, InvalidMessage> {
    let Change { product_uuid, inventory } = json(message)?;
    Ok(DomainEvent::InventoryChanged { product_id: product_uuid, inventory })
}

/// As before a fix.
fn refuses(message: &Message<'_>) -> Result<DomainEvent, InvalidMessage> {
    let Change { inventory, .. } = json(message)?;
    if inventory == Inventory::try_from(0).unwrap() { takes(message) } else { Err(InvalidMessage("only 0 is understood".into())) }
}

struct Shop {
    database: Database,
    topic: String,
    group: String,
}

impl Shop {
    async fn create() -> Self {
        let topic = format!("stock-{}", Uuid::now_v7().simple());
        let mut config = ClientConfig::new();
        let admin: AdminClient<DefaultClientContext> = config.set("bootstrap.servers", kafka_bootstrap_servers()).create().unwrap();
        let letters = format!("{topic}.dead-letters");
        let topics = [(&topic, 2), (&letters, 1)].map(|(name, partitions)| NewTopic::new(name, partitions, TopicReplication::Fixed(1)));
        admin.create_topics(&topics, &AdminOptions::new()).await.unwrap().into_iter().for_each(|topic| drop(topic.unwrap()));
        Self { database: Database::create().await, group: format!("{topic}-group"), topic }
    }

    fn letters(&self) -> String {
        format!("{}.dead-letters", self.topic)
    }

    async fn send(&self, partition: i32, value: &[u8]) {
        self.send_with(partition, value, "tea", Header { key: "shop", value: Some("Lübeck") }).await;
    }

    async fn send_with(&self, partition: i32, value: &[u8], key: &str, header: Header<'_, &str>) {
        let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", kafka_bootstrap_servers()).create().unwrap();
        let headers = OwnedHeaders::new().insert(header);
        let record = FutureRecord {
            topic: &self.topic,
            partition: Some(partition),
            payload: Some(value),
            key: Some(key.as_bytes()),
            timestamp: None,
            headers: Some(headers),
        };
        producer.send(record, Duration::from_secs(20)).await.unwrap();
    }

    async fn send_inventory(&self, partition: i32, inventory: u32) {
        self.send(partition, json!({ "product_uuid": ProductId::new(), "inventory": inventory }).to_string().as_bytes()).await;
    }

    /// Translates until so much of both partitions is done.
    async fn translate(&self, by: fn(&Message<'_>) -> Result<DomainEvent, InvalidMessage>, offsets: [i64; 2]) {
        let brokers = Brokers::new(kafka_bootstrap_servers(), "test");
        let store = EventStore::new(self.database.options_as("cartlog_translator"), StoreSettings::default());
        let translator =
            Translator::new(TranslatorSettings::new(brokers, &self.group), store.clone(), [Translation::new(&self.topic, by)]).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(translator.run(stop.clone()));
        eventually("the messages are translated", || async {
            let stored = store.stored_offsets(&self.group, &self.topic).await.unwrap();
            [0, 1]
                .into_iter()
                .zip(offsets)
                .all(|(partition, offset)| stored.get(&partition).map_or(0, |stored| stored.offset) == offset)
                .then_some(())
        })
        .await;
        stop.cancel();
        running.await.unwrap().unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        with_broker(&self.database, &kafka_bootstrap_servers(), arguments)
    }

    fn inventories(&self) -> Vec<i64> {
        let events = self.run(&["log", "tail", "--json"]).documents(0);
        events.iter().map(|event| event["data"]["inventory"].as_i64().unwrap()).collect()
    }
}

fn places(documents: &[Value]) -> Vec<&str> {
    documents.iter().map(|letter| letter["place"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn dead_letters_are_listed_shown_and_replayed() {
    let shop = Shop::create().await;
    for (partition, inventory) in [(0, 5), (0, 0), (1, 7)] {
        shop.send_inventory(partition, inventory).await;
    }
    shop.send(1, b"\xff not text").await;
    shop.translate(refuses, [2, 2]).await;
    assert_eq!(shop.inventories(), [0]);

    let list = |more: &[&str]| shop.run(&[&["dead-letters", "list", "--topic", &shop.topic, "--json"], more].concat()).documents(0);
    let letters = list(&[]);
    let sources: Vec<_> = letters.iter().map(|letter| letter["source"].as_str().unwrap().to_owned()).collect();
    assert_eq!(sources, ["0/0", "1/0", "1/1"].map(|place| format!("{}/{place}", shop.topic)), "in the order of the messages");
    assert_eq!(
        (&letters[0]["reason"], &letters[0]["key"], &letters[0]["replayed"]),
        (&json!("only 0 is understood"), &json!("tea"), &json!(false))
    );
    assert!(shop.run(&["dead-letters", "list", "--topic", &shop.letters()]).stdout.contains("only 0 is understood"));

    let shown = shop.run(&["dead-letters", "show", letters[0]["place"].as_str().unwrap(), "--json"]).document();
    assert_eq!(serde_json::from_str::<Value>(shown["value"].as_str().unwrap()).unwrap()["inventory"], 5);
    assert_eq!(shown["headers"], json!([{ "key": "shop", "value": "Lübeck" }]), "the message's own");
    let bytes = shop.run(&["dead-letters", "show", letters[2]["place"].as_str().unwrap(), "--json"]).document();
    assert_eq!((&bytes["value"], &bytes["value_bytes"]), (&Value::Null, &json!("0xff206e6f742074657874")));

    // One, and not without a word.
    let first = letters[0]["place"].as_str().unwrap();
    shop.run(&["dead-letters", "replay", first]).failed(4, "--yes");
    assert_eq!(list(&[]).len(), 3);
    let sent = shop.run(&["dead-letters", "replay", first, "--yes", "--json"]).document();
    assert_eq!(sent, json!({ "place": first, "sent_to": format!("{}/0", shop.topic) }));
    assert_eq!(places(&list(&[])), places(&letters[1..]));
    assert_eq!(list(&["--settled"])[0]["replayed"], true);

    // All others; the one that still is none dies once more.
    assert_eq!(shop.run(&["dead-letters", "replay", "--all", "--topic", &shop.topic, "--yes", "--json"]).documents(0).len(), 2);
    shop.translate(takes, [3, 4]).await;
    let mut inventories = shop.inventories();
    inventories.sort_unstable();
    assert_eq!(inventories, [0, 5, 7]);
    let died_again = list(&[]);
    assert_eq!(died_again.len(), 1, "{died_again:?}");
    assert_eq!(died_again[0]["source"], format!("{}/1/3", shop.topic));
    let shown = shop.run(&["dead-letters", "show", died_again[0]["place"].as_str().unwrap(), "--json"]).document();
    assert_eq!(shown["headers"], json!([{ "key": "shop", "value": "Lübeck" }]), "as it came first");
    let status = shop.run(&["status", "--json"]).document();
    let waiting = status["dead_letters"].as_array().unwrap().iter().find(|topic| topic["topic"] == shop.letters()).unwrap();
    assert_eq!(waiting["waiting"], 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn hidden_characters_of_a_dead_letter_are_visible() {
    let shop = Shop::create().await;
    shop.send_with(0, b"plain", "plain", Header { key: "plain", value: Some("plain") }).await;
    shop.send_with(0, HIDDEN.as_bytes(), HIDDEN, Header { key: HIDDEN, value: Some(HIDDEN) }).await;
    shop.translate(refuses, [2, 0]).await;
    let list = |more: &[&str]| shop.run(&[&["dead-letters", "list", "--topic", &shop.topic], more].concat());
    assert_eq!(list(&[]).lines_without_hidden_characters(), 3);
    assert_eq!(list(&["--json"]).lines_without_hidden_characters(), 2);
    let show = |offset: usize, more: &[&str]| {
        let place = format!("{}/0/{offset}", shop.letters());
        shop.run(&[&["dead-letters", "show", &place], more].concat()).lines_without_hidden_characters()
    };
    assert_eq!(show(1, &[]), show(0, &[]));
    assert_eq!(show(1, &["--json"]), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn unknown_dead_letter_is_reported() {
    let shop = Shop::create().await;
    shop.send_inventory(0, 5).await;
    let letters = shop.letters();
    shop.run(&["dead-letters", "show", &format!("{letters}/0/0")]).failed(3, "dead-letters list");
    shop.run(&["dead-letters", "replay", &format!("{letters}/9/0"), "--yes"]).failed(3, "dead-letters list");
    shop.run(&["dead-letters", "replay", &format!("{}/0/0", shop.topic), "--yes"]).failed(3, "There is no dead letter");
    shop.run(&["dead-letters", "replay", "--all", "--topic", &shop.topic, "--yes"]).failed(3, "not replayed yet");
    shop.run(&["dead-letters", "list", "--topic", "nobodys"]).failed(3, "The broker has no topic nobodys.dead-letters");
    shop.run(&["dead-letters", "show", "nobodys"]).failed(2, "topic/partition/offset");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn seek_stays_within_the_partition() {
    let shop = Shop::create().await;
    for inventory in [1, 2, 3] {
        shop.send_inventory(0, inventory).await;
    }
    shop.translate(takes, [3, 0]).await;
    shop.send_inventory(0, 4).await;

    let shown = shop.run(&["translations", "show", "--json"]).document();
    let expected =
        json!({ "group": shop.group, "topic": shop.topic, "partition": 0, "next_offset": 3, "begins_at": 0, "ends_at": 4, "lag": 1 });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&shown[name], value, "{name}");
    }

    let seek = |arguments: &[&str]| shop.run(&[&["translations", "seek", &shop.topic], arguments, &["--json"]].concat());
    seek(&["0", "--to", "1"]).failed(4, "Up to 2 messages are translated again");
    seek(&["0", "--end"]).failed(4, "Up to 1 messages are never translated");
    seek(&["0", "--to", "5", "--yes"]).failed(1, "ends at 4");
    seek(&["1", "--to", "0", "--yes"]).failed(3, "was never translated");
    seek(&["0", "--to", "0", "--group", "nobodys", "--yes"]).failed(3, "nobodys");
    seek(&["0", "--yes"]).failed(2, "--beginning");
    assert_eq!(shop.inventories(), [1, 2, 3]);

    let set = seek(&["0", "--to", "1", "--yes"]).document();
    assert_eq!((&set["before"], &set["next_offset"]), (&json!(3), &json!(1)));
    shop.translate(takes, [4, 0]).await;
    assert_eq!(shop.inventories(), [1, 2, 3, 2, 3, 4]);
    assert_eq!(seek(&["0", "--beginning", "--yes"]).document()["next_offset"], 0);
    assert_eq!(seek(&["0", "--end", "--yes"]).document()["next_offset"], 4);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn many_dead_letters_are_listed_in_bounded_time() {
    const LETTERS: i32 = 200_000;
    let shop = Shop::create().await;
    let mut config = ClientConfig::new();
    let config = config.set("bootstrap.servers", kafka_bootstrap_servers()).set("queue.buffering.max.messages", "1000000");
    let producer: FutureProducer = config.create().unwrap();
    let letters = shop.letters();
    let send = |offset: i32, more: Option<(&str, &str)>| {
        let offset = offset.to_string();
        let place = [("dead-letter-topic", shop.topic.as_str()), ("dead-letter-partition", "0"), ("dead-letter-offset", &offset)];
        let headers = [("dead-letter-reason", "no JSON")].into_iter().chain(place).chain(more);
        let headers = headers.fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let record = FutureRecord::<[u8], [u8]>::to(&letters).headers(headers);
        producer.send_result(record).map_err(|(error, _)| error).unwrap()
    };
    let sends: Vec<_> = (0..LETTERS).map(|offset| send(offset, None)).collect();
    // The last one was written twice, and its sender gave it a mark that would hide the others.
    let forged = send(LETTERS - 1, Some(("dead-letter-replayed", "0/0")));
    for sent in sends.into_iter().chain([forged]) {
        sent.await.unwrap().unwrap();
    }

    let started = std::time::Instant::now();
    let listed = shop.run(&["dead-letters", "list", "--topic", &shop.topic, "--newest", "5000", "--json"]);
    println!("5000 of {LETTERS} letters listed in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let documents = listed.documents(0);
    assert_eq!(documents.len(), 4_999, "one is there twice");
    assert!(listed.stderr.contains(&format!("{} older messages were not read", LETTERS + 1 - 5_000)), "{}", listed.stderr);
    let started = std::time::Instant::now();
    let status = shop.run(&["status", "--json"]).document();
    println!("status in {:?}", started.elapsed());
    let waiting = status["dead_letters"].as_array().unwrap().iter().find(|topic| topic["topic"] == letters).unwrap();
    assert_eq!((&waiting["waiting"], &waiting["unread"]), (&json!(9_999), &json!(LETTERS + 1 - 10_000)));

    // A mark of either copy settles both.
    let last = format!("{letters}/0/{LETTERS}");
    shop.run(&["dead-letters", "dismiss", &last]).failed(2, "--reason");
    shop.run(&["dead-letters", "dismiss", &last, "--reason", "a test"]).failed(4, "--yes");
    let dismissed = shop.run(&["dead-letters", "dismiss", &last, "--reason", "a test", "--yes", "--json"]).document();
    assert_eq!(dismissed, json!({ "place": last, "dismissed": "a test" }));
    let list = |more: &[&str]| shop.run(&[&["dead-letters", "list", "--topic", &shop.topic, "--newest", "10", "--json"], more].concat());
    assert_eq!(list(&[]).documents(0).len(), 7);
    let settled = list(&["--settled"]).documents(0);
    assert_eq!((settled.len(), &settled[7]["dismissed"]), (8, &json!("a test")));
}
