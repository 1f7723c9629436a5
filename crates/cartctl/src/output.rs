//! Prints answers to standard output, as tables or JSON, and everything else to standard error.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::error::Error;

pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a JSON document on one line.
    pub(crate) fn document(&self, document: &impl Serialize) -> Result<(), Error> {
        let json = serde_json::to_string(document).map_err(io::Error::other)?;
        self.raw(format!("{}\n", escaped(&json, |line, unit| write!(line, "\\u{unit:04x}"))).as_bytes())
    }

    /// Prints one line. A line break in it is made visible, like every hidden character.
    pub(crate) fn line(&self, line: &str) -> Result<(), Error> {
        self.lines([line])
    }

    /// Prints lines, as [`line`](Self::line) does.
    pub(crate) fn lines(&self, lines: impl IntoIterator<Item: AsRef<str>>) -> Result<(), Error> {
        let text = lines.into_iter().fold(String::new(), |text, line| text + &clean(line.as_ref()) + "\n");
        self.raw(text.as_bytes())
    }

    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// Prints a list as a table, or as one JSON document per line. Notes `empty` if a table would have no rows.
    pub(crate) fn list<T: Serialize>(&self, of: &[T], empty: &str, heads: &[&str], row: impl Fn(&T) -> Vec<String>) -> Result<(), Error> {
        if self.json {
            return of.iter().try_for_each(|one| self.document(one));
        }
        if of.is_empty() {
            self.note(empty);
            return Ok(());
        }
        self.lines(table(heads, of.iter().map(row)))
    }

    /// Prints a note to standard error.
    pub(crate) fn note(&self, text: &str) {
        // Closed, it has no reader.
        let _ = writeln!(io::stderr(), "{}", clean(text));
    }

    /// Prints an error to standard error.
    pub(crate) fn complain(&self, text: &str) {
        self.note(&format!("cartctl: {text}"));
    }

    /// Asks the operator to confirm.
    pub(crate) fn ask(&self, what: &str) -> Result<(), Error> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Error::NotConfirmed(format!(
                "{what} Nothing was done, because there is no terminal to confirm at. Pass --yes to confirm"
            )));
        }
        write!(io::stderr(), "{} Continue? [y/N] ", clean(what))?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Error::NotConfirmed("Nothing was done".to_owned())),
        }
    }
}

/// Formats rows as the lines of a table, with numbers aligned to the right.
pub(crate) fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|text| {
            let number = text.starts_with(|first: char| first.is_ascii_digit()) && text.len() < 20;
            let alignment = if number && text.parse::<f64>().is_ok() { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(clean(text)).set_alignment(alignment)
        }));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Makes a line's hidden characters visible, line breaks too, so that stored text cannot control the terminal or forge a line.
pub(crate) fn clean(line: &str) -> Cow<'_, str> {
    escaped(line, |cleaned, unit| match u8::try_from(unit) {
        Ok(byte @ (b'\n' | b'\r' | b'\t')) => write!(cleaned, "{}", byte.escape_ascii()),
        _ => write!(cleaned, "\\u{{{unit:x}}}"),
    })
}

/// Escapes each UTF-16 unit of hidden characters.
fn escaped(text: &str, escape: impl Fn(&mut String, u16) -> std::fmt::Result) -> Cow<'_, str> {
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
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
                       | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
                       | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Formats bytes as text if they are UTF-8, otherwise as hexadecimal digits after 0x.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => hex(bytes),
    }
}

/// Formats bytes as hexadecimal digits after 0x.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Formats a time as RFC 3339.
pub(crate) fn moment(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// Formats seconds in the largest unit that fits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a span of time that is shown")]
pub(crate) fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        _ if seconds < 10.0 => format!("{:.1} s", seconds.max(0.0)),
        0..120 => format!("{whole} s"),
        120..7_200 => format!("{} min", whole / 60),
        7_200..172_800 => format!("{} h", whole / 3_600),
        _ => format!("{} days", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_makes_hidden_characters_visible() {
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}c\nd"), "a\\u{1b}[2Jb\\u{9b}c\\nd");
        assert_eq!(clean("\u{202e}gnp.\u{200b}\u{feff}\u{2066}\u{e0041}"), "\\u{202e}gnp.\\u{200b}\\u{feff}\\u{2066}\\u{db40}\\u{dc41}");
        assert_eq!(clean("Größe 価格 🛒"), "Größe 価格 🛒");
        let forged = table(&["key", "status"], [vec!["a\nb".to_owned(), "\u{1b}]0;x".to_owned()]]);
        assert!(forged.len() == 2 && !forged[1].contains(is_hidden), "{forged:?}");
    }

    #[test]
    fn document_escapes_hidden_characters_and_stays_the_same() {
        let value = serde_json::json!({ "key": "a\u{9b}2J\u{202e}\u{200b}\u{e0041}\u{7f}" });
        let json = value.to_string();
        let line = escaped(&json, |line, unit| write!(line, "\\u{unit:04x}"));
        assert!(!line.contains(is_hidden), "{line}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
    }

    #[test]
    fn span_picks_a_unit() {
        for (seconds, text) in [(-1.0, "0.0 s"), (0.25, "0.2 s"), (59.9, "59 s"), (150.0, "2 min"), (7_300.0, "2 h"), (200_000.0, "2 days")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
