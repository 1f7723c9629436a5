//! A topic for each test of a translation, and the events that its messages become.

use cart_events::{DomainEvent, ProductId};
use event_store::Position;
use kafka::{Brokers, CloudEvent, InvalidMessage, Message, Publisher, PublisherSettings, Translation, Translator, TranslatorSettings};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};
use service::CancellationToken;
use sqlx::Row;
use test_support::{TestLog, eventually, kafka_bootstrap_servers};
use uuid::Uuid;

const PARTITIONS: i32 = 3;

/// A topic that no other test uses. The consumer group has its name.
pub(crate) struct Topic {
    name: String,
    admin: AdminClient<DefaultClientContext>,
    publisher: Publisher,
    translate: fn(&Message<'_>) -> Result<DomainEvent, InvalidMessage>,
}

impl Topic {
    pub(crate) async fn create(translate: fn(&Message<'_>) -> Result<DomainEvent, InvalidMessage>) -> Self {
        let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", kafka_bootstrap_servers()).create().unwrap();
        let name = format!("translated-{}", Uuid::now_v7().simple());
        let dead_letters = format!("{name}.dead-letters");
        let topics = [&name, &dead_letters].map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
        for created in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
            created.unwrap();
        }
        Self { name, admin, publisher: Publisher::new(&PublisherSettings::new(brokers())).unwrap(), translate }
    }

    /// Sends a message with the product as its key.
    pub(crate) async fn send(&self, product: ProductId, value: &str) {
        let key = product.to_string();
        let message = CloudEvent {
            key: &key,
            id: "1",
            source: "/test",
            event_type: "test",
            time: None,
            traceparent: None,
            causation_id: None,
            json: value.as_bytes(),
        };
        self.publisher.send(&self.name, &message).await.unwrap();
    }

    /// Runs a translator until the log has this many events, and answers them.
    pub(crate) async fn translated(&self, log: &TestLog<DomainEvent>, events: i64) -> Vec<DomainEvent> {
        let translator = Translator::new(
            TranslatorSettings::new(brokers(), &*self.name),
            log.store.clone(),
            [Translation::new(&*self.name, self.translate)],
        );
        let stop = CancellationToken::new();
        let running = tokio::spawn(translator.unwrap().run(stop.clone()));
        eventually("the messages are translated", || async { (log.store.head().await.unwrap() >= Position(events)).then_some(()) }).await;
        stop.cancel();
        running.await.unwrap().unwrap();
        let rows = sqlx::query("SELECT payload FROM event ORDER BY event_id").fetch_all(log.store.pool()).await.unwrap();
        rows.iter().map(|row| serde_json::from_slice(row.get(0)).unwrap()).collect()
    }

    /// Deletes the offsets of the group in Kafka.
    pub(crate) async fn forget_the_group(&self) {
        for deleted in self.admin.delete_groups(&[&self.name], &AdminOptions::new()).await.unwrap() {
            deleted.unwrap();
        }
    }
}

fn brokers() -> Brokers {
    Brokers::new(kafka_bootstrap_servers(), "test")
}

/// Sends messages about several products in turn, and compares each product's events with its messages.
pub(crate) async fn each_product_keeps_its_order<M: Copy>(
    topic: &Topic,
    messages: &[M],
    message: impl Fn(ProductId, M) -> String,
    event: impl Fn(ProductId, M) -> DomainEvent,
) {
    let log = TestLog::create().await;
    let products: Vec<_> = (0..2 * PARTITIONS).map(|_| ProductId::new()).collect();
    for messages in messages {
        for product in &products {
            topic.send(*product, &message(*product, *messages)).await;
        }
    }
    let events = topic.translated(&log, i64::try_from(messages.len() * products.len()).unwrap()).await;
    for product in products {
        let its_own: Vec<_> = messages.iter().map(|messages| event(product, *messages)).collect();
        let translated: Vec<_> = events.iter().filter(|event| its_own.contains(event)).cloned().collect();
        assert_eq!(translated, its_own);
    }
}
