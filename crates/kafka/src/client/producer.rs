//! A producer that waits for the broker's word.

use std::sync::{Mutex, PoisonError};

use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{FutureProducer, FutureRecord, Producer as _},
    util::Timeout,
};

use super::{brokers::Brokers, context::Logs, error::SendError};

/// Idempotent: what it sends again by itself, as the first try's answer was lost, is written once, and a key's messages keep their order.
pub(crate) struct Producer {
    config: ClientConfig,
    logs: Logs,
    current: Mutex<FutureProducer<Logs>>,
}

/// What is sent.
pub(crate) struct Outgoing<'a> {
    pub(crate) topic: &'a str,
    /// Where it is not the key's to say.
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: OwnedHeaders,
}

impl Producer {
    /// Connects when it is first needed.
    pub(crate) fn new(config: ClientConfig, brokers: &Brokers) -> Result<Self, KafkaError> {
        let logs = Logs::of(brokers);
        let current = Mutex::new(FutureProducer::from_config_and_context(&config, logs.clone())?);
        Ok(Self { config, logs, current })
    }

    /// Sends a message, and answers once every in-sync replica has it, or the message timeout is over.
    pub(crate) async fn send(&self, message: Outgoing<'_>) -> Result<(), SendError> {
        let producer = self.current();
        let record = FutureRecord {
            topic: message.topic,
            partition: message.partition,
            payload: message.value,
            key: message.key,
            timestamp: None,
            headers: Some(message.headers),
        };
        match producer.send(record, Timeout::Never).await {
            Ok(_) => Ok(()),
            Err((error, _)) => {
                if let Some((code, reason)) = producer.client().fatal_error() {
                    self.replace(&producer, code, &reason);
                }
                Err(SendError::new(message.topic, error))
            }
        }
    }

    /// The producer in use.
    pub(crate) fn current(&self) -> FutureProducer<Logs> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An idempotent producer that has lost its place, as after a broker that lost data, never sends again; a new one does.
    fn replace(&self, failed: &FutureProducer<Logs>, code: RDKafkaErrorCode, reason: &str) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(current.client().native_ptr(), failed.client().native_ptr()) {
            return;
        }
        tracing::warn!(%code, reason, "the producer lost its place with the broker; making a new one");
        match FutureProducer::from_config_and_context(&self.config, self.logs.clone()) {
            Ok(producer) => *current = producer,
            Err(error) => tracing::error!(%error, "a new producer could not be made; trying again with the next message"),
        }
    }
}
