//! The errors that end a command, and their exit codes.

use std::process::ExitCode;

use event_store::StoreError;
use kafka::StartError;
use operations::OperateError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A setting is missing or wrong.
    #[error("{0}")]
    Usage(String),
    /// The thing does not exist, or there is nothing to do.
    #[error("{0}")]
    Nothing(String),
    #[error("{0}")]
    NotConfirmed(String),
    /// The command is not possible now. The message says why and what to do.
    #[error("{0}")]
    Refused(String),
    #[error("Cannot connect to the database. Check --database-url or DATABASE_URL")]
    Unreachable(#[source] sqlx::Error),
    #[error("Cannot connect to the database: no answer within {0} seconds. Check --database-url or DATABASE_URL")]
    NoAnswer(u64),
    #[error("The database role lacks a privilege. Connect as cartlog_operator (--database-url)")]
    Forbidden(#[source] StoreError),
    /// The compared builds differ.
    #[error("{0}")]
    Differs(String),
    /// Ctrl-C. The message says what continues.
    #[error("{0}")]
    Interrupted(String),
    #[error(transparent)]
    Store(StoreError),
    #[error("{0}. Check --bootstrap-servers or KAFKA_BOOTSTRAP_SERVERS")]
    Broker(#[source] OperateError),
    #[error(transparent)]
    Kafka(OperateError),
    #[error(transparent)]
    KafkaSettings(#[from] StartError),
    #[error("Cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if error.sqlstate().as_deref() == Some("42501") { Self::Forbidden(error) } else { Self::Store(error) }
    }
}

impl From<OperateError> for Error {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::Broker(_) => Self::Broker(error),
            other => Self::Kafka(other),
        }
    }
}

impl Error {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Nothing(_) => 3,
            Self::NotConfirmed(_) => 4,
            Self::Differs(_) => 5,
            // As shells report SIGINT.
            Self::Interrupted(_) => 130,
            _ => 1,
        })
    }

    /// Formats the error and its causes on one line, each once.
    pub(crate) fn in_one_line(&self) -> String {
        operations::text::causes(self)
    }
}
