//! What the clients of librdkafka are told.

use std::{fmt, time::Duration};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use crate::refusal::Refusal;

/// Where the brokers are, and who asks.
#[derive(Debug, Clone)]
pub struct Brokers {
    /// Addresses to start from, as `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// How this process is called in the brokers' logs and quotas.
    pub client_id: String,
    /// How they are spoken to.
    pub security: Security,
    pub(crate) refusal: Refusal,
}

impl Brokers {
    /// These, spoken to in plain text.
    pub fn new(bootstrap_servers: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            client_id: client_id.into(),
            security: Security::default(),
            refusal: Refusal::default(),
        }
    }

    /// These, spoken to in this way.
    #[must_use]
    pub fn secured(self, security: Security) -> Self {
        Self { security, ..self }
    }
}

/// How brokers are spoken to, as librdkafka's properties have it: `security.protocol`, `sasl.…`, `ssl.…`; plain text where there is none.
/// Its `Debug` shows no values.
#[derive(Clone, Default)]
pub struct Security(Vec<(String, String)>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Security {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(properties: I) -> Self {
        Self(properties.into_iter().map(|(property, value)| (property.into(), value.into())).collect())
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(property, _)| property)).finish()
    }
}

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

/// How a [`Publisher`](crate::Publisher) behaves.
#[derive(Debug, Clone)]
pub struct PublisherSettings {
    /// Where the brokers are.
    pub brokers: Brokers,
    /// For how long one send tries, while the broker is away, before it answers that it could not.
    pub message_timeout: Duration,
}

impl PublisherSettings {
    /// The settings with 5 seconds for a send.
    pub fn new(brokers: Brokers) -> Self {
        Self { brokers, message_timeout: Duration::from_secs(5) }
    }
}

impl Brokers {
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", &self.client_id)
            .set("socket.keepalive.enable", "true")
            // A broker that comes back is noticed within seconds.
            .set("reconnect.backoff.max.ms", "2000")
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set_log_level(RDKafkaLogLevel::Info);
        for (property, value) in &self.security.0 {
            config.set(property, value);
        }
        config
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

impl PublisherSettings {
    pub(crate) fn producer(&self) -> ClientConfig {
        self.brokers.producer(self.message_timeout)
    }
}

impl Brokers {
    /// To look at what is in topics, as nobody's group.
    pub(crate) fn looking(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", &self.client_id)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error");
        config
    }

    /// For what an operator sends.
    pub(crate) fn sending(&self) -> ClientConfig {
        let mut config = self.producer(Duration::from_secs(10));
        // As with dead letters: what came compressed may be too large when it is not.
        config.set("compression.type", "gzip");
        config
    }

    fn producer(&self, message_timeout: Duration) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", message_timeout.as_millis().to_string())
            .set("linger.ms", "1")
            // As Java's producers place keys, so that topics written by both can be joined.
            .set("partitioner", "murmur2_random")
            // How large a message may be is the topic's to say.
            .set("message.max.bytes", "100000000")
            // A topic that is missing is said to be missing within this time.
            .set("topic.metadata.propagation.max.ms", "3000")
            // Whether it is connected is a metric.
            .set("statistics.interval.ms", "1000");
        config
    }
}
