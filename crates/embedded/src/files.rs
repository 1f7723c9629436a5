//! Operations on files.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Context, Error};

/// Creates the directory and those above it. Every user can enter it, whatever the umask.
///
/// # Errors
/// The operating system refuses.
pub fn create_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).context(|| format!("open {} to all", path.display()))
}

/// Removes a file, or a directory with its content. A missing one is no error.
///
/// # Errors
/// The operating system refuses.
pub fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", path.display())),
    }
}

/// Replaces a file: afterwards it has either the old or the new content.
///
/// # Errors
/// The operating system refuses.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let written = File::create(&fresh).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&fresh, path)).context(|| format!("write {}", path.display()))
}

/// Opens an empty log file for a process, and keeps the one before as `<name>.previous.log`.
///
/// # Errors
/// The operating system refuses.
pub fn open_log(path: &Path) -> Result<File, Error> {
    if let Some(directory) = path.parent() {
        create_directory(directory)?;
    }
    if path.exists() {
        let previous = path.with_extension("previous.log");
        fs::rename(path, &previous).context(|| format!("move {} away", path.display()))?;
    }
    File::options().create(true).append(true).open(path).context(|| format!("open {}", path.display()))
}

/// Reads the file's last lines, at most `lines` of them; empty if there is no file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    const ENOUGH: u64 = 64 * 1024;
    let Ok(mut file) = File::open(path) else {
        return String::new();
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH))).is_err() || file.read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
