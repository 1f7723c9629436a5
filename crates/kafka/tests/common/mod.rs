//! A topic, messages and a log for each test.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot continue fails")]

pub mod forgetful;
pub mod raw;

use std::time::Duration;

use disintegrate::Event;
use event_store::{EventStore, StoreSettings};
use kafka::{Brokers, InvalidMessage, Message, Translation, Translator, TranslatorError, TranslatorSettings, TranslatorStatus, json};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use test_support::{Database, eventually, kafka_bootstrap_servers};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

/// The log has these three ids. The tests' messages have one.
#[derive(Debug, Clone, PartialEq, Eq, Event, Serialize, Deserialize)]
#[stream(CountStream, [Counted])]
pub enum ShelfEvent {
    Counted {
        #[id]
        product_id: Uuid,
        count: i64,
    },
    Placed {
        #[id]
        cart_id: Uuid,
        #[id]
        item_id: Uuid,
        #[id]
        product_id: Uuid,
    },
}

#[derive(Deserialize)]
struct Count {
    product: Uuid,
    count: u32,
}

pub fn counted(message: &Message<'_>) -> Result<ShelfEvent, InvalidMessage> {
    let Count { product, count } = json(message)?;
    Ok(ShelfEvent::Counted { product_id: product, count: count.into() })
}

pub fn brokers() -> Brokers {
    Brokers::new(kafka_bootstrap_servers(), "test")
}

fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka_bootstrap_servers());
    config
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    client().create().expect("an admin client")
}

pub fn producer(settings: &[(&str, &str)]) -> FutureProducer {
    let mut config = client();
    config.set("message.timeout.ms", "20000");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config.create().expect("a producer")
}

/// A topic that no other test uses, with its topic for dead letters.
pub struct Topic {
    pub name: String,
    producer: FutureProducer,
}

impl Topic {
    pub async fn create(partitions: i32) -> Self {
        let topic = Self::create_without_dead_letters(partitions).await;
        topic.create_dead_letters().await;
        topic
    }

    pub async fn create_without_dead_letters(partitions: i32) -> Self {
        let topic = Self::named(format!("counts-{}", Uuid::now_v7().simple()));
        create_topic(&topic.name, partitions).await;
        topic
    }

    /// A topic that may not exist yet.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), producer: producer(&[]) }
    }

    pub async fn create_dead_letters(&self) {
        create_topic(&self.dead_letters_name(), 1).await;
    }

    /// Creates the topic for dead letters with a setting.
    pub async fn create_dead_letters_with(&self, setting: &str, value: &str) {
        create_topic_with(&self.dead_letters_name(), 1, setting, value).await;
    }

    pub fn dead_letters_name(&self) -> String {
        format!("{}.dead-letters", self.name)
    }

    /// Sends a message and returns its offset.
    pub async fn send(&self, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>, headers: Option<OwnedHeaders>) -> i64 {
        let record = FutureRecord { topic: &self.name, partition: Some(partition), payload: value, key, timestamp: None, headers };
        self.producer.send(record, Duration::from_secs(20)).await.expect("the broker takes it").offset
    }

    /// Sends a count of a new product.
    pub async fn count(&self, partition: i32, count: i64) -> i64 {
        self.count_of(Uuid::now_v7(), partition, count).await
    }

    pub async fn count_of(&self, product: Uuid, partition: i32, count: i64) -> i64 {
        self.send(partition, Some(product.as_bytes()), Some(message(product, count).as_bytes()), None).await
    }

    pub fn dead_letters(&self, count: usize) -> Vec<OwnedMessage> {
        read(&self.dead_letters_name(), 1, count)
    }
}

pub fn message(product: Uuid, count: i64) -> String {
    format!(r#"{{"product":"{product}","count":{count}}}"#)
}

pub async fn create_topic(name: &str, partitions: i32) {
    create_topic_with(name, partitions, "max.message.bytes", "3145728").await;
}

pub async fn create_topic_with(name: &str, partitions: i32, setting: &str, value: &str) {
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1)).set(setting, value);
    let created = admin().create_topics([&topic], &AdminOptions::new()).await.expect("the broker answers");
    created.into_iter().for_each(|topic| drop(topic.expect("the topic is made")));
}

/// Reads a topic from its beginning until it has `count` messages.
pub fn read(topic: &str, partitions: i32, count: usize) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = client().set("group.id", "reader").set("enable.auto.commit", "false").create().expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&assignment).expect("an assignment");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut messages = vec![];
    while messages.len() < count {
        assert!(std::time::Instant::now() < deadline, "{} of {count} messages in {topic}", messages.len());
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            messages.push(message.expect("a message").detach());
        }
    }
    messages
}

