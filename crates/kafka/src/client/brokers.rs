//! The brokers, and the configuration of clients.

use std::{fmt, time::Duration};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use super::authentication::AuthenticationFailure;

/// The brokers, and how a process connects to them.
#[derive(Debug, Clone)]
pub struct Brokers {
    /// Addresses to start from, as `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// The name of this process in the brokers' logs and quotas.
    pub client_id: String,
    /// The protocol and the credentials.
    pub security: Security,
    pub(crate) authentication: AuthenticationFailure,
}

impl Brokers {
    /// Connects in plain text.
    pub fn new(bootstrap_servers: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            client_id: client_id.into(),
            security: Security::default(),
            authentication: AuthenticationFailure::default(),
        }
    }

    /// Connects with this protocol and these credentials.
    #[must_use]
    pub fn secured(self, security: Security) -> Self {
        Self { security, ..self }
    }
}

/// The protocol and the credentials, as librdkafka's properties `security.protocol`, `sasl.*` and `ssl.*`. Without any: plain text.
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
            // A broker that returns is connected within seconds.
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
    /// The configuration of a consumer that inspects topics and joins no group.
    pub fn inspecting(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", &self.client_id)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error");
        config
    }

    /// The configuration of a producer that sends dead letters back.
    pub fn replaying(&self) -> ClientConfig {
        let mut config = self.producer(Duration::from_secs(10));
        // A message that arrived compressed may be too large for its topic without compression.
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
            // As Java's producers do, so that topics written by both can be joined by key.
            .set("partitioner", "murmur2_random")
            // The topic limits the size of a message.
            .set("message.max.bytes", "100000000")
            // A missing topic is reported within this time.
            .set("topic.metadata.propagation.max.ms", "3000")
            // The statistics say whether a broker is connected.
            .set("statistics.interval.ms", "1000");
        config
    }
}
