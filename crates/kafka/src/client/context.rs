//! What librdkafka reports, in the process's log and metrics.

use rdkafka::{ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError};

use super::{
    authentication::AuthenticationFailure,
    brokers::Brokers,
    metrics::{connection, is_connected},
};

/// Takes librdkafka's log, statistics and errors.
#[derive(Clone)]
pub struct ClientLog(AuthenticationFailure);

impl ClientLog {
    /// Reports about clients of these brokers.
    pub fn new(brokers: &Brokers) -> Self {
        Self(brokers.authentication.clone())
    }
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
        self.0.read_log(message);
    }

    fn stats(&self, statistics: Statistics) {
        connection("producer", &statistics);
        if is_connected(&statistics) {
            self.0.clear();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.read_error(&error, reason);
    }
}

pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        // Repeated while a starting broker has no producer id to give.
        _ if facility == "GETPID" => tracing::info!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, "{message}");
        }
        // For each connection, whenever a broker comes or goes.
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info if facility == "FAIL" => {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

impl ConsumerContext for ClientLog {}
