//! Brokers that do not admit this client.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

/// The reason of the last failed authentication, until a broker admits a client. The clients of a process share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuthenticationFailure(Arc<Mutex<Option<String>>>);

impl AuthenticationFailure {
    /// Reads a line of librdkafka's log. A listener for TLS closes a plain-text connection without a reply, and the other way round: only
    /// the log tells.
    pub(crate) fn read_log(&self, message: &str) {
        if message.contains("Disconnected") && message.contains("in state APIVERSION_QUERY") {
            self.keep("connections are closed at once", "check the setting kafka_security_protocol");
        }
    }

    /// Reads an error of a client.
    pub(crate) fn read_error(&self, error: &KafkaError, reason: &str) {
        let advice = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication) => {
                "check the settings kafka_sasl_username, kafka_sasl_password and kafka_sasl_mechanism"
            }
            Some(RDKafkaErrorCode::SSL) => {
                "check that the setting kafka_ssl_ca_location names the certificate authority of the brokers, and that the brokers' host \
                 names are those in their certificates"
            }
            _ => return tracing::debug!(target: "librdkafka", %error, reason, "error"),
        };
        self.keep(without_place(reason), advice);
    }

    fn keep(&self, reason: &str, advice: &str) {
        let why = format!("{reason}; {advice}");
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&why) {
            tracing::error!(target: "librdkafka", reason, advice, "broker refused the client");
            *last = Some(why);
        }
    }

    /// Forgets the failure: a broker is connected.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The reason in parentheses, after a space; nothing without a failure.
impl fmt::Display for AuthenticationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

/// Removes librdkafka's name for the connection and the elapsed time, which differ each time.
fn without_place(reason: &str) -> &str {
    let reason = reason.split_once("]: ").map_or(reason, |(_, reason)| reason);
    let reason = reason.split_once("/bootstrap: ").map_or(reason, |(_, reason)| reason);
    reason.rsplit_once(" (after ").map_or(reason, |(reason, _)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_says_what_to_check_until_a_broker_admits() {
        let failure = AuthenticationFailure::default();
        let heard = |code, reason: &str| {
            failure.read_error(&KafkaError::Global(code), reason);
            failure.to_string()
        };
        let away = "127.0.0.1:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused (after 0ms in state CONNECT)";
        assert_eq!(heard(RDKafkaErrorCode::BrokerTransportFailure, away), "");
        let user = "sasl_ssl://localhost:9093/bootstrap: SASL authentication error: invalid credentials (after 8ms in state AUTH_REQ)";
        let said = heard(RDKafkaErrorCode::Authentication, user);
        assert!(said.starts_with(" (SASL authentication error: invalid credentials; check the settings kafka_sasl_username"), "{said}");
        failure.read_log("127.0.0.1:9093/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 9ms in state APIVERSION_QUERY)");
        assert!(failure.to_string().contains("check the setting kafka_security_protocol"));
        assert!(heard(RDKafkaErrorCode::SSL, "SSL handshake failed").contains("kafka_ssl_ca_location"));
        failure.clear();
        assert_eq!(failure.to_string(), "");
    }
}
