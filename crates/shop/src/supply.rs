//! The suppliers: inventories and price changes over Kafka.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::topics;
use embedded::error::Error;

const DEADLINE: Duration = Duration::from_secs(30);

/// A producer of inventories and price changes.
pub struct Supply {
    producer: FutureProducer,
}

impl Supply {
    /// Makes the producer.
    ///
    /// # Errors
    /// The settings of the producer are wrong.
    pub fn new(bootstrap_servers: &str) -> Result<Self, Error> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("enable.idempotence", "true")
            // The topics take no larger batches.
            .set("batch.size", "65536")
            .create()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { producer })
    }

    /// Reports a product's inventory.
    ///
    /// # Errors
    /// The broker does not acknowledge the message.
    pub async fn inventory(&self, product: Uuid, inventory: u32) -> Result<(), Error> {
        self.send(topics::INVENTORIES, product, json!({"product_uuid": product, "inventory": inventory})).await
    }

    /// Reports a price change.
    ///
    /// # Errors
    /// The broker does not acknowledge the message.
    pub async fn price(&self, product: Uuid, old: Decimal, new: Decimal) -> Result<(), Error> {
        let change = json!({"product_uuid": product, "old_price": old.to_string(), "new_price": new.to_string()});
        self.send(topics::PRICE_CHANGES, product, change).await
    }

    /// Sends a message with the product as its key, because a product's messages must keep their order.
    async fn send(&self, topic: &str, product: Uuid, message: Value) -> Result<(), Error> {
        let (key, payload) = (product.to_string(), message.to_string());
        let record = FutureRecord::to(topic).key(&key).payload(&payload);
        self.producer.send(record, DEADLINE).await.map(drop).map_err(|(error, _)| failed(error.to_string()))
    }
}

fn failed(reason: String) -> Error {
    Error::Kafka { what: "send to Kafka".to_owned(), reason }
}
