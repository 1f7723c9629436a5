//! The suppliers of the load: inventories and price changes over Kafka.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use crate::history::{History, Sent};
use embedded::error::Error;

/// A broker that is frozen or restarted for longer loses its clients' messages.
const SEND_DEADLINE: Duration = Duration::from_secs(45);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Inventory,
    Price,
}

/// The orders for a supplier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// It sends nothing.
    pub(crate) paused: bool,
    /// It is in the middle of a message.
    pub(crate) sending: bool,
    /// The number of messages to send without a pause between them, even while it is paused.
    pub(crate) at_once: usize,
    /// See [`Sent::remade`].
    pub(crate) remade: Option<u32>,
}

/// Sends inventories or price changes, one after the other.
pub(crate) struct Supplier {
    kafka: String,
    producer: FutureProducer,
    topic: String,
    kind: Kind,
    products: Arc<[Uuid]>,
    history: Arc<History>,
    random: StdRng,
    number: u64,
}

impl Supplier {
    pub(crate) fn new(
        kafka: &str,
        topic: String,
        kind: Kind,
        products: Arc<[Uuid]>,
        history: Arc<History>,
        random: StdRng,
    ) -> Result<Self, Error> {
        Ok(Self { kafka: kafka.to_owned(), producer: producer(kafka)?, topic, kind, products, history, random, number: 0 })
    }

    pub(crate) async fn supply(mut self, mut stopped: watch::Receiver<bool>, what: watch::Sender<Orders>) -> Result<(), Error> {
        let mut changes = what.subscribe();
        while !*stopped.borrow() {
            let Orders { paused, at_once, remade, .. } = *changes.borrow_and_update();
            if paused && at_once == 0 {
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = stopped.changed() => {}
                }
                continue;
            }
            what.send_modify(|what| what.sending = true);
            let sent = self.send(remade.filter(|_| at_once > 0)).await;
            what.send_modify(|what| {
                what.sending = false;
                what.at_once = what.at_once.saturating_sub(1);
            });
            sent?;
            if at_once == 0 {
                let pause = match self.kind {
                    Kind::Inventory => self.random.random_range(50..400),
                    Kind::Price => self.random.random_range(200..900),
                };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        Ok(())
    }

    async fn send(&mut self, remade: Option<u32>) -> Result<(), Error> {
        self.number += 1;
        let product = self.products.choose(&mut self.random).copied().unwrap_or_default();
        // Sometimes out of stock, until the next message.
        let inventory = if self.random.random_bool(0.1) { 0 } else { self.number };
        let price = |number: u64| format!("{}.{:02}", number / 100, number % 100);
        let message = match self.kind {
            Kind::Inventory => json!({"product_uuid": product, "inventory": inventory}),
            Kind::Price => json!({"product_uuid": product, "old_price": price(self.number - 1), "new_price": price(self.number)}),
        };
        let (key, payload) = (product.to_string(), message.to_string());
        let record = FutureRecord::to(&self.topic).key(&key).payload(&payload);
        let acknowledged = self.producer.send(record, SEND_DEADLINE).await.is_ok();
        match self.kind {
            Kind::Inventory => self.history.inventory(product, Sent { value: inventory, acknowledged, remade }),
            Kind::Price => self.history.price(product, Sent { value: price(self.number), acknowledged, remade }),
        }
        if !acknowledged {
            // A client that has lost its brokers does not find them again (librdkafka issue 5301).
            self.producer = producer(&self.kafka)?;
        }
        Ok(())
    }
}

fn producer(kafka: &str) -> Result<FutureProducer, Error> {
    ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("enable.idempotence", "true")
        // The topics take no larger batches.
        .set("batch.size", "65536")
        .set("message.timeout.ms", SEND_DEADLINE.as_millis().to_string())
        .create()
        .map_err(|error| Error::Kafka { what: "send to Kafka".to_owned(), reason: error.to_string() })
}
