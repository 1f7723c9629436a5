//! What the clients of librdkafka are told.

use std::{fmt, time::Duration};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use super::authentication::Refusal;

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

impl Brokers {
    pub(crate) fn client(&self) -> ClientConfig {
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

    pub(crate) fn producer(&self, message_timeout: Duration) -> ClientConfig {
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
