//! What librdkafka says, taken to the process's log.

use rdkafka::{ClientContext, Statistics, config::RDKafkaLogLevel, error::KafkaError};

use super::{
    authentication::Refusal,
    brokers::Brokers,
    metrics::{connection, is_connected},
};

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
        connection("producer", &statistics);
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
