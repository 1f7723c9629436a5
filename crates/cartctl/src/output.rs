//! Prints answers to standard output, as tables or JSON, and everything else to standard error.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use operations::text::escaped;
use serde::Serialize;

pub(crate) use operations::text::{bytes, clean, hex, moment, span};

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

#[cfg(test)]
mod tests {
    use operations::text::is_hidden;

    use super::*;

    #[test]
    fn table_makes_hidden_characters_visible() {
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
}
