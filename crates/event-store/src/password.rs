//! The database's password from a file, the way secrets are mounted into containers.

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
