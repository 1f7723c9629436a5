//! Brokers that do not admit this client.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

/// How many connections in a row are closed at once until that counts as a failed authentication. A broker that stops closes a few.
const CLOSED_AT_ONCE: u32 = 3;

/// The reason of the last failed authentication, until a broker admits a client. The clients of a process share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuthenticationFailure(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    why: Option<String>,
    /// Whether a broker ever admitted a client: then the protocol is right.
    was_admitted: bool,
    /// Connections in a row that were closed at once.
    closed: u32,
}

impl AuthenticationFailure {
    /// Reads a line of librdkafka's log. A listener for TLS closes a plain-text connection without a reply, and the other way round: only
    /// the log tells.
    pub(crate) fn read_log(&self, message: &str) {
        let mut state = self.state();
        if message.contains("Disconnected") && message.contains("in state APIVERSION_QUERY") {
            state.closed += 1;
            if !state.was_admitted && state.closed >= CLOSED_AT_ONCE {
                state.keep("connections are closed at once", "check the setting kafka_security_protocol");
            }
        } else if message.contains("in state CONNECT)") {
            // Nobody listens: the broker is down and not of another protocol.
            state.closed = 0;
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
        self.state().keep(without_place(reason), advice);
    }

    /// Forgets the failure: a broker is connected.
    pub(crate) fn clear(&self) {
        *self.state() = State { was_admitted: true, ..State::default() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, reason: &str, advice: &str) {
        let why = format!("{reason}; {advice}");
        if self.why.as_ref() != Some(&why) {
            tracing::error!(target: "librdkafka", reason, advice, "broker refused the client");
            self.why = Some(why);
        }
    }
}

/// The reason in parentheses, after a space; nothing without a failure.
impl fmt::Display for AuthenticationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state().why {
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
        assert!(heard(RDKafkaErrorCode::SSL, "SSL handshake failed").contains("kafka_ssl_ca_location"));
        failure.clear();
        assert_eq!(failure.to_string(), "");
    }

    #[test]
    fn only_a_wrong_protocol_is_called_one() {
        let closed = "127.0.0.1:9093/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 9ms in state APIVERSION_QUERY)";
        let refused = "127.0.0.1:9093/bootstrap: Connect to ipv4#127.0.0.1:9093 failed: Connection refused (after 0ms in state CONNECT)";
        let failure = AuthenticationFailure::default();
        let read = |lines: &[&str]| lines.iter().for_each(|line| failure.read_log(line));
        // A broker that starts or stops closes some connections.
        read(&[closed, closed, refused, closed, closed]);
        assert_eq!(failure.to_string(), "");
        read(&[closed]);
        assert!(failure.to_string().contains("check the setting kafka_security_protocol"), "{failure}");
        // A broker that has admitted the process speaks its protocol.
        failure.clear();
        read(&[closed; 9]);
        assert_eq!(failure.to_string(), "");
    }
}
