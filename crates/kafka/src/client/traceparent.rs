//! The W3C trace context in a message's headers.

use rdkafka::{
    Message as _,
    message::{Headers as _, OwnedMessage},
};

/// The header's name.
pub(crate) const HEADER: &str = "traceparent";

/// A message's trace context, where it has one that can be continued.
pub(crate) fn of(message: &OwnedMessage) -> Option<&str> {
    let header = message.headers()?.iter().filter(|header| header.key.eq_ignore_ascii_case(HEADER)).last()?;
    valid(header.value?)
}

/// A header's value as text, where it is a trace context that can be continued: `version-trace-parent-flags`, in lower case
/// hexadecimals, neither id all zeros.
pub(crate) fn valid(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hexadecimal = |part: &str, length| part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let id = |part: &str, length| hexadecimal(part, length) && part.bytes().any(|b| b != b'0');
    // A later version may carry more after the flags; version 00 may not, and ff is none.
    let version_fits = hexadecimal(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    (version_fits && id(trace, 32) && id(parent, 16) && hexadecimal(flags, 2)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_taken_only_where_it_can_be_continued() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(valid(good.as_bytes()), Some(good));
        assert!(valid(b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some());
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert_eq!(valid(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(valid(b"\xff\xfe"), None);
    }
}
