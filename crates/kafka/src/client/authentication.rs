//! Brokers that do not let this client in.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

/// Why the brokers did not let a client in the last time, for as long as they do not; shared by the clients of a process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    /// librdkafka has logged this. Who speaks plain text to a listener for TLS, or the other way round, is cut off without a word, and only
    /// here it can be told.
    pub(crate) fn logged(&self, message: &str) {
        if message.contains("Disconnected") && message.contains("in state APIVERSION_QUERY") {
            self.keep("connections are closed at once", "check the setting kafka_security_protocol");
        }
    }

    /// A client was told of an error.
    pub(crate) fn heard(&self, error: &KafkaError, reason: &str) {
        let mend = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication) => {
                "check the settings kafka_sasl_username, kafka_sasl_password and kafka_sasl_mechanism"
            }
            Some(RDKafkaErrorCode::SSL) => {
                "check that the setting kafka_ssl_ca_location names the certificate that the brokers' are signed by, and that they are \
                 called by the names that are in theirs"
            }
            _ => return tracing::debug!(target: "librdkafka", %error, reason, "error"),
        };
        self.keep(without_place(reason), mend);
    }

    fn keep(&self, reason: &str, mend: &str) {
        let why = format!("{reason}; {mend}");
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&why) {
            tracing::error!(target: "librdkafka", reason, "the brokers do not let this client in: {mend}");
            *last = Some(why);
        }
    }

    /// A broker is connected.
    pub(crate) fn let_in(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// In brackets, behind the words for what is waited for; nothing where there is none.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

/// Without librdkafka's name for the connection and the time it took, which differ each time.
fn without_place(reason: &str) -> &str {
    let reason = reason.split_once("]: ").map_or(reason, |(_, reason)| reason);
    let reason = reason.split_once("/bootstrap: ").map_or(reason, |(_, reason)| reason);
    reason.rsplit_once(" (after ").map_or(reason, |(reason, _)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_check_is_said_until_the_client_is_let_in() {
        let refusal = Refusal::default();
        let heard = |code, reason: &str| {
            refusal.heard(&KafkaError::Global(code), reason);
            refusal.to_string()
        };
        let away = "127.0.0.1:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused (after 0ms in state CONNECT)";
        assert_eq!(heard(RDKafkaErrorCode::BrokerTransportFailure, away), "");
        let user = "sasl_ssl://localhost:9093/bootstrap: SASL authentication error: invalid credentials (after 8ms in state AUTH_REQ)";
        let said = heard(RDKafkaErrorCode::Authentication, user);
        assert!(said.starts_with(" (SASL authentication error: invalid credentials; check the settings kafka_sasl_username"), "{said}");
        refusal.logged("127.0.0.1:9093/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 9ms in state APIVERSION_QUERY)");
        assert!(refusal.to_string().contains("check the setting kafka_security_protocol"));
        assert!(heard(RDKafkaErrorCode::SSL, "SSL handshake failed").contains("kafka_ssl_ca_location"));
        refusal.let_in();
        assert_eq!(refusal.to_string(), "");
    }
}
