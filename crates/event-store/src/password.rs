//! The database's password: from a file, the way secrets are mounted into containers, or in the URL.

use std::{io, path::Path};

/// Reads a password from a file, without the line break at its end.
///
/// # Errors
/// If the file cannot be read or is empty.
pub fn read_password(path: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() { Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")) } else { Ok(password.to_owned()) }
}

/// Returns whether a URL may have a part of its password behind its host. A slash or a hash in a password ends the host.
pub fn is_password_cut(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (_, behind_host) = rest.split_at(rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len()));
    let path = behind_host.split('?').next().unwrap_or_default();
    path.contains('@') || behind_host.contains('#')
}

#[cfg(test)]
mod tests {
    use super::is_password_cut;

    #[test]
    fn password_with_an_unescaped_character_is_cut() {
        for cut in ["a:1/b@host/db", "a:1#b@host/db", "a:1\\b@host/db", "a:b@host/db#c", "a:1#b", "a:b@host/c@db?d"] {
            assert!(is_password_cut(&format!("postgres://{cut}")), "{cut}");
        }
        for whole in ["a:b@host/db", "a:b@host/db?application_name=me@here", "host", "a:%2F%23%40@host:5432/db", "a:b@host", ""] {
            assert!(!is_password_cut(&format!("postgres://{whole}")), "{whole}");
        }
    }
}
