//! The state of the running stack. The supervisor writes it, and the other commands read it.

use std::fs::{File, TryLockError};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use embedded::error::{Context, Error};
use embedded::files;
use embedded::identity::Identity;
use embedded::layout::Layout;

/// The content of the state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The process that started the stack and stops it.
    pub supervisor: Identity,
    /// The addresses; none until everything is ready.
    pub up: Option<Up>,
}

/// The addresses of a running stack.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Up {
    /// The services.
    pub services: Vec<UpService>,
    /// PostgreSQL, with the owner's URL.
    pub database: UpServer,
    /// The brokers.
    pub kafka: UpServer,
    /// The operator's command line.
    pub cartctl: PathBuf,
}

/// The address of a service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpService {
    /// The service's name.
    pub name: String,
    /// The variable in which `cargo dev env` prints its URL.
    pub variable: String,
    /// Its URL.
    pub url: String,
    /// Its log.
    pub log: PathBuf,
}

/// The address of a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpServer {
    /// A URL, or bootstrap servers.
    pub address: String,
    /// Its log; none for a server that we did not start.
    pub log: Option<PathBuf>,
}

impl State {
    /// Reads the running stack's state; none if no stack runs. The file of a dead supervisor counts as none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(layout: &Layout) -> Result<Option<Self>, Error> {
        let path = path(layout);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("read {}", path.display()))?,
        };
        // A file of another version cannot be read. Its stack counts as none.
        let state: Option<Self> = serde_json::from_slice(&bytes).ok();
        Ok(state.filter(|state| state.supervisor.is_running()))
    }

    /// Writes the state atomically.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn write(&self, layout: &Layout) -> Result<(), Error> {
        let path = path(layout);
        let bytes = serde_json::to_vec_pretty(self).map_err(std::io::Error::other);
        files::write_atomically(&path, &bytes.context(|| format!("write {}", path.display()))?)
    }

    /// Removes the state file.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn remove(layout: &Layout) -> Result<(), Error> {
        files::remove(&path(layout))
    }
}

/// Takes the lock of the stack's supervisor; none if another process has it. Dropping it or dying releases it.
///
/// # Errors
/// The operating system refuses.
pub fn supervise(layout: &Layout) -> Result<Option<File>, Error> {
    let (lock, path) = lock_file(layout, "lock")?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context(|| format!("lock {}", path.display())),
    }
}

/// Takes the lock for starting a supervisor in the background. Waits while another process has it.
///
/// # Errors
/// The operating system refuses.
pub async fn alone_in_starting(layout: &Layout) -> Result<File, Error> {
    let (lock, path) = lock_file(layout, "starting")?;
    let locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
    locked.map_err(std::io::Error::other).flatten().context(|| format!("lock {}", path.display()))
}

fn lock_file(layout: &Layout, name: &str) -> Result<(File, PathBuf), Error> {
    files::create_directory(&layout.stack())?;
    let path = layout.stack().join(name);
    Ok((File::create(&path).context(|| format!("create {}", path.display()))?, path))
}

fn path(layout: &Layout) -> PathBuf {
    layout.stack().join("state.json")
}
