//! Dead letters: messages that cannot be translated.

use rdkafka::{
    Message as _,
    message::{Header, OwnedHeaders, OwnedMessage},
};

use crate::client::{
    brokers::Brokers,
    error::{SendError, StartError},
    producer::{Outgoing, Producer},
};

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 1_000;

/// What the name of a topic of dead letters ends with.
pub const SUFFIX: &str = ".dead-letters";
/// The header with the reason.
pub const REASON: &str = "dead-letter-reason";
/// The header with the topic that the message came from.
pub const TOPIC: &str = "dead-letter-topic";
/// The header with its partition.
pub const PARTITION: &str = "dead-letter-partition";
/// The header with its offset.
pub const OFFSET: &str = "dead-letter-offset";

/// Answers the name of the topic for a topic's dead letters.
pub fn topic_of(source: &str) -> String {
    format!("{source}{SUFFIX}")
}

/// Writes dead letters.
pub(crate) struct DeadLetters(Producer);

impl DeadLetters {
    pub(crate) fn new(config: rdkafka::ClientConfig, brokers: &Brokers) -> Result<Self, StartError> {
        Producer::new(config, brokers).map(Self)
    }

    /// Writes a message with its reason and its origin to the topic for dead letters, and answers when the broker has it. After a crash it
    /// may be written again; topic, partition and offset identify it.
    pub(crate) async fn write(&self, message: &OwnedMessage, reason: &str) -> Result<(), SendError> {
        let topic = topic_of(message.topic());
        let headers = headers(message, reason);
        self.0.send(Outgoing { topic: &topic, partition: None, key: message.key(), value: message.payload(), headers }).await
    }
}

/// Adds our headers after the message's own: a reader that asks for a header by name gets the last one.
fn headers(message: &OwnedMessage, reason: &str) -> OwnedHeaders {
    let mut reason = reason.to_owned();
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    let own = message.headers().map_or_else(OwnedHeaders::new, |headers| headers.clone());
    [
        (REASON, reason),
        (TOPIC, message.topic().to_owned()),
        (PARTITION, message.partition().to_string()),
        (OFFSET, message.offset().to_string()),
    ]
    .iter()
    .fold(own, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

#[cfg(test)]
mod tests {
    use rdkafka::{Timestamp, message::Headers as _};

    use super::*;

    #[test]
    fn dead_letter_keeps_headers_and_names_reason_and_origin() {
        let own =
            OwnedHeaders::new().insert(Header { key: "shop", value: Some("Lübeck") }).insert(Header { key: "empty", value: None::<&str> });
        let message = OwnedMessage::new(Some(b"{".to_vec()), None, "counts".into(), Timestamp::NotAvailable, 3, 41, Some(own));
        let headers = headers(&message, &"ß".repeat(1_000));
        let written: Vec<_> = headers.iter().map(|header| (header.key.to_owned(), header.value.map(String::from_utf8_lossy))).collect();
        let expected = [
            ("shop", Some("Lübeck".into())),
            ("empty", None),
            ("dead-letter-reason", Some("ß".repeat(500).into())),
            ("dead-letter-topic", Some("counts".into())),
            ("dead-letter-partition", Some("3".into())),
            ("dead-letter-offset", Some("41".into())),
        ];
        assert_eq!(written, expected.map(|(key, value): (_, Option<std::borrow::Cow<'_, str>>)| (key.to_owned(), value)));
    }
}
