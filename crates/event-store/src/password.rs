//! The database's password out of a file, as secrets are handed to containers.

use std::{io, path::Path};

/// The file's text, less the end of its line.
///
/// # Errors
/// It cannot be read, or is empty.
pub fn read_password(path: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() { Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")) } else { Ok(password.to_owned()) }
}
