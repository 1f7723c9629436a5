//! The W3C trace context in a message's headers.

use super::headers::Headers;

/// The header's name.
pub(crate) const HEADER: &str = "traceparent";

/// Returns the trace context in headers, if there is a valid one.
pub(crate) fn of(headers: &Headers) -> Option<&str> {
    let (_, value) = headers.read.iter().rfind(|(name, _)| name.eq_ignore_ascii_case(HEADER))?;
    valid(value.as_deref()?)
}

/// Returns a header's value as text if it is a valid trace context: `version-trace-parent-flags` in lower-case hexadecimal digits, with
/// no id of zeros only.
pub(crate) fn valid(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hexadecimal = |part: &str, length| part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let id = |part: &str, length| hexadecimal(part, length) && part.bytes().any(|b| b != b'0');
    // Versions after 00 may have more parts. The version ff is invalid.
    let version_fits = hexadecimal(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    (version_fits && id(trace, 32) && id(parent, 16) && hexadecimal(flags, 2)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_trace_context_is_ignored() {
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
