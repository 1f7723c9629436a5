//! What can go wrong while a stack is built, started or stopped.

use std::path::PathBuf;
use std::process::ExitStatus;

/// A fault of the development stack. The message says what was tried; [`std::error::Error::source`] says why it
/// failed, where there is more to say.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, a directory or a process could not be handled.
    #[error("cannot {what}")]
    Io {
        /// What was tried, as it follows "cannot".
        what: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A command ran and failed.
    #[error("{command} failed ({status}){}", indented(output))]
    Command {
        /// The command, as one would type it.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed last; empty where it printed to the terminal itself.
        output: String,
    },
    /// A process ended although it was to stay.
    #[error("{name} ended ({status}); its log is {}{}", log.display(), indented(tail))]
    Ended {
        /// The process's name.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its whole log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A process runs but did not become ready within its time.
    #[error("{name} was not ready after {seconds} s: {reason}; its log is {}{}", log.display(), indented(tail))]
    NotReady {
        /// The process's name.
        name: String,
        /// How long it was waited for.
        seconds: u64,
        /// What the last attempt met.
        reason: String,
        /// Its whole log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A tool or a server that is needed is not there; the text says the ways out.
    #[error("{0}")]
    Missing(String),
    /// A setting, or the state that was met, does not allow what was asked for; the text says what would.
    #[error("{0}")]
    Refused(String),
    /// A file of ours does not hold what it should.
    #[error("{} is not readable: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// PostgreSQL refused a statement or a connection.
    #[error("cannot {what}")]
    Sql {
        /// What was tried, as it follows "cannot".
        what: String,
        /// PostgreSQL's answer.
        #[source]
        source: sqlx::Error,
    },
    /// The migrations could not be applied.
    #[error("the migrations could not be applied: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Kafka refused a request.
    #[error("cannot {what}: {reason}")]
    Kafka {
        /// What was tried, as it follows "cannot".
        what: String,
        /// Kafka's answer.
        reason: String,
    },
    /// A service was not reached, or answered what it should not.
    #[error("{0}")]
    Http(String),
    /// A signal asked us to stop before we were done.
    #[error("interrupted")]
    Interrupted,
}

/// Says what was tried when an operation of the operating system fails.
pub trait Context<T> {
    /// `what` follows "cannot", for example "read /etc/hosts".
    ///
    /// # Errors
    /// The same failure, with what was tried.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}

impl<T> Context<T> for Result<T, sqlx::Error> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Sql { what: what(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(std::io::Error::from).context(what)
    }
}

/// The error and all its causes, in one line of text each.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

fn indented(text: &str) -> String {
    if text.trim().is_empty() {
        return String::new();
    }
    text.lines().fold(String::from(":"), |all, line| all + "\n    " + line)
}
