//! The settings of a service that uses Kafka.

use std::path::Path;

use serde::Deserialize;

use super::{BootstrapServers, Invalid, Secret, Validate, Whole};

/// The brokers, the protocol and the credentials; `kafka.toml` of this crate documents them.
#[derive(Debug, Clone, Deserialize)]
pub struct Kafka {
    /// The brokers.
    pub kafka_bootstrap_servers: BootstrapServers,
    /// How long a client may have no broker until it is replaced.
    pub kafka_replace_client_seconds: Whole<5, 3_600>,
    kafka_security_protocol: Protocol,
    kafka_sasl_mechanism: Mechanism,
    kafka_sasl_username: String,
    kafka_sasl_password: Secret,
    kafka_ssl_ca_location: String,
    kafka_ssl_certificate_location: String,
    kafka_ssl_key_location: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Protocol {
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Mechanism {
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "PLAIN")]
    Plain,
}

impl Kafka {
    /// Answers librdkafka's properties for the protocol and the credentials; none for plain text.
    #[must_use]
    pub fn security(&self) -> Vec<(&'static str, String)> {
        let protocol = match self.kafka_security_protocol {
            Protocol::Plaintext => return vec![],
            Protocol::Ssl => "ssl",
            Protocol::SaslPlaintext => "sasl_plaintext",
            Protocol::SaslSsl => "sasl_ssl",
        };
        let mechanism = match self.kafka_sasl_mechanism {
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::Plain => "PLAIN",
        };
        let mut properties = vec![("security.protocol", protocol.to_owned())];
        if self.has_user() {
            properties.push(("sasl.mechanism", mechanism.to_owned()));
            properties.push(("sasl.username", self.kafka_sasl_username.clone()));
            properties.push(("sasl.password", self.kafka_sasl_password.expose().to_owned()));
        }
        let files = self.files().into_iter().filter(|(_, _, path)| !path.is_empty());
        properties.extend(files.map(|(_, property, path)| (property, path.to_owned())));
        properties
    }

    fn has_user(&self) -> bool {
        matches!(self.kafka_security_protocol, Protocol::SaslPlaintext | Protocol::SaslSsl)
    }

    fn is_encrypted(&self) -> bool {
        matches!(self.kafka_security_protocol, Protocol::Ssl | Protocol::SaslSsl)
    }

    /// Answers each file with its key and librdkafka's property.
    fn files(&self) -> [(&'static str, &'static str, &str); 3] {
        [
            ("kafka_ssl_ca_location", "ssl.ca.location", &self.kafka_ssl_ca_location),
            ("kafka_ssl_certificate_location", "ssl.certificate.location", &self.kafka_ssl_certificate_location),
            ("kafka_ssl_key_location", "ssl.key.location", &self.kafka_ssl_key_location),
        ]
    }
}

impl Validate for Kafka {
    fn validate(&self) -> Result<(), Invalid> {
        let invalid = |key, allowed: &str| Err(Invalid { key, allowed: allowed.into() });
        // A user or a certificate that is not used would look safe without being so.
        for (key, is_empty) in
            [("kafka_sasl_username", self.kafka_sasl_username.is_empty()), ("kafka_sasl_password", self.kafka_sasl_password.is_empty())]
        {
            match (self.has_user(), is_empty) {
                (true, true) => return invalid(key, "set if kafka_security_protocol is sasl_plaintext or sasl_ssl"),
                (false, false) => return invalid(key, "empty, unless kafka_security_protocol is sasl_plaintext or sasl_ssl"),
                _ => {}
            }
        }
        for (key, _, path) in self.files().into_iter().filter(|(_, _, path)| !path.is_empty()) {
            if !self.is_encrypted() {
                return invalid(key, "empty, unless kafka_security_protocol is ssl or sasl_ssl");
            }
            if !Path::new(path).is_file() {
                return invalid(key, "the path of a file");
            }
        }
        match (self.kafka_ssl_certificate_location.is_empty(), self.kafka_ssl_key_location.is_empty()) {
            (true, false) => invalid("kafka_ssl_certificate_location", "set if kafka_ssl_key_location is set"),
            (false, true) => invalid("kafka_ssl_key_location", "set if kafka_ssl_certificate_location is set"),
            _ => Ok(()),
        }
    }
}
