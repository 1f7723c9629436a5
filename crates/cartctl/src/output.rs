//! What is said: answers to standard output, as tables or JSON, and everything else to standard error.

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

    /// One JSON document, on a line.
    pub(crate) fn document(&self, document: &impl Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_vec(document).map_err(io::Error::other)?;
        line.push(b'\n');
        self.raw(&line)
    }

    /// Lines for people.
    pub(crate) fn text(&self, text: &str) -> Result<(), Error> {
        self.raw(format!("{text}\n").as_bytes())
    }

    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// A list: a document on each line, or a table; where it is empty, a note says so.
    pub(crate) fn list<T: Serialize>(&self, of: &[T], empty: &str, heads: &[&str], row: impl Fn(&T) -> Vec<String>) -> Result<(), Error> {
        if self.json {
            return of.iter().try_for_each(|one| self.document(one));
        }
        if of.is_empty() {
            self.note(empty);
            return Ok(());
        }
        self.text(&table(heads, of.iter().map(row)))
    }

    /// What is no answer, but good to know.
    #[allow(clippy::print_stderr, reason = "this is where it is said")]
    pub(crate) fn note(&self, text: &str) {
        eprintln!("{}", clean(text));
    }

    pub(crate) fn complain(&self, text: &str) {
        self.note(&format!("cartctl: {text}"));
    }

    /// Asks whether to go on.
    #[allow(clippy::print_stderr, reason = "a question is no answer")]
    pub(crate) fn ask(&self, what: &str) -> Result<(), Error> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Error::NotConfirmed(format!(
                "{what} Nothing was done: there is no terminal to ask at; --yes does it without asking"
            )));
        }
        eprint!("{} Go on? [y/N] ", clean(what));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Error::NotConfirmed("nothing was done".to_owned())),
        }
    }
}

/// Columns, numbers to the right.
pub(crate) fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|text| {
            let number = text.starts_with(|first: char| first.is_ascii_digit()) && text.len() < 20;
            let alignment = if number && text.parse::<f64>().is_ok() { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(clean(text)).set_alignment(alignment)
        }));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Text of others, without what a terminal would take for a command.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| c.is_control() && c != '\n') {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            let _ = write!(cleaned, "{}", c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    Cow::Owned(cleaned)
}

/// Bytes as text, where they are; else in hexadecimal digits.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => hex(bytes),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A time as RFC 3339 has it.
pub(crate) fn moment(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// Seconds, as people say them.
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
    fn what_others_wrote_does_not_command_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}c\nd"), "a\\u{1b}[2Jb\\u{9b}c\nd");
        assert!(!table(&["key"], [vec!["\u{1b}]0;x".to_owned()]]).contains('\u{1b}'));
    }

    #[test]
    fn a_span_is_short() {
        for (seconds, text) in [(-1.0, "0.0 s"), (0.25, "0.2 s"), (59.9, "59 s"), (150.0, "2 min"), (7_300.0, "2 h"), (200_000.0, "2 days")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
