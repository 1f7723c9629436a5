//! Text from outside, made safe to show; bytes, times and spans as text.

use std::{borrow::Cow, fmt::Write as _};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Makes a line's hidden characters visible, line breaks too, so that stored text cannot control the terminal or forge a line.
pub fn clean(line: &str) -> Cow<'_, str> {
    escaped(line, |cleaned, unit| match u8::try_from(unit) {
        Ok(byte @ (b'\n' | b'\r' | b'\t')) => write!(cleaned, "{}", byte.escape_ascii()),
        _ => write!(cleaned, "\\u{{{unit:x}}}"),
    })
}

/// Escapes each UTF-16 unit of hidden characters.
pub fn escaped(text: &str, escape: impl Fn(&mut String, u16) -> std::fmt::Result) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string never fails.
                let _ = escape(&mut visible, *unit);
            }
        } else {
            visible.push(c);
        }
    }
    Cow::Owned(visible)
}

/// Returns whether a terminal shows something else than the character: controls (C0, C1), directions, line breaks, and Unicode's default
/// ignorable characters. Variation selectors count as visible, because emoji have them.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
                       | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
                       | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Formats an error and its causes on one line, each once.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// Formats bytes as text if they are UTF-8, otherwise as hexadecimal digits after 0x.
pub fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => hex(bytes),
    }
}

/// Formats bytes as hexadecimal digits after 0x.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Formats a time as RFC 3339.
pub fn moment(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// Formats seconds in the largest unit that fits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a span of time that is shown")]
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        _ if seconds < 10.0 => format!("{:.1} s", seconds.max(0.0)),
        0..120 => format!("{whole} s"),
        120..7_200 => format!("{} min", whole / 60),
        7_200..172_800 => format!("{} h", whole / 3_600),
        _ => format!("{} days", whole / 86_400),
    }
}

/// Reads a time, such as `2026-11-30T22:00:00Z`, or a span that ends now, such as `15m`.
///
/// # Errors
/// What the text must be.
pub fn since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let wrong = || "must be a span such as 90s, 15m, 2h or 3d, or a time such as 2026-11-30T22:00:00Z".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number = text.strip_suffix(unit).and_then(|number| number.parse::<u32>().ok()).ok_or_else(wrong)?;
    OffsetDateTime::now_utc().checked_sub(time::Duration::seconds(i64::from(number) * seconds)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_makes_hidden_characters_visible() {
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}c\nd"), "a\\u{1b}[2Jb\\u{9b}c\\nd");
        assert_eq!(clean("\u{202e}gnp.\u{200b}\u{feff}\u{2066}\u{e0041}"), "\\u{202e}gnp.\\u{200b}\\u{feff}\\u{2066}\\u{db40}\\u{dc41}");
        assert_eq!(clean("Größe 価格 🛒"), "Größe 価格 🛒");
    }

    #[test]
    fn span_picks_a_unit() {
        for (seconds, text) in [(-1.0, "0.0 s"), (0.25, "0.2 s"), (59.9, "59 s"), (150.0, "2 min"), (7_300.0, "2 h"), (200_000.0, "2 days")]
        {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn since_is_a_time_or_a_span() {
        assert_eq!(since("2026-11-30T22:00:00Z").unwrap().unix_timestamp(), 1_796_076_000);
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7_200), ("3d", 259_200)] {
            let age = OffsetDateTime::now_utc() - since(text).unwrap();
            assert!((age.whole_seconds() - seconds).abs() <= 1, "{text}: {age}");
        }
        for wrong in ["", "h", "2", "-2h", "2 h", "2w", "4294967296d", "2026-11-30", "2€"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
        // Longer ago than a time can say.
        assert!(since("4294967295d").is_err());
    }
}
