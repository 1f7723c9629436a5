//! The suppliers: stock levels and price changes, over Kafka.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::topics;
use embedded::error::Error;

const DEADLINE: Duration = Duration::from_secs(30);

/// A producer that tells the shop about stock and prices.
pub struct Supply {
    producer: FutureProducer,
}

impl Supply {
    pub fn new(bootstrap_servers: &str) -> Result<Self, Error> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("enable.idempotence", "true")
            .create()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { producer })
    }

    pub async fn inventory(&self, product: Uuid, inventory: u32) -> Result<(), Error> {
        self.send(topics::INVENTORIES, product, json!({"product_uuid": product, "inventory": inventory})).await
    }

    pub async fn price(&self, product: Uuid, old: Decimal, new: Decimal) -> Result<(), Error> {
        let change = json!({"product_uuid": product, "old_price": old.to_string(), "new_price": new.to_string()});
        self.send(topics::PRICE_CHANGES, product, change).await
    }

    /// The product is the key, so that its messages keep their order.
    async fn send(&self, topic: &str, product: Uuid, message: Value) -> Result<(), Error> {
        let (key, payload) = (product.to_string(), message.to_string());
        let record = FutureRecord::to(topic).key(&key).payload(&payload);
        self.producer.send(record, DEADLINE).await.map(drop).map_err(|(error, _)| failed(error.to_string()))
    }
}

fn failed(reason: String) -> Error {
    Error::Kafka { what: "send to Kafka".to_owned(), reason }
}
