//! The headers of other people's messages.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::{
    Message,
    message::{Header, Headers as _, OwnedHeaders},
};
use tracing::subscriber::{NoSubscriber, with_default};

/// Memory of a header besides its name and its value, in bytes.
const HEADER_OVERHEAD: usize = 100;

/// Why the headers of a message were not read to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The name of a header is not UTF-8. That header and those after it are missing.
    NameIsNotUtf8,
    /// The headers are larger than the limit.
    TooLarge,
}

/// The headers of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Names and values in their order.
    pub read: Vec<(String, Option<Vec<u8>>)>,
    /// Their size in memory, in bytes.
    pub bytes: usize,
    /// Why some are missing. `None`: all were read.
    pub unread: Option<Unread>,
}

impl Headers {
    /// Reads the headers of a message, up to a size in bytes. Never panics.
    ///
    /// rdkafka's accessors of a header panic if its name is not UTF-8. No other accessor is safe, so the panic is caught here, without the
    /// line that a panic leaves in the log.
    pub fn of<M: Message>(message: &M, max_bytes: usize) -> Self {
        let Some(headers) = message.headers() else { return Self::default() };
        let mut found = Self::default();
        for index in 0..headers.count() {
            let header = with_default(NoSubscriber::default(), || catch_unwind(AssertUnwindSafe(|| headers.try_get(index))));
            let Ok(header) = header else {
                found.unread = Some(Unread::NameIsNotUtf8);
                break;
            };
            let Some(Header { key, value }) = header else { break };
            found.bytes += HEADER_OVERHEAD + key.len() + value.map_or(0, <[u8]>::len);
            if found.bytes > max_bytes {
                found.unread = Some(Unread::TooLarge);
                break;
            }
            found.read.push((key.to_owned(), value.map(<[u8]>::to_vec)));
        }
        found
    }

    /// Returns the value of the last header of a name.
    pub fn last(&self, name: &str) -> Option<&[u8]> {
        self.read.iter().rfind(|(found, _)| found == name)?.1.as_deref()
    }

    /// Returns the value of the last header of a name as text.
    pub fn text(&self, name: &str) -> Option<String> {
        Some(String::from_utf8_lossy(self.last(name)?).into_owned())
    }
}

/// Writes headers for a message to send.
pub fn to_send<'a>(headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> OwnedHeaders {
    headers.into_iter().fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value }))
}

#[cfg(test)]
mod tests {
    use rdkafka::{Timestamp, message::OwnedMessage};

    use super::*;

    fn message(headers: Option<OwnedHeaders>) -> OwnedMessage {
        OwnedMessage::new(None, None, "counts".into(), Timestamp::NotAvailable, 0, 0, headers)
    }

    #[test]
    fn headers_are_read_up_to_the_limit() {
        let headers = to_send([("a", Some(&b"1"[..])), ("b", None), ("a", Some(b"\xff"))]);
        let read = Headers::of(&message(Some(headers)), 1_000);
        assert_eq!(read.read.len(), 3);
        assert_eq!((read.last("a"), read.last("b"), read.unread), (Some(&b"\xff"[..]), None, None));

        let headers = to_send([("small", Some(&b"1"[..])), ("large", Some(&[b' '; 2_000]))]);
        let read = Headers::of(&message(Some(headers)), 1_000);
        assert_eq!((read.read.len(), read.unread), (1, Some(Unread::TooLarge)));
        assert_eq!(Headers::of(&message(None), 1_000), Headers::default());
    }
}
