//! Dead letters: messages that cannot be translated.

use super::{received::Received, source::Source};
use crate::client::{
    brokers::Brokers,
    error::{SendError, StartError, causes},
    headers::to_send,
    producer::{Outgoing, Producer},
};

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 1_000;

/// The end of the name of a topic of dead letters.
pub const SUFFIX: &str = ".dead-letters";
/// The header with the reason.
pub const REASON: &str = "dead-letter-reason";
/// The header with the topic that the message came from.
pub const TOPIC: &str = "dead-letter-topic";
/// The header with its partition.
pub const PARTITION: &str = "dead-letter-partition";
/// The header with its offset.
pub const OFFSET: &str = "dead-letter-offset";
/// The header of a stub: why the message is not kept. A stub has no value, and the place of the message as its key.
pub const STUB: &str = "dead-letter-stub";
/// The header of a stub with the size of the message's value, in bytes.
pub const BYTES: &str = "dead-letter-bytes";
/// The header of a stub with the SHA-256 of the message's value, in hexadecimal digits.
pub const SHA256: &str = "dead-letter-sha256";
/// The header that marks a dead letter as sent back: its `partition/offset`.
pub const REPLAYED: &str = "dead-letter-replayed";
/// The header that marks a dead letter as dismissed: its `partition/offset`.
pub const DISMISSED: &str = "dead-letter-dismissed";
/// The header beside it: why it was dismissed.
pub const DISMISSAL: &str = "dead-letter-dismissal";

/// Returns whether a header's name is ours. A message that has one loses it when it becomes a dead letter, because producers do not write
/// about dead letters.
pub fn is_reserved(name: &str) -> bool {
    name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("dead-letter-"))
}

/// Returns the name of the topic for a topic's dead letters.
pub fn topic_of(source: &str) -> String {
    format!("{source}{SUFFIX}")
}

/// Writes dead letters.
pub(crate) struct DeadLetters(Producer);

impl DeadLetters {
    pub(crate) fn new(config: rdkafka::ClientConfig, brokers: &Brokers) -> Result<Self, StartError> {
        Producer::new(config, brokers).map(Self)
    }

    /// Writes a message with its reason and its origin to the topic for dead letters, and returns when the broker has it. If the message is
    /// too large to be kept, or its topic refuses it for good, a stub is written instead. After a crash it may be written again; topic,
    /// partition and offset identify it.
    pub(crate) async fn write(&self, message: &Received, reason: &str) -> Result<(), SendError> {
        let mut why = "the message is larger than 1 MiB".to_owned();
        if message.is_kept() {
            let own = message.headers.read.iter().filter(|(name, _)| !is_reserved(name));
            let own = own.map(|(name, value)| (name.as_str(), value.as_deref()));
            let place = place(&message.source, message.offset, reason);
            let ours = place.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
            match self.send(&message.source, message.key.as_deref(), message.value.as_deref(), own.chain(ours)).await {
                Err(error) if error.is_permanent() => why = causes(&error),
                sent => return sent,
            }
        }
        self.write_stub(&message.source, message.offset, reason, &why, Some((message.value_bytes, message.sha256()))).await
    }

    /// Writes what is known about a message that cannot be kept.
    pub(crate) async fn write_stub(
        &self,
        source: &Source,
        offset: i64,
        reason: &str,
        why: &str,
        value: Option<(usize, String)>,
    ) -> Result<(), SendError> {
        let mut headers = place(source, offset, reason);
        headers.push((STUB, cut(why)));
        if let Some((bytes, sha256)) = value {
            headers.extend([(BYTES, bytes.to_string()), (SHA256, sha256)]);
        }
        tracing::warn!(%source, offset, reason, why, "stub instead of a dead letter");
        // The topic may be compacted, which takes keys only.
        let key = format!("{source}/{offset}");
        self.send(source, Some(key.as_bytes()), None, headers.iter().map(|(name, value)| (*name, Some(value.as_bytes())))).await
    }

    async fn send<'a>(
        &self,
        source: &Source,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<(), SendError> {
        self.0.send(Outgoing { topic: &topic_of(&source.topic), partition: None, key, value, headers: to_send(headers) }).await
    }
}

/// Returns the headers with the reason and the origin.
fn place(source: &Source, offset: i64, reason: &str) -> Vec<(&'static str, String)> {
    vec![(REASON, cut(reason)), (TOPIC, source.topic.to_string()), (PARTITION, source.partition.to_string()), (OFFSET, offset.to_string())]
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_REASON_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_cut_between_characters() {
        let headers = place(&Source::new("counts", 3), 41, &"ß".repeat(1_000));
        let expected = [
            ("dead-letter-reason", "ß".repeat(500)),
            ("dead-letter-topic", "counts".into()),
            ("dead-letter-partition", "3".into()),
            ("dead-letter-offset", "41".into()),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn headers_about_dead_letters_are_ours() {
        for name in [REASON, TOPIC, PARTITION, OFFSET, STUB, BYTES, SHA256, REPLAYED, DISMISSED, "Dead-Letter-Anything"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["", "dead-letter", "dead-lettero", "x-dead-letter-reason", "dead-lette\u{301}r"] {
            assert!(!is_reserved(name), "{name}");
        }
    }
}
