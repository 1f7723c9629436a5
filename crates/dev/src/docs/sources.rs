//! Reading the sources that tables are made from.

use std::path::{Path, PathBuf};

use embedded::error::{Context, Error};

/// A file's text.
pub(super) fn text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).context(|| format!("read {}", path.display()))
}

/// The error that says what a source lacks.
pub(super) fn unreadable(path: &Path, reason: impl Into<String>) -> Error {
    Error::Unreadable { path: path.to_owned(), reason: reason.into() }
}

/// Every Rust file below a folder, sorted by its path.
pub(super) fn rust_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).context(|| format!("read {}", folder.display()))? {
        let path = entry.context(|| format!("read {}", folder.display()))?.path();
        if path.is_dir() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The text of the first Rust string literal, without its escapes.
pub(super) fn literal(source: &str) -> Option<String> {
    let start = source.find('"')? + 1;
    let mut text = String::new();
    let mut characters = source[start..].chars();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => match characters.next()? {
                // The text continues after the next line's indentation.
                '\n' => characters = characters.as_str().trim_start().chars(),
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
}

/// A sentence that begins with a capital and ends with a full stop.
pub(super) fn sentence(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut characters = text.chars();
    let capital = characters.next().map(|first| first.to_uppercase().collect::<String>() + characters.as_str()).unwrap_or_default();
    if capital.is_empty() || capital.ends_with(['.', '?', '!']) { capital } else { capital + "." }
}

/// A cell of a table: one line, whose bars do not end it.
pub(super) fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_read_as_rust_writes_them() {
        assert_eq!(literal(r#"("a \"b\" c", 3)"#).as_deref(), Some(r#"a "b" c"#));
        assert_eq!(literal("\"one \\\n     line\"").as_deref(), Some("one line"));
        assert_eq!(literal("no text"), None);
    }

    #[test]
    fn sentences_get_a_capital_and_a_full_stop() {
        assert_eq!(sentence("the cart\n is empty"), "The cart is empty.");
        assert_eq!(sentence("Done."), "Done.");
    }
}
