//! A producer that waits for the broker's acknowledgement.

use std::sync::{Mutex, PoisonError};

use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    error::RDKafkaErrorCode,
    message::OwnedHeaders,
    producer::{FutureProducer, FutureRecord, Producer as _},
    util::Timeout,
};

use super::{
    brokers::Brokers,
    context::ClientLog,
    error::{SendError, StartError},
};

/// Sends messages idempotently: a message that librdkafka resends is written once, and the messages of a key keep their order.
pub struct Producer {
    config: ClientConfig,
    log: ClientLog,
    current: Mutex<FutureProducer<ClientLog>>,
}

/// A message to send.
pub struct Outgoing<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition; without one, the key decides.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// The headers.
    pub headers: OwnedHeaders,
}

impl Producer {
    /// Creates a producer. It connects at the first message.
    ///
    /// # Errors
    /// If librdkafka does not accept the settings.
    pub fn new(config: ClientConfig, brokers: &Brokers) -> Result<Self, StartError> {
        let log = ClientLog::new(brokers);
        let current = Mutex::new(FutureProducer::from_config_and_context(&config, log.clone())?);
        Ok(Self { config, log, current })
    }

    /// Sends a message and answers when every in-sync replica has it.
    ///
    /// # Errors
    /// If the message is not acknowledged within the message timeout, or refused.
    pub async fn send(&self, message: Outgoing<'_>) -> Result<(), SendError> {
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

    pub(crate) fn current(&self) -> FutureProducer<ClientLog> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces a producer that failed for good. An idempotent producer never sends again after it lost its sequence, as when a broker
    /// lost data.
    fn replace(&self, failed: &FutureProducer<ClientLog>, code: RDKafkaErrorCode, reason: &str) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(current.client().native_ptr(), failed.client().native_ptr()) {
            return;
        }
        tracing::warn!(%code, reason, "producer replaced");
        match FutureProducer::from_config_and_context(&self.config, self.log.clone()) {
            Ok(producer) => *current = producer,
            Err(error) => tracing::error!(%error, "producer not replaced; next message retries"),
        }
    }
}
