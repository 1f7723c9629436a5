//! The shop that the system tests share: the four real services on a database and topics that no other test uses.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use embedded::kafka::{Topic, create_topics};
use embedded::layout::Layout;
use embedded::ports;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use reqwest::StatusCode;
use serde_json::{Value, json};
use shop::services::{self, COMMANDS, Kind, PROJECTIONS, PUBLISHER, Service, Settings, TRANSLATOR};
use sqlx::{PgPool, Postgres, Transaction};
use test_support::{Database, eventually};
use uuid::Uuid;

/// The time in which a service must be ready.
pub const READY: Duration = Duration::from_secs(120);

/// Runs the services on their own database and topics.
pub struct Shop {
    /// The owner's connections to the database.
    pub pool: PgPool,
    /// Kafka's bootstrap servers.
    pub kafka: String,
    database_urls: HashMap<&'static str, String>,
    name: String,
    programs: PathBuf,
    logs: PathBuf,
    http: reqwest::Client,
    services: HashMap<&'static str, Service>,
}

/// The fate of a killed process's running database calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastCalls {
    /// They end with their connections.
    GivenUp,
    /// They run to their end, and nobody gets the reply.
    Run,
}

/// A message on the topic of published carts.
#[derive(Debug, Clone)]
pub struct Published {
    /// The message's key.
    pub key: String,
    /// The message's body.
    pub value: Value,
    /// The message's headers.
    pub headers: HashMap<String, String>,
}

impl Shop {
    /// Makes a shop on the test servers. No service runs yet.
    pub async fn new(test: &str) -> Self {
        let database = Database::create().await;
        let urls = services::WITH_CONSOLE.map(|kind| (kind.name, database.url_as(kind.role))).into();
        Self::on(test, database.pool().await, urls, test_support::kafka_bootstrap_servers()).await
    }

    /// Makes a shop on the test's own servers.
    pub async fn on(test: &str, pool: PgPool, database_urls: HashMap<&'static str, String>, kafka: String) -> Self {
        let name = format!("{test}-{}", Uuid::now_v7().simple());
        let programs = std::env::var_os("CARTLOG_TEST_BIN_DIR").map(PathBuf::from);
        let programs = programs.expect("these tests run the services' programs: run `cargo dev test`, which builds them");
        let logs = Layout::discover().unwrap().scratch(&name).unwrap();
        let shop = Self { pool, kafka, database_urls, name, programs, logs, http: reqwest::Client::new(), services: HashMap::new() };
        let topics: Vec<_> = ["inventories", "price-changes", "published-carts"].map(|topic| shop.topic(topic)).into();
        let dead: Vec<_> = topics.iter().map(|topic| format!("{topic}.dead-letters")).collect();
        let all: Vec<_> = topics
            .iter()
            .map(|name| Topic { name, partitions: 3, max_message_bytes: None })
            .chain(dead.iter().map(|name| Topic { name, partitions: 1, max_message_bytes: Some(3 * 1024 * 1024) }))
            .collect();
        create_topics(&shop.kafka, &all).await.unwrap();
        shop
    }

    /// Returns the name that a topic has for this test.
    pub fn topic(&self, topic: &str) -> String {
        format!("{topic}-{}", self.name)
    }

    /// Returns settings for a service, with a free port and its log in the file of this name.
    pub fn settings(&self, kind: Kind, log: &str) -> Settings {
        let [port] = ports::free([None]).unwrap();
        let mut settings = Settings::new(kind, &self.programs, Path::new(&self.logs), port);
        settings.database_url = self.database_urls[kind.name].clone();
        settings.kafka_bootstrap_servers = self.kafka.clone();
        settings.log = self.logs.join(log);
        let topics = ["inventories", "price-changes", "published-carts"];
        settings.environment =
            topics.map(|topic| (format!("CARTLOG_{}_TOPIC", topic.replace('-', "_").to_uppercase()), self.topic(topic))).into();
        settings.environment.push(("CARTLOG_CONSUMER_GROUP".into(), self.name.clone()));
        settings
    }

    /// Starts services and waits until they are ready.
    pub async fn start(&mut self, kinds: &[Kind]) {
        for kind in kinds {
            let settings = self.settings(*kind, &format!("{}.log", kind.name));
            self.services.insert(kind.name, Service::start(*kind, settings).unwrap());
        }
        for kind in kinds {
            self.service(*kind).until_ready(READY).await.unwrap();
        }
    }

    /// Starts a service with these settings, and does not wait until it is ready.
    pub fn launch(&mut self, kind: Kind, settings: Settings) {
        self.services.insert(kind.name, Service::start(kind, settings).unwrap());
    }

    /// Returns a running service.
    pub fn service(&mut self, kind: Kind) -> &mut Service {
        self.services.get_mut(kind.name).unwrap()
    }

    /// Returns the URL of a running service.
    pub fn url(&self, kind: Kind) -> String {
        self.services[kind.name].url()
    }

