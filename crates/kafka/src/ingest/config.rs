//! The settings of a translator, and the configuration of its clients.

use std::time::Duration;

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use crate::client::brokers::Brokers;

/// The settings of a [`Translator`](crate::Translator).
#[derive(Debug, Clone)]
pub struct TranslatorSettings {
    /// The brokers.
    pub brokers: Brokers,
    /// The consumer group. Translators of one group share the partitions, and the log stores their offsets under this name.
    pub group: String,
    /// The time after which Kafka gives the partitions of a silent translator to the others. Brokers allow 6 s to 30 min by default.
    pub session_timeout: Duration,
    /// The largest value in bytes. A larger one becomes a dead letter.
    pub max_value_bytes: usize,
}

impl TranslatorSettings {
    /// Returns settings with a session timeout of 10 s and values of at most 64 KiB.
    pub fn new(brokers: Brokers, group: impl Into<String>) -> Self {
        Self { brokers, group: group.into(), session_timeout: Duration::from_secs(10), max_value_bytes: 64 * 1024 }
    }
}

impl TranslatorSettings {
    pub(crate) fn consumer(&self) -> ClientConfig {
        let mut config = self.brokers.consumer();
        config
            .set("group.id", &self.group)
            // Eager: a rebalance revokes every partition and assigns them again, so a partition comes and goes in one way only.
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", self.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (self.session_timeout / 4).as_millis().to_string())
            // librdkafka waits this long for the answer to a JoinGroup, whatever the socket's timeout is. If that connection falls silent, the
            // member does nothing until then. The default is five minutes.
            .set("max.poll.interval.ms", (self.session_timeout * 2).as_millis().to_string())
            // The log stores the offsets. Those committed to Kafka are for lag tools only.
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            // An offset that the partition does not have is an error and never a jump.
            .set("auto.offset.reset", "error")
            // A broker answers as soon as it has a message. This bounds how long a new partition waits for an idle fetch.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.error.backoff.ms", "200")
            .set("statistics.interval.ms", "1000")
            // Only librdkafka's debug log says that a topic was created again.
            .set("debug", "metadata")
            .set_log_level(RDKafkaLogLevel::Debug);
        config
    }

    pub(crate) fn dead_letters(&self) -> ClientConfig {
        let mut config = self.brokers.producer(Duration::from_secs(5));
        // A message that arrived compressed may be too large for its topic without compression.
        config
            .set("compression.type", "gzip")
            // The topic's limit is on batches. A message that fits must not be refused because of those beside it.
            .set("batch.num.messages", "1");
        config
    }
}