pub fn header(message: &OwnedMessage, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let header = headers.iter().filter(|header| header.key == name).last()?;
    header.value.map(|value| String::from_utf8_lossy(value).into_owned())
}

pub fn headers(pairs: &[(&str, &str)]) -> OwnedHeaders {
    pairs.iter().fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }))
}

/// A log that no other test uses.
pub struct Log {
    pub database: Database,
    pub pool: PgPool,
    pub store: EventStore<ShelfEvent>,
}

impl Log {
    pub async fn create() -> Self {
        let database = Database::create_for_any_event().await;
        let (pool, store) = (database.pool().await, store(&database));
        Self { database, pool, store }
    }

    /// The counts in the log, in order.
    pub async fn counts(&self) -> Vec<i64> {
        self.events().await.into_iter().map(|(_, count)| count).collect()
    }

    /// The products and counts in the log, in order.
    pub async fn events(&self) -> Vec<(Uuid, i64)> {
        let rows: Vec<(Vec<u8>,)> =
            sqlx::query_as("SELECT payload FROM event ORDER BY event_id").fetch_all(&self.pool).await.expect("the log");
        let event = |payload: Vec<u8>| match serde_json::from_slice(&payload) {
            Ok(ShelfEvent::Counted { product_id, count }) => (product_id, count),
            other => panic!("{other:?}"),
        };
        rows.into_iter().map(|(payload,)| event(payload)).collect()
    }

    pub async fn metadata(&self) -> Vec<serde_json::Value> {
        sqlx::query_scalar("SELECT metadata FROM event ORDER BY event_id").fetch_all(&self.pool).await.expect("the log")
    }

    pub async fn until_counts(&self, expected: &[i64]) {
        eventually(&format!("the log has {} counts", expected.len()), || async {
            let mut counts = self.counts().await;
            counts.sort_unstable();
            (counts.len() >= expected.len()).then_some(counts)
        })
        .await;
        let mut counts = self.counts().await;
        counts.sort_unstable();
        assert_eq!(counts, expected);
    }

    pub async fn stored_offset(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        self.store.stored_offsets(group, topic).await.expect("the log").get(&partition).map(|stored| stored.offset)
    }

    pub async fn until_stored(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        eventually(&format!("{topic}/{partition} is translated to {offset}"), || async {
            (self.stored_offset(group, topic, partition).await == Some(offset)).then_some(())
        })
        .await;
    }
}

pub fn store(database: &Database) -> EventStore<ShelfEvent> {
    EventStore::new(database.options_as("cartlog_translator"), StoreSettings::default())
}

/// Creates a group name that no other test uses.
pub fn group() -> String {
    format!("counters-{}", Uuid::now_v7().simple())
}

/// A running translator. It stops when it is dropped.
pub struct Running {
    pub status: TranslatorStatus,
    shutdown: DropGuard,
    task: JoinHandle<Result<(), TranslatorError>>,
}

impl Running {
    pub fn start(log: &Log, group: &str, topics: &[&Topic]) -> Self {
        Self::start_with(TranslatorSettings::new(brokers(), group), store(&log.database), topics)
    }

    pub fn start_with(settings: TranslatorSettings, store: EventStore<ShelfEvent>, topics: &[&Topic]) -> Self {
        let translations = topics.iter().map(|topic| Translation::new(&topic.name, counted));
        let translator = Translator::new(settings, store, translations).expect("settings that librdkafka takes");
        let (status, shutdown) = (translator.status(), CancellationToken::new());
        let task = tokio::spawn(translator.run(shutdown.clone()));
        Self { status, shutdown: shutdown.drop_guard(), task }
    }

    pub async fn until_ready(&self) {
        eventually("the translator is ready", || async { self.status.ready().ok().filter(|()| self.status.waiting().is_empty()) }).await;
    }

    /// Waits until the translator, or one of its partitions, waits for something.
    pub async fn until_waiting_for(&self, what: &str) -> String {
        let why = || self.status.ready().err().unwrap_or_else(|| self.status.waiting().join("; "));
        eventually(&format!("the translator waits for {what}"), || async { Some(why()).filter(|why| why.contains(what)) }).await
    }

    /// Stops the translator and waits.
    pub async fn stop(self) {
        drop(self.shutdown);
        self.task.await.expect("it does not panic").expect("it ends in order");
    }

    /// Aborts the translator.
    pub fn kill(self) {
        self.task.abort();
    }
}

/// Sets a stored offset, as `cartctl translations seek` does.
pub async fn seek(log: &Log, group: &str, partition: i32, offset: i64) {
    let set = "UPDATE source_offset SET next_offset = $3, last_message = NULL WHERE consumer = $1 AND partition = $2";
    let set = sqlx::query(set).bind(group).bind(partition).bind(offset).execute(&log.pool).await.expect("the log");
    assert_eq!(set.rows_affected(), 1);
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