    /// Sends a command and returns its status and body.
    pub async fn post(&self, kind: Kind, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.http.post(format!("{}{path}", self.url(kind))).json(body);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// Queries cart-projections, and returns the status and body.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let answer = self.http.get(format!("{}{path}", self.url(PROJECTIONS))).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// Adds a new item to a cart.
    pub async fn add(&self, cart: Uuid, product: Uuid, price: &str) -> (StatusCode, Value) {
        self.post(COMMANDS, &format!("/additem/{cart}"), &item(cart, Uuid::now_v7(), product, price)).await
    }

    /// Submits a cart.
    pub async fn submit(&self, cart: Uuid) -> (StatusCode, Value) {
        self.post(COMMANDS, &format!("/submitcart/{cart}"), &json!({"cart_id": cart})).await
    }

    /// Sends messages with keys to a topic.
    pub async fn produce(&self, topic: &str, messages: &[(Uuid, Value)]) {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .set("enable.idempotence", "true")
            // The topics take no larger batches.
            .set("batch.size", "65536")
            .set("linger.ms", "5")
            .create()
            .unwrap();
        let topic = self.topic(topic);
        let sent = messages.iter().map(|(key, value)| {
            let (producer, topic, key, value) = (producer.clone(), topic.clone(), key.to_string(), value.to_string());
            async move { producer.send(FutureRecord::to(&topic).key(&key).payload(&value), Timeout::Never).await.unwrap() }
        });
        futures::future::join_all(sent).await;
    }

    /// Waits until the topic of published carts has this many different `ce_id`s, and returns all its messages.
    pub async fn published(&self, different: usize) -> Vec<Published> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .set("group.id", format!("reader-{}", Uuid::now_v7()))
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&[&self.topic("published-carts")]).unwrap();
        let mut read: Vec<Published> = vec![];
        let consumer = std::sync::Arc::new(consumer);
        let started = std::time::Instant::now();
        loop {
            let polled = consumer.clone();
            let message = tokio::task::spawn_blocking(move || {
                polled.poll(Duration::from_millis(200)).map(|message| message.map(|message| message.detach()))
            })
            .await
            .unwrap();
            match message {
                Some(Ok(message)) => read.push(Published {
                    key: String::from_utf8(message.key().unwrap().to_vec()).unwrap(),
                    value: serde_json::from_slice(message.payload().unwrap()).unwrap(),
                    headers: message
                        .headers()
                        .unwrap()
                        .iter()
                        .map(|header| (header.key.to_owned(), String::from_utf8(header.value.unwrap().to_vec()).unwrap()))
                        .collect(),
                }),
                Some(Err(_)) | None => {
                    let ids: std::collections::HashSet<_> = read.iter().map(|message| &message.headers["ce_id"]).collect();
                    if ids.len() >= different {
                        return read;
                    }
                }
            }
            assert!(started.elapsed() < Duration::from_secs(90), "only {} messages of {different} were published", read.len());
        }
    }

    /// Takes the log's lock. Appends wait until it is released.
    pub async fn lock(&self) -> Transaction<'static, Postgres> {
        let mut lock = self.pool.begin().await.unwrap();
        sqlx::query("SELECT lock_log()").execute(&mut *lock).await.unwrap();
        lock
    }

    /// Waits until a service waits for a lock that the test holds.
    pub async fn until_stuck(&self, kind: Kind) {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = $1 AND wait_event_type = 'Lock'";
        eventually("the service waits for the lock", || async {
            let waiting: i64 = sqlx::query_scalar(waiting).bind(kind.role).fetch_one(&self.pool).await.unwrap();
            (waiting > 0).then_some(())
        })
        .await;
    }

    /// Kills a service that waits for a lock, and then releases the lock.
    pub async fn kill_stuck(&mut self, kind: Kind, lock: Transaction<'static, Postgres>, last_calls: LastCalls) {
        self.service(kind).kill().await.unwrap();
        let left = match last_calls {
            LastCalls::GivenUp => {
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND usename = $1"
            }
            LastCalls::Run => "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = $1",
        };
        let until_gone = eventually("none of its connections is left", || async {
            let left: i64 = sqlx::query_scalar(left).bind(kind.role).fetch_one(&self.pool).await.unwrap();
            (left == 0).then_some(())
        });
        match last_calls {
            LastCalls::GivenUp => {
                until_gone.await;
                lock.rollback().await.unwrap();
            }
            LastCalls::Run => {
                lock.rollback().await.unwrap();
                until_gone.await;
            }
        }
    }

    /// Counts the events of a type.
    pub async fn count(&self, event_type: &str) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM event WHERE event_type = $1").bind(event_type).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until the log has this many events of a type, and checks that it has no more.
    pub async fn until_count(&self, event_type: &str, count: i64) {
        eventually(&format!("the log has {count} {event_type}"), || async { (self.count(event_type).await >= count).then_some(()) }).await;
        assert_eq!(self.count(event_type).await, count, "{event_type}");
    }

    /// Stops every service, and checks that it ends with success.
    pub async fn stop(mut self) {
        for service in self.services.values_mut() {
            let status = service.stop(Duration::from_secs(30)).await.unwrap();
            assert!(status.success(), "{} ended with {status}", service.kind().name);
        }
    }
}

/// Returns the body of an Add Item.
pub fn item(cart: Uuid, item: Uuid, product: Uuid, price: &str) -> Value {
    json!({"cart_id": cart, "item_id": item, "product_id": product, "description": "A tea pot", "image": "pot.png", "price": price})
}

/// The four services.
pub const ALL: [Kind; 4] = [COMMANDS, TRANSLATOR, PROJECTIONS, PUBLISHER];
