//! What is up: written by the supervisor, read by the other commands.

use std::fs::{File, TryLockError};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use embedded::error::{Context, Error};
use embedded::files;
use embedded::identity::Identity;
use embedded::layout::Layout;

/// The state file: who supervises the stack, and where it is once it is ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The process that started the stack and will stop it.
    pub supervisor: Identity,
    /// Where everything is; none until all is ready.
    pub up: Option<Up>,
}

/// Where everything is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Up {
    /// The services.
    pub services: Vec<UpService>,
    /// The database, for its owner.
    pub database: UpServer,
    /// The brokers.
    pub kafka: UpServer,
    /// The operator's command line.
    pub cartctl: PathBuf,
}

/// Where a service is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpService {
    /// The service's name.
    pub name: String,
    /// The name of its URL in `cargo dev env`.
    pub variable: String,
    /// Its URL.
    pub url: String,
    /// Its log.
    pub log: PathBuf,
}

/// Where a server is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpServer {
    /// What clients need: a URL, or bootstrap servers.
    pub address: String,
    /// Its log; none for a server that somebody else runs.
    pub log: Option<PathBuf>,
}

impl State {
    /// The running stack's state; none where no stack runs. What a dead supervisor left behind counts as none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(layout: &Layout) -> Result<Option<Self>, Error> {
        let path = path(layout);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("read {}", path.display()))?,
        };
        // A file of another version is of a stack that nobody can speak to any more.
        let state: Option<Self> = serde_json::from_slice(&bytes).ok();
        Ok(state.filter(|state| state.supervisor.is_running()))
    }

    /// Writes the state, wholly or not at all.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn write(&self, layout: &Layout) -> Result<(), Error> {
        let path = path(layout);
        let bytes = serde_json::to_vec_pretty(self).map_err(std::io::Error::other);
        files::write_atomically(&path, &bytes.context(|| format!("write {}", path.display()))?)
    }

    /// Forgets the stack.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn remove(layout: &Layout) -> Result<(), Error> {
        files::remove(&path(layout))
    }
}

/// The right to be the stack's supervisor, until it is dropped or its holder dies; none where another has it.
///
/// # Errors
/// The operating system's refusal.
pub fn supervise(layout: &Layout) -> Result<Option<File>, Error> {
    let (lock, path) = lock_file(layout, "lock")?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context(|| format!("lock {}", path.display())),
    }
}

/// The right to start a supervisor in the background, until it is dropped; waits while another is doing so.
///
/// # Errors
/// The operating system's refusal.
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
