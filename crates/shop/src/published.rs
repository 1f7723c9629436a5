//! The readers of the topic of published carts: one follows it from its current end, the other reads all that is there.

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
    /// By `ce_id`.
    pub carts: BTreeMap<String, PublishedCart>,
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
        let (consumer, _) = assigned(bootstrap_servers, topic, From::End).await?;
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

/// Reads every message that is on the topic now.
///
/// # Errors
/// The broker cannot be reached, or does not send them within 20 s.
pub async fn read_all(bootstrap_servers: &str, topic: &str) -> Result<Received, Error> {
    let (consumer, mut left) = assigned(bootstrap_servers, topic, From::Beginning).await?;
    let mut received = Received::default();
    let reading = async {
        while left > 0 {
            received.take(&consumer.recv().await.map_err(|error| failed(error.to_string()))?);
            left -= 1;
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, reading).await.unwrap_or_else(|_| Err(failed("its messages did not come in time".to_owned())))?;
    Ok(received)
}

impl Received {
    fn take(&mut self, message: &BorrowedMessage<'_>) {
        match read(message) {
            Ok((id, cart)) => {
                if let Some(before) = self.carts.insert(id.clone(), cart.clone()) {
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

fn read(message: &BorrowedMessage<'_>) -> Result<(String, PublishedCart), String> {
    let header = message.headers().and_then(|headers| headers.iter().find(|header| header.key == "ce_id"));
    let id = header.and_then(|header| std::str::from_utf8(header.value?).ok());
    let id = id.ok_or("no ce_id")?;
    let payload = message.payload().unwrap_or_default();
    let cart: PublishedCart = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if message.key() != Some(cart.cart_id.to_string().as_bytes()) {
        return Err("the key is not the cart_id".to_owned());
    }
    Ok((id.to_owned(), cart))
}

#[derive(Clone, Copy)]
enum From {
    Beginning,
    End,
}

/// Makes a consumer of all partitions, and returns the number of messages that are on the topic.
async fn assigned(bootstrap_servers: &str, topic: &str, from: From) -> Result<(StreamConsumer, i64), Error> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        // Required by the client. Nothing is committed.
        .set("group.id", "cartlog-demo")
        .set("enable.auto.commit", "false")
        .create()
        .map_err(|error| failed(error.to_string()))?;
    let topic = topic.to_owned();
    let assigning = move || {
        let metadata = consumer.fetch_metadata(Some(&topic), DEADLINE)?;
        let (mut partitions, mut messages) = (TopicPartitionList::new(), 0);
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            let (begin, end) = consumer.fetch_watermarks(&topic, partition.id(), DEADLINE)?;
            let offset = match from {
                From::Beginning => begin,
                From::End => end,
            };
            partitions.add_partition_offset(&topic, partition.id(), Offset::Offset(offset))?;
            messages += end - begin;
        }
        consumer.assign(&partitions).map(|()| (consumer, messages))
    };
    let assigned: Result<_, rdkafka::error::KafkaError> =
        tokio::task::spawn_blocking(assigning).await.map_err(|error| failed(error.to_string()))?;
    assigned.map_err(|error| failed(error.to_string()))
}

fn failed(reason: String) -> Error {
    Error::Kafka { what: "read the published carts".to_owned(), reason }
}
