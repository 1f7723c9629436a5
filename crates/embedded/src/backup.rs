//! Copies of a PostgreSQL server's data.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sqlx::{Connection, PgConnection};

use crate::account::Account;
use crate::error::{Context, Error};
use crate::files;
use crate::postgres::Postgres;

/// Copies the data of a running server. A server that starts with them needs the write-ahead log from the copy's beginning on.
///
/// # Errors
/// The server cannot be reached, or a file cannot be copied.
pub async fn copy_running(server: &Postgres, into: &Path) -> Result<(), Error> {
    let failed = || "back up a running PostgreSQL".to_owned();
    let mut session = PgConnection::connect(&server.url("postgres", "postgres")).await.context(failed)?;
    sqlx::query("SELECT pg_backup_start('copy', fast => true)").execute(&mut session).await.context(failed)?;
    copy(server.data(), into, true).await?;
    let label: String = sqlx::query_scalar("SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)")
        .fetch_one(&mut session)
        .await
        .context(failed)?;
    write(&into.join("backup_label"), &label, into)?;
    session.close().await.context(failed)
}

/// Copies the data of a stopped or killed server.
///
/// # Errors
/// A file cannot be copied.
pub async fn copy_stopped(server: &Postgres, into: &Path) -> Result<(), Error> {
    copy(server.data(), into, false).await
}

/// Replaces the data of a stopped or killed server by a copy of earlier data, which stays. The server's timeline stays the same.
///
/// # Errors
/// A file cannot be copied.
pub async fn put_back(server: &Postgres, copied: &Path) -> Result<(), Error> {
    files::remove(server.data())?;
    copy(copied, server.data(), false).await
}

/// Writes a file into a data directory, for the account that owns the directory.
pub(crate) fn write(path: &Path, text: &str, data: &Path) -> Result<(), Error> {
    files::write_atomically(path, text.as_bytes())?;
    Account::owner(data)?.own(path)
}

async fn copy(from: &Path, into: &Path, running: bool) -> Result<(), Error> {
    let (from, into) = (from.to_owned(), into.to_owned());
    let copying = move || {
        let mut left = vec![PathBuf::new()];
        while let Some(below) = left.pop() {
            let read = || format!("read {}", from.join(&below).display());
            let metadata = match fs::symlink_metadata(from.join(&below)) {
                // A running server removes files.
                Err(error) if running && error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.context(read)?,
            };
            let (source, target) = (from.join(&below), into.join(&below));
            if metadata.is_dir() {
                fs::create_dir_all(&target).context(|| format!("create {}", target.display()))?;
                fs::set_permissions(&target, metadata.permissions()).context(|| format!("create {}", target.display()))?;
                let entries = fs::read_dir(&source).context(read)?;
                left.extend(entries.flatten().map(|entry| below.join(entry.file_name())));
            } else if is_wanted(&below, running) {
                match fs::copy(&source, &target) {
                    Err(error) if running && error.kind() == std::io::ErrorKind::NotFound => continue,
                    other => other.context(|| format!("copy {}", source.display()))?,
                };
            } else {
                continue;
            }
            std::os::unix::fs::chown(&target, Some(metadata.uid()), Some(metadata.gid()))
                .context(|| format!("change the owner of {}", target.display()))?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(copying).await.map_err(std::io::Error::other).context(|| "copy PostgreSQL's data".to_owned())?
}

/// Tells whether a file belongs into a copy. A running server's process is not the copy's, and a standby streams its write-ahead log.
fn is_wanted(below: &Path, running: bool) -> bool {
    !(below.starts_with("postmaster.pid") || running && below.starts_with("pg_wal"))
}
