//! A producer that waits for the broker's word.

use std::sync::{Mutex, PoisonError};

use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{FutureProducer, FutureRecord, Producer as _},
    util::Timeout,
};

use crate::{
    Brokers, SendError,
    metrics::{METRICS, is_connected},
    refusal::Refusal,
};

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

/// librdkafka's words, in the process's log.
#[derive(Clone)]
pub(crate) struct Logs(Refusal);

impl Logs {
    pub(crate) fn of(brokers: &Brokers) -> Self {
        Self(brokers.refusal.clone())
    }
}

impl ClientContext for Logs {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
        self.0.logged(message);
    }

    fn stats(&self, statistics: Statistics) {
        METRICS.connection("producer", &statistics);
        if is_connected(&statistics) {
            self.0.let_in();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.heard(&error, reason);
    }
}

pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        // It asks until the broker, which may be just starting, gives it an id.
        _ if facility == "GETPID" => tracing::info!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, "{message}");
        }
        // Of each connection, as each broker comes and goes.
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info if facility == "FAIL" => {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// Whether a topic exists, asked of the brokers; blocks for up to the timeout.
pub(crate) fn topic_exists<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
    timeout: std::time::Duration,
) -> Result<bool, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), timeout)?;
    Ok(metadata.topics().iter().any(|found| found.name() == topic && found.error().is_none() && !found.partitions().is_empty()))
}
