//! How a translator behaves, and what its clients are told.

use std::time::Duration;

use rdkafka::ClientConfig;

use crate::client::brokers::Brokers;

/// How a [`Translator`](crate::Translator) behaves.
#[derive(Debug, Clone)]
pub struct TranslatorSettings {
    /// Where the brokers are.
    pub brokers: Brokers,
    /// The consumer group: translators of one group share the partitions, and what was translated is remembered under this name.
    pub group: String,
    /// For how long a translator may be silent before the others take its partitions over. The brokers allow 6 seconds to 30 minutes
    /// unless told otherwise.
    pub session_timeout: Duration,
    /// The longest value that is read, in bytes; a longer one becomes a dead letter.
    pub max_value_bytes: usize,
}

impl TranslatorSettings {
    /// The settings with a session of 10 seconds, and values of at most 64 KiB.
    pub fn new(brokers: Brokers, group: impl Into<String>) -> Self {
        Self { brokers, group: group.into(), session_timeout: Duration::from_secs(10), max_value_bytes: 64 * 1024 }
    }
}

impl TranslatorSettings {
    pub(crate) fn consumer(&self) -> ClientConfig {
        let mut config = self.brokers.client();
        config
            .set("group.id", &self.group)
            // Eager: a rebalance takes every partition away and hands out anew, so there is one way in which a partition comes and goes.
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", self.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (self.session_timeout / 4).as_millis().to_string())
            // Where to read on stands in the log. What is committed to Kafka is for lag tools, and only what is in the log already.
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            // Never a jump: an offset that the partition does not have is a fault.
            .set("auto.offset.reset", "error")
            // A broker answers as soon as it has a message; this only bounds how long a new partition waits for an idle fetch to end.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.error.backoff.ms", "200")
            // What librdkafka may hold back of a partition, in KiB, beside what the translator holds.
            .set("queued.max.messages.kbytes", "4096")
            .set("statistics.interval.ms", "1000");
        config
    }

    pub(crate) fn dead_letters(&self) -> ClientConfig {
        let mut config = self.brokers.producer(Duration::from_secs(5));
        // Bytes that were compressed when they came may be too large for the topic when they are not.
        config.set("compression.type", "gzip");
        config
    }
}
