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
    /// How long a client may have no broker until it is replaced by a new one. librdkafka 2.12 may never connect again: a metadata answer
    /// without brokers makes it forget all of them.
    pub replace_after: Duration,
    pub(crate) authentication: AuthenticationFailure,
}

impl Brokers {
    /// Connects in plain text.
    pub fn new(bootstrap_servers: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            client_id: client_id.into(),
            security: Security::default(),
            replace_after: Duration::from_secs(30),
            authentication: AuthenticationFailure::default(),
        }
    }

    /// Connects with this protocol and these credentials.
    #[must_use]
    pub fn secured(self, security: Security) -> Self {
        Self { security, ..self }
    }

    /// Replaces a client that has had no broker for this long.
    #[must_use]
    pub fn replaced_after(self, replace_after: Duration) -> Self {
        Self { replace_after, ..self }
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
            // A connection whose other end is gone is noticed when a request has no answer for this long.
            .set("socket.timeout.ms", "10000")
            .set("socket.connection.setup.timeout.ms", "10000")
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

/// The most bytes that one fetch answers, besides the first batch, which is always whole. A batch of zstd can be 32,000 times as large as it
/// was sent, so this bounds what one answer can become.
const FETCH_BYTES: &str = "2048";
/// The largest batch that is read, in bytes: in the answer of a broker, and decompressed by zstd.
const BATCH_BYTES: &str = "33554432";

impl Brokers {
    /// The configuration of every consumer. It bounds the memory that other people's messages take.
    pub(crate) fn consumer(&self) -> ClientConfig {
        let mut config = self.client();
        config
            // Not larger than a fetch, as librdkafka asks.
            .set("message.max.bytes", FETCH_BYTES)
            .set("fetch.max.bytes", FETCH_BYTES)
            .set("fetch.message.max.bytes", FETCH_BYTES)
            .set("receive.message.max.bytes", BATCH_BYTES)
            // A consumer fetches no further while it holds as many messages, or as many KiB. A single fetch may bring more.
            .set("queued.min.messages", "1000")
            .set("queued.max.messages.kbytes", "1024")
            // Then it looks again after this time.
            .set("fetch.queue.backoff.ms", "10");
        config
    }

    /// The configuration of a consumer that inspects topics and joins no group.
    pub fn inspecting(&self) -> ClientConfig {
        let mut config = self.consumer();
        config
            .set("group.id", &self.client_id)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error");
        config
    }

    /// The configuration of a consumer that inspects topics and reads many messages.
    pub fn reading(&self) -> ClientConfig {
        let mut config = self.inspecting();
        for (property, value) in
            [("fetch.max.bytes", "4194304"), ("fetch.message.max.bytes", "1048576"), ("queued.max.messages.kbytes", "16384")]
        {
            config.set(property, value);
        }
        config.set("queued.min.messages", "20000");
        config
    }

    /// The configuration of a producer that sends dead letters back.
    pub fn replaying(&self) -> ClientConfig {
        let mut config = self.producer(Duration::from_secs(10));
        // A message that arrived compressed may be too large for its topic without compression.
        config.set("compression.type", "gzip").set("batch.num.messages", "1");
        config
    }

    pub(crate) fn producer(&self, message_timeout: Duration) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", message_timeout.as_millis().to_string())
            // Messages that wait for each other are sent together anyway: a pause would only delay a message that is alone.
            .set("linger.ms", "0")
            // As Java's producers do, so that topics written by both can be joined by key.
            .set("partitioner", "murmur2_random")
            // The topic limits the size of a message.
            .set("message.max.bytes", "100000000")
            // As Java's producers do. A topic refuses a whole batch if the batch is larger than its limit.
            .set("batch.size", "16384")
            // A missing topic is reported within this time.
            .set("topic.metadata.propagation.max.ms", "3000")
            // The statistics say whether a broker is connected.
            .set("statistics.interval.ms", "1000");
        config
    }
}
