//! A message as it was received, bounded in size.

use event_store::SourceMessage;
use rdkafka::Message;
use sha2::{Digest as _, Sha256};

use super::source::Source;
use crate::client::headers::{Headers, Unread};

/// The largest message that is kept as it is: its key, its value and its headers, in bytes. Of a larger one, only its size and hash are kept.
const MAX_KEPT_BYTES: usize = 1 << 20;
/// The approximate size of a message without its key, value and headers, in bytes.
const MESSAGE_OVERHEAD: usize = 200;

/// A message as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) source: Source,
    pub(crate) offset: i64,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
    /// The size of the value in bytes, also if it is not kept.
    pub(crate) value_bytes: usize,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Headers,
    /// The SHA-256 of the value, which is not kept because the message is too large.
    hash: Option<String>,
}

impl Received {
    /// Copies a message, unless it is too large. It never panics, whatever the message contains.
    pub(crate) fn of<M: Message>(message: &M) -> Self {
        let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
        let rest = MAX_KEPT_BYTES.saturating_sub(key.len() + value.len());
        let headers = if rest == 0 { Headers { unread: Some(Unread::TooLarge), ..Headers::default() } } else { Headers::of(message, rest) };
        let is_kept = headers.unread != Some(Unread::TooLarge);
        Self {
            source: Source::new(message.topic(), message.partition()),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            value_bytes: value.len(),
            key: message.key().filter(|_| is_kept).map(<[u8]>::to_vec),
            value: message.payload().filter(|_| is_kept).map(<[u8]>::to_vec),
            hash: (!is_kept).then(|| sha256(value)),
            headers: if is_kept { headers } else { Headers { unread: Some(Unread::TooLarge), ..Headers::default() } },
        }
    }

    /// Returns whether its key, value and headers are here.
    pub(crate) fn is_kept(&self) -> bool {
        self.hash.is_none()
    }

    /// Returns the SHA-256 of the value in hexadecimal digits.
    pub(crate) fn sha256(&self) -> String {
        self.hash.clone().unwrap_or_else(|| sha256(self.value.as_deref().unwrap_or_default()))
    }

    /// Returns how the message is recognised again.
    pub(crate) fn recognised(&self) -> SourceMessage {
        SourceMessage { offset: self.offset, timestamp: self.timestamp, sha256: self.sha256() }
    }

    /// Returns its size in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        MESSAGE_OVERHEAD + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len) + self.headers.bytes
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) fn for_test(offset: i64, bytes: usize) -> Received {
    use rdkafka::{Timestamp, message::OwnedMessage};
    let message = OwnedMessage::new(Some(vec![b' '; bytes]), None, "counts".into(), Timestamp::CreateTime(7), 0, offset, None);
    Received::of(&message)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};
    use rdkafka::{Timestamp, message::OwnedMessage};

    use super::*;
    use crate::client::headers::to_send;

    #[test]
    fn too_large_message_keeps_size_and_hash() {
        let value = vec![0; MAX_KEPT_BYTES + 1];
        let large =
            Received::of(&OwnedMessage::new(Some(value), Some(b"key".to_vec()), "counts".into(), Timestamp::CreateTime(7), 3, 41, None));
        assert!(!large.is_kept() && large.key.is_none() && large.value.is_none());
        assert_eq!((large.value_bytes, large.bytes()), (MAX_KEPT_BYTES + 1, MESSAGE_OVERHEAD));
        // `head -c 1048577 /dev/zero | sha256sum`
        assert_eq!(large.sha256(), "2cb74edba754a81d121c9db6833704a8e7d417e5b13d1a19f4a52f007d644264");
    }

    proptest! {
        #[test]
        fn any_message_is_received(
            key in option::of(vec(any::<u8>(), 0..64)),
            value in option::of(vec(any::<u8>(), 0..64)),
            names in vec("[^\0]{0,20}", 0..20),
            header in option::of(vec(any::<u8>(), 0..64)),
            (timestamp, offset) in any::<(i64, i64)>(),
        ) {
            let headers = to_send(names.iter().map(|name| (name.as_str(), header.as_deref())));
            let timestamp = Timestamp::CreateTime(timestamp);
            let message = OwnedMessage::new(value.clone(), key.clone(), "counts".into(), timestamp, 3, offset, Some(headers));
            let received = Received::of(&message);
            prop_assert_eq!((&received.key, &received.value, received.offset), (&key, &value, offset));
            let read: Vec<_> = received.headers.read.iter().map(|(name, _)| name.clone()).collect();
            prop_assert_eq!(read, names);
            let _ = crate::client::traceparent::of(&received.headers);
            let _ = crate::client::traceparent::valid(value.as_deref().unwrap_or_default());
            prop_assert_eq!(received.recognised(), Received::of(&message).recognised());
        }
    }

    #[test]
    fn headers_count_as_size() {
        let small = Some(b"{}".to_vec());
        let with = |bytes: usize| {
            let headers = to_send([("large", Some(&vec![0; bytes][..]))]);
            Received::of(&OwnedMessage::new(small.clone(), None, "counts".into(), Timestamp::NotAvailable, 0, 0, Some(headers)))
        };
        assert!(with(10_000).is_kept() && with(10_000).bytes() > 10_000);
        assert!(!with(MAX_KEPT_BYTES).is_kept());
        assert_eq!(with(MAX_KEPT_BYTES).recognised(), with(10).recognised());
    }
}
