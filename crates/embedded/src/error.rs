//! The errors of building, starting and stopping servers and services.

use std::path::PathBuf;
use std::process::ExitStatus;

/// A fault of the development stack. The message says what failed, and [`std::error::Error::source`] says why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a file, a directory or a process.
    #[error("cannot {what}")]
    Io {
        /// The operation, as it follows "cannot".
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
        /// Its last output; empty if it printed to the terminal.
        output: String,
    },
    /// A process ended unexpectedly.
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
    /// A process runs but did not become ready in time.
    #[error("{name} was not ready after {seconds} s: {reason}; its log is {}{}", log.display(), indented(tail))]
    NotReady {
        /// The process's name.
        name: String,
        /// The seconds that were waited.
        seconds: u64,
        /// The error of the last attempt.
        reason: String,
        /// Its whole log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A tool or a server is missing. The text says what to do.
    #[error("{0}")]
    Missing(String),
    /// A setting or the current state does not allow the request. The text says what to do.
    #[error("{0}")]
    Refused(String),
    /// A file has unexpected content.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The fault in its content.
        reason: String,
    },
    /// PostgreSQL refused a statement or a connection.
    #[error("cannot {what}")]
    Sql {
        /// The operation, as it follows "cannot".
        what: String,
        /// PostgreSQL's answer.
        #[source]
        source: sqlx::Error,
    },
    /// A server did not answer in time.
    #[error("cannot {what}: there was no answer within {seconds} s")]
    NoAnswer {
        /// The operation, as it follows "cannot".
        what: String,
        /// The seconds that were waited.
        seconds: u64,
    },
    /// A migration failed.
    #[error("cannot apply the migrations: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Kafka refused a request.
    #[error("cannot {what}: {reason}")]
    Kafka {
        /// The operation, as it follows "cannot".
        what: String,
        /// Kafka's answer.
        reason: String,
    },
    /// A service cannot be reached, or gave an unexpected answer.
    #[error("{0}")]
    Http(String),
    /// A signal stopped the command.
    #[error("interrupted")]
    Interrupted,
}

/// Adds to an error what was tried.
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

/// Returns the error and all its causes, separated by colons.
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
