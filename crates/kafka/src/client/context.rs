//! Brings the reports of librdkafka into the process's log and metrics.

use rdkafka::{ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError};

use super::{
    authentication::AuthenticationFailure,
    brokers::Brokers,
    connected::LastConnected,
    metrics::{connection, is_connected},
};

/// Takes librdkafka's log, statistics and errors.
#[derive(Clone)]
pub struct ClientLog {
    authentication: AuthenticationFailure,
    connected: LastConnected,
}

impl ClientLog {
    /// Reports about a client of these brokers.
    pub fn new(brokers: &Brokers) -> Self {
        Self { authentication: brokers.authentication.clone(), connected: LastConnected::default() }
    }

    /// Returns when the client was last connected.
    pub(crate) fn connected(&self) -> &LastConnected {
        &self.connected
    }
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
        self.authentication.read_log(message);
    }

    fn stats(&self, statistics: Statistics) {
        connection("producer", &statistics);
        if is_connected(&statistics) {
            self.authentication.clear();
            self.connected.now();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.authentication.read_error(&error, reason);
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
        RDKafkaLogLevel::Debug => tracing::trace!(target: "librdkafka", facility, "{message}"),
    }
}

impl ConsumerContext for ClientLog {}
