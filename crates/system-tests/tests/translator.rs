//! Translators that are frozen, killed and overtaken: the log has every message exactly once.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that cannot continue fails, and says what it measured")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use embedded::kafka::{Kafka, Topic, create_topics};
use embedded::layout::Layout;
use embedded::report::Report;
use embedded::{database, distribution, ports};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use shop::services::{Service, Settings, TRANSLATOR};
use sqlx::PgPool;
use uuid::Uuid;

const PARTITIONS: i32 = 6;
/// The shortest session that the broker allows.
const SESSION: Duration = Duration::from_secs(6);
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn translator_frozen_past_its_session_appends_nothing_twice() {
    frozen_and_thawed("frozen", DuringTheFreeze::ItsAppendsCommit).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn frozen_translator_with_aborted_appends_appends_nothing_twice() {
    frozen_and_thawed("given_up", DuringTheFreeze::ItsAppendsAreGivenUp).await;
}

#[derive(PartialEq)]
enum DuringTheFreeze {
    /// The append succeeds while the translator is frozen.
    ItsAppendsCommit,
    /// The database ends the call: the log has nothing, and the translator must try again.
    ItsAppendsAreGivenUp,
}

async fn frozen_and_thawed(name: &str, during: DuringTheFreeze) {
    let shop = Shop::open(name).await;
    let mut frozen = shop.translator("frozen");
    frozen.until_ready(DEADLINE).await.unwrap();
    shop.send(0..300).await;
    shop.until_translated(300).await;

    // In the middle of its work: its appends wait for the log's lock, and it has read the next messages.
    let mut lock = shop.log.begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *lock).await.unwrap();
    shop.send(300..600).await;
    eventually("its appends wait", async || shop.waiting_appends().await > 0).await;
    shop.send(600..900).await;
    eventually("it knows the lag of the next messages", async || metric(&frozen, "translation_lag").await >= 600.0).await;
    frozen.process().freeze().unwrap();
    if during == DuringTheFreeze::ItsAppendsCommit {
        lock.rollback().await.unwrap();
        eventually("its appends are in the log", async || shop.translated().await > 300).await;
    } else {
        eventually("the database has ended its appends", async || shop.waiting_appends().await == 0).await;
        lock.rollback().await.unwrap();
        assert_eq!(shop.translated().await, 300);
    }

    // After the session the other translator takes over the partitions.
    let mut other = shop.translator("other");
    other.until_ready(DEADLINE).await.unwrap();
    shop.send(900..1_200).await;
    shop.until_translated(1_200).await;

    // After the thaw it still has messages that the other has translated.
    frozen.process().thaw().unwrap();
    shop.send(1_200..1_500).await;
    shop.until_translated(1_500).await;
    frozen.until_ready(DEADLINE).await.unwrap();
    other.until_ready(DEADLINE).await.unwrap();
    println!("offset conflicts: {}", metric(&frozen, "translation_offset_conflicts_total").await);
    // A stopped translator has finished its appends.
    assert!(frozen.stop(DEADLINE).await.unwrap().success());
    assert!(other.stop(DEADLINE).await.unwrap().success());
    shop.check(1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn repeatedly_killed_translator_loses_and_doubles_nothing() {
    let shop = Shop::open("killed").await;
    let mut translator = shop.translator("killed");
    let mut sent = 0;
    for _ in 0..6 {
        translator.until_ready(DEADLINE).await.unwrap();
        shop.send(sent..sent + 1_000).await;
        sent += 1_000;
        // Some messages are in the log, and most are on their way.
        let before = shop.translated().await;
        eventually("the translator appends", async || shop.translated().await > before).await;
        translator.restart().await.unwrap();
    }
    shop.until_translated(sent).await;
    shop.check(sent).await;
    assert!(translator.stop(DEADLINE).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn message_is_in_the_log_within_a_second() {
    let shop = Shop::open("moments").await;
    let mut translator = shop.translator("moments");
    translator.until_ready(DEADLINE).await.unwrap();
    shop.send(0..1).await;
    shop.until_translated(1).await;
    let mut times = vec![];
    for inventory in 1..21 {
        let started = Instant::now();
        shop.send(inventory..inventory + 1).await;
        shop.until_translated(inventory + 1).await;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    println!("from sending to reading in the log: median {:?}, slowest {:?}", times[times.len() / 2], times[times.len() - 1]);
    assert!(times[times.len() / 2] < Duration::from_millis(500), "{times:?}");

    let product = Uuid::now_v7();
    let url = format!("{}/changeinventory/{product}", translator.url());
    let answer = reqwest::Client::new().post(url).json(&serde_json::json!({"product_id": product, "inventory": 21})).send().await.unwrap();
    assert_eq!(answer.json::<(Uuid, i64)>().await.unwrap(), (product, 22));
    shop.check(22).await;
    assert!(translator.stop(DEADLINE).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn translator_waits_for_a_restarted_broker() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::kafka(&layout, &Report::quiet()).await.unwrap();
    let mut broker = Kafka::start_on_free_ports(&distribution, &layout.scratch("translator-broker").unwrap()).await.unwrap();
    let shop = Shop::open_at("broker", broker.bootstrap_servers()).await;
    let mut translator = shop.translator("broker");
    translator.until_ready(DEADLINE).await.unwrap();
    shop.send(0..500).await;
    shop.until_translated(500).await;

    broker.kill().await.unwrap();
    eventually("it says what it waits for", async || {
        let answer = reqwest::get(format!("{}/ready", translator.url())).await.unwrap();
        answer.status() == 503 && answer.text().await.unwrap().contains("kafka: the broker at")
    })
    .await;
    broker.restart().await.unwrap();
    shop.send(500..1_000).await;
    shop.until_translated(1_000).await;
    translator.until_ready(DEADLINE).await.unwrap();
    assert!(translator.stop(DEADLINE).await.unwrap().success());
    shop.check(1_000).await;
    broker.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn bombs_and_floods_take_less_than_256_mb() {
    let shop = Shop::open("bombs").await;
    let topic = format!("{}-inventories", shop.name);
    let send = async |compression: &str, records: Vec<(Vec<u8>, OwnedHeaders)>| {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &shop.bootstrap_servers)
            .set("compression.type", compression)
            // A bomb is small on the wire, and a flood comes in batches that the topic takes.
            .set("message.max.bytes", "900000000")
            .set("batch.size", if records.len() > 1 { "60000" } else { "900000000" })
            .set("queue.buffering.max.kbytes", "2000000")
            .create()
            .unwrap();
        let sends: Vec<_> = records
            .iter()
            .map(|(value, headers)| {
                let record = FutureRecord::<[u8], _>::to(&topic).payload(value).headers(headers.clone());
                producer.send_result(record).map_err(|(error, _)| error).unwrap()
            })
            .collect();
        drop(records);
        let (mut taken, mut refused) = (0, 0);
        for sent in futures::future::join_all(sends).await {
            match sent.unwrap() {
                Ok(_) => taken += 1,
                Err(_) => refused += 1,
            }
        }
        println!("{compression}: the broker took {taken} and refused {refused}");
        taken
    };
    let (none, zeros) = (OwnedHeaders::new, |bytes: usize| vec![0_u8; bytes]);
    let header = |bytes: usize| OwnedHeaders::new().insert(Header { key: "large", value: Some(&zeros(bytes)) });
    // All are in the topic before the translator starts.
    let mut letters = 0;
    letters += send("zstd", vec![(zeros(300_000_000), none())]).await;
    letters += send("zstd", vec![(zeros(30_000_000), none())]).await;
    letters += send("gzip", vec![(zeros(70_000_000), none())]).await;
    letters += send("lz4", vec![(zeros(18_000_000), none())]).await;
    letters += send("zstd", vec![(b"tea".to_vec(), header(30_000_000))]).await;
    for _ in 0..100 {
        letters += send("zstd", vec![(zeros(1_000_000), none())]).await;
    }
    letters += send("none", (0..3_000).map(|_| (zeros(50_000), none())).collect()).await;
    letters += send("none", (0..3_000).map(|_| (b"tea".to_vec(), header(50_000))).collect()).await;
    let letters: i64 = letters;
    assert!(letters > 6_000, "{letters}");

    let mut translator = shop.translator("bombs");
    translator.until_ready(DEADLINE).await.unwrap();
    shop.send(0..100).await;
    let started = Instant::now();
    while shop.translated().await < 100 {
        assert!(started.elapsed() < 4 * DEADLINE, "{} of 100 messages behind the bombs", shop.translated().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let stored = "SELECT sum(next_offset)::bigint FROM source_offset WHERE topic = $1";
    eventually("all are read", async || {
        sqlx::query_scalar::<_, Option<i64>>(stored).bind(&topic).fetch_one(&shop.log).await.unwrap() == Some(letters + 100)
    })
    .await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", translator.process().identity().pid)).unwrap();
    let peak: u64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap();
    println!("{letters} bombs and letters after {:?}: at most {} MB", started.elapsed(), peak / 1024);
    assert!(peak < 256 * 1024, "{peak} kB");
    assert!(translator.stop(DEADLINE).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn frozen_broker_is_found_again() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::kafka(&layout, &Report::quiet()).await.unwrap();
    let mut broker = Kafka::start_on_free_ports(&distribution, &layout.scratch("translator-frozen-broker").unwrap()).await.unwrap();
    let shop = Shop::open_at("frozen_broker", broker.bootstrap_servers()).await;
    let mut translator = shop.translator("frozen-broker");
    translator.until_ready(DEADLINE).await.unwrap();
    shop.send(0..100).await;
    shop.until_translated(100).await;
    // A broker that is its own controller is fenced when its heartbeats are 9 s late. Then metadata has no broker for a moment.
    for round in 1..=3 {
        broker.process().freeze().unwrap();
        tokio::time::sleep(Duration::from_secs(15)).await;
        broker.process().thaw().unwrap();
        shop.send(round * 100..(round + 1) * 100).await;
        shop.until_translated((round + 1) * 100).await;
        translator.until_ready(DEADLINE).await.unwrap();
    }
    assert!(translator.stop(DEADLINE).await.unwrap().success());
    shop.check(400).await;
    broker.kill().await.unwrap();
}

/// A test's own database, topics and translators.
struct Shop {
    name: String,
    url: String,
    log: PgPool,
    bootstrap_servers: String,
    producer: FutureProducer,
    logs: PathBuf,
    products: Vec<Uuid>,
}

impl Shop {
    async fn open(name: &str) -> Self {
        Self::open_at(name, variable("CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS")).await
    }

    async fn open_at(name: &str, bootstrap_servers: String) -> Self {
        let server = variable("CARTLOG_TEST_DATABASE_URL");
        let name = format!("translator_{name}_{}", Uuid::now_v7().simple());
        database::create(&server, &name).await.unwrap();
        let (address, _) = server.rsplit_once('/').unwrap();
        let url = format!("{address}/{name}");
        database::migrate(&url).await.unwrap();
        let log = database::connect(&url).await.unwrap();
        let topics = [format!("{name}-inventories"), format!("{name}-prices")];
        let dead_letters = topics.each_ref().map(|topic| format!("{topic}.dead-letters"));
        // As those of the shop.
        let topic = |name, kib: u32| Topic { name, partitions: PARTITIONS, max_message_bytes: Some(kib * 1024) };
        let topics: Vec<_> =
            topics.iter().map(|name| topic(name, 80)).chain(dead_letters.iter().map(|name| topic(name, 3 * 1024))).collect();
        create_topics(&bootstrap_servers, &topics).await.unwrap();
        // Idempotent, because after a broker's death the messages could otherwise be sent in another order.
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap_servers)
            .set("enable.idempotence", "true")
            .set("batch.size", "65536")
            .create()
            .unwrap();
        let logs = Layout::discover().unwrap().scratch(&name).unwrap();
        let products = (0..30).map(|_| Uuid::now_v7()).collect();
        Self { name, url, log, bootstrap_servers, producer, logs, products }
    }

    /// Starts a translator.
    fn translator(&self, name: &str) -> Service {
        let programs = PathBuf::from(variable("CARTLOG_TEST_BIN_DIR"));
        let [port] = ports::free([None]).unwrap();
        let mut settings = Settings::new(TRANSLATOR, &programs, &self.logs, port);
        settings.database_url = database::for_role(&self.url, TRANSLATOR.role).unwrap();
        settings.kafka_bootstrap_servers.clone_from(&self.bootstrap_servers);
        settings.log = self.logs.join(format!("{name}.log"));
        settings.environment = vec![
            ("CARTLOG_INVENTORIES_TOPIC".into(), format!("{}-inventories", self.name)),
            ("CARTLOG_PRICE_CHANGES_TOPIC".into(), format!("{}-prices", self.name)),
            ("CARTLOG_CONSUMER_GROUP".into(), self.name.clone()),
            ("CARTLOG_SESSION_TIMEOUT_SECONDS".into(), SESSION.as_secs().to_string()),
        ];
        Service::start(TRANSLATOR, settings).unwrap()
    }

    /// Sends inventories with different numbers, because the test must tell the messages apart.
    async fn send(&self, inventories: std::ops::Range<i64>) {
        let topic = format!("{}-inventories", self.name);
        let sends = inventories.map(|inventory| {
            let product = self.products[usize::try_from(inventory).unwrap() % self.products.len()];
            let (key, value) = (product.to_string(), serde_json::json!({"product_uuid": product, "inventory": inventory}).to_string());
            self.producer.send_result(FutureRecord::to(&topic).key(&key).payload(&value)).map_err(|(error, _)| error).unwrap()
        });
        for sent in futures::future::join_all(sends).await {
            sent.unwrap().unwrap();
        }
    }

    async fn translated(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&self.log).await.unwrap()
    }

    /// Counts the calls that wait for the log's lock.
    async fn waiting_appends(&self) -> i64 {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'";
        sqlx::query_scalar(waiting).fetch_one(&self.log).await.unwrap()
    }

    async fn until_translated(&self, count: i64) {
        eventually(&format!("{count} are translated"), async || self.translated().await >= count).await;
    }

    /// Checks that the log has the inventories 0 to `count` once each, in the order of each product and of each partition's offsets.
    async fn check(&self, count: i64) {
        let events: Vec<(Uuid, i64, Option<String>)> = sqlx::query_as(
            "SELECT product_id, (convert_from(payload, 'UTF8')::jsonb #>> '{InventoryChanged,inventory}')::bigint, metadata ->> 'causation_id'
            FROM event ORDER BY event_id",
        )
        .fetch_all(&self.log)
        .await
        .unwrap();
        let mut inventories: Vec<_> = events.iter().map(|(_, inventory, _)| *inventory).collect();
        inventories.sort_unstable();
        assert_eq!(inventories, (0..count).collect::<Vec<_>>());
        let (mut last, mut read_to) = (HashMap::new(), HashMap::new());
        for (product, inventory, message) in events {
            // An event from HTTP has no message.
            if let Some((partition, offset)) = message.as_deref().and_then(|message| message.rsplit_once('/')) {
                let (offset, before) = (offset.parse::<i64>().ok(), read_to.get(partition).copied());
                assert!(before < offset, "{partition}: {offset:?} after {before:?}");
                read_to.insert(partition.to_owned(), offset.unwrap());
            }
            let before = last.insert(product, inventory);
            assert!(before < Some(inventory), "{product}: {inventory} after {before:?}");
        }
    }
}

/// Sums a metric over its labels.
async fn metric(service: &Service, name: &str) -> f64 {
    let Ok(answer) = reqwest::get(format!("{}/metrics", service.url())).await else { return 0.0 };
    let text = answer.text().await.unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .fold(0.0, |sum, value| sum + value)
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo dev test`"))
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
