//! Where messages go that can never be translated.

use rdkafka::{
    Message as _,
    error::KafkaError,
    message::{Header, OwnedHeaders, OwnedMessage},
};

use crate::client::{
    brokers::Brokers,
    error::SendError,
    producer::{Outgoing, Producer},
};

/// Longest reason written, in bytes.
const MAX_REASON_BYTES: usize = 1_000;

pub(crate) const SUFFIX: &str = ".dead-letters";
/// The headers that say why a message died, and where it stood.
pub(crate) const REASON: &str = "dead-letter-reason";
pub(crate) const TOPIC: &str = "dead-letter-topic";
pub(crate) const PARTITION: &str = "dead-letter-partition";
pub(crate) const OFFSET: &str = "dead-letter-offset";

/// The topic that takes a topic's dead letters.
pub(crate) fn topic_of(source: &str) -> String {
    format!("{source}{SUFFIX}")
}

/// Writes dead letters.
pub(crate) struct DeadLetters(Producer);

impl DeadLetters {
    pub(crate) fn new(config: rdkafka::ClientConfig, brokers: &Brokers) -> Result<Self, KafkaError> {
        Producer::new(config, brokers).map(Self)
    }

    /// Writes a message as it came, with the reason and where it stood, to the source's topic of dead letters, and answers once the broker
    /// has it. A crash afterwards may have it written again: topic, partition and offset tell.
    pub(crate) async fn write(&self, message: &OwnedMessage, reason: &str) -> Result<(), SendError> {
        let topic = topic_of(message.topic());
        let headers = headers(message, reason);
        self.0.send(Outgoing { topic: &topic, partition: None, key: message.key(), value: message.payload(), headers }).await
    }
}

/// The message's own headers, and after them ours: who asks a header by its name gets the last one.
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
    fn a_dead_letter_keeps_the_messages_headers_and_says_why_and_where_from() {
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
