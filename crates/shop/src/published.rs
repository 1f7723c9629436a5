//! A reader of the topic of published carts. It begins at the topic's current end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::Deserialize;
use tokio::task::AbortHandle;
use uuid::Uuid;

use embedded::error::Error;

const DEADLINE: Duration = Duration::from_secs(20);

/// Reads until it is dropped.
#[derive(Debug)]
pub struct Published {
    received: Arc<Mutex<Received>>,
    reading: AbortHandle,
}

/// The messages that were read.
#[derive(Debug, Default, Clone)]
pub struct Received {
    /// By `ce_id`, the position of the cart's submission.
    pub carts: BTreeMap<i64, PublishedCart>,
    /// The number of messages that repeated a `ce_id`.
    pub repeated: u64,
    /// Messages that break the contract.
    pub unreadable: Vec<String>,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PublishedCart {
    /// The cart.
    pub cart_id: Uuid,
    /// Its lines.
    pub ordered_product: Vec<Line>,
    /// Its total.
    pub total_price: String,
}

/// A line of a cart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Line {
    /// The product.
    pub product_id: Uuid,
    /// Its price.
    pub price: String,
}

impl Published {
    /// Finds the end of each partition and reads from there.
    ///
    /// # Errors
    /// The broker cannot be reached.
    pub async fn follow(bootstrap_servers: &str, topic: &str) -> Result<Self, Error> {
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            // Required by the client. Nothing is committed.
            .set("group.id", "cartlog-demo")
            .set("enable.auto.commit", "false")
            .create()
            .map_err(|error| failed(error.to_string()))?;
        let topic = topic.to_owned();
        let consumer = tokio::task::spawn_blocking(move || assign_ends(&consumer, &topic).map(|()| consumer))
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let received = Arc::new(Mutex::new(Received::default()));
        let target = Arc::clone(&received);
        let task = tokio::spawn(async move {
            loop {
                // The client reconnects by itself. The comparison at the end finds a message that never came.
                if let Ok(message) = consumer.recv().await {
                    target.lock().unwrap_or_else(PoisonError::into_inner).take(&message);
                }
            }
        });
        Ok(Self { received, reading: task.abort_handle() })
    }

    /// The messages so far.
    #[must_use]
    pub fn received(&self) -> Received {
        self.lock().clone()
    }

    /// The number of different carts so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().carts.len()
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Received {
    fn take(&mut self, message: &BorrowedMessage<'_>) {
        match read(message) {
            Ok((id, cart)) => {
                if let Some(before) = self.carts.insert(id, cart.clone()) {
                    self.repeated += 1;
                    if before != cart {
                        self.unreadable.push(format!("two different messages have the ce_id {id}"));
                    }
                }
            }
            Err(reason) => {
                let (partition, offset) = (message.partition(), message.offset());
                self.unreadable.push(format!("partition {partition}, offset {offset}: {reason}"));
            }
        }
    }
}

fn read(message: &BorrowedMessage<'_>) -> Result<(i64, PublishedCart), String> {
    let header = message.headers().and_then(|headers| headers.iter().find(|header| header.key == "ce_id"));
    let id = header.and_then(|header| std::str::from_utf8(header.value?).ok()?.parse().ok());
    let id = id.ok_or("no ce_id that is a position")?;
    let payload = message.payload().unwrap_or_default();
    let cart: PublishedCart = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if message.key() != Some(cart.cart_id.to_string().as_bytes()) {
        return Err("the key is not the cart_id".to_owned());
    }
    Ok((id, cart))
}

fn assign_ends(consumer: &StreamConsumer, topic: &str) -> Result<(), rdkafka::error::KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), DEADLINE)?;
    let mut ends = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let (_, end) = consumer.fetch_watermarks(topic, partition.id(), DEADLINE)?;
        ends.add_partition_offset(topic, partition.id(), Offset::Offset(end))?;
    }
    consumer.assign(&ends)
}

fn failed(reason: String) -> Error {
    Error::Kafka { what: "read the published carts".to_owned(), reason }
}
