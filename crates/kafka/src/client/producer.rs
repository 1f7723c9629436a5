//! A producer that waits for the broker's acknowledgement.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    message::OwnedHeaders,
    producer::{FutureProducer, FutureRecord, Producer as _},
    util::Timeout,
};

use super::{
    brokers::Brokers,
    connected::LastConnected,
    context::ClientLog,
    error::{SendError, StartError},
};

/// Sends messages idempotently: a message that librdkafka resends is written once, and the messages of a key keep their order.
pub struct Producer {
    config: ClientConfig,
    brokers: Brokers,
    current: Mutex<Current>,
}

struct Current {
    producer: FutureProducer<ClientLog>,
    connected: LastConnected,
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
        let current = Mutex::new(Current::new(&config, brokers)?);
        Ok(Self { config, brokers: brokers.clone(), current })
    }

    /// Sends a message and returns when every in-sync replica has it.
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
                // An idempotent producer never sends again after it lost its sequence, as when a broker lost data.
                if let Some((code, reason)) = producer.client().fatal_error() {
                    let current = self.lock();
                    if std::ptr::eq(current.producer.client().native_ptr(), producer.client().native_ptr()) {
                        drop(self.replace(current, &format!("{code}: {reason}")));
                    }
                }
                Err(SendError::new(message.topic, error))
            }
        }
    }

    /// Returns the producer. One that has had no broker for too long is replaced.
    pub(crate) fn current(&self) -> FutureProducer<ClientLog> {
        let current = self.lock();
        let lost_for = current.connected.lost_for();
        if lost_for < self.brokers.replace_after {
            return current.producer.clone();
        }
        self.replace(current, &format!("no broker for {} s", lost_for.as_secs()))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, mut current: MutexGuard<'_, Current>, reason: &str) -> FutureProducer<ClientLog> {
        match Current::new(&self.config, &self.brokers) {
            Ok(new) => {
                tracing::warn!(reason, "producer replaced");
                let old = std::mem::replace(&mut *current, new);
                // The last clone waits for librdkafka to end, which blocks.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => tracing::error!(%error, reason, "producer not replaced; next message retries"),
        }
        current.producer.clone()
    }
}

impl Current {
    fn new(config: &ClientConfig, brokers: &Brokers) -> Result<Self, StartError> {
        let log = ClientLog::new(brokers);
        let connected = log.connected().clone();
        Ok(Self { producer: FutureProducer::from_config_and_context(config, log)?, connected })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn producer_without_a_broker_is_replaced() {
        let brokers = Brokers { replace_after: Duration::from_millis(300), ..Brokers::new("127.0.0.1:9", "test") };
        let producer = Producer::new(brokers.producer(Duration::from_millis(100)), &brokers).unwrap();
        let client = || producer.current().client().native_ptr() as usize;
        let first = client();
        assert_eq!(client(), first);
        let lost = producer.lock().connected.clone();
        while lost.lost_for() < brokers.replace_after {
            tokio::task::yield_now().await;
        }
        assert_ne!(client(), first);
    }
}
