//! What ends a command, and with which exit code.

use std::{error::Error as _, process::ExitCode};

use event_store::StoreError;
use kafka::{OperateError, StartError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A setting is missing or wrong.
    #[error("{0}")]
    Usage(String),
    /// There is no such thing, or nothing to do.
    #[error("{0}")]
    Nothing(String),
    #[error("{0}")]
    NotConfirmed(String),
    /// It cannot be done, and the message says why.
    #[error("{0}")]
    Refused(String),
    #[error("the database cannot be reached; set --database-url or DATABASE_URL where it is another")]
    Unreachable(#[source] sqlx::Error),
    #[error("this role may not do that: connect as cartlog_operator (--database-url)")]
    Forbidden(#[source] StoreError),
    /// What was compared is not the same.
    #[error("{0}")]
    Differs(String),
    /// The operator has seen enough; the message says what goes on.
    #[error("{0}")]
    Interrupted(String),
    #[error(transparent)]
    Store(StoreError),
    #[error("{0}; set --bootstrap-servers or KAFKA_BOOTSTRAP_SERVERS where it is another")]
    Broker(#[source] OperateError),
    #[error(transparent)]
    Kafka(OperateError),
    #[error(transparent)]
    KafkaSettings(#[from] StartError),
    #[error("the answer cannot be written")]
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
            OperateError::Broker { .. } => Self::Broker(error),
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
            // As a shell has it.
            Self::Interrupted(_) => 130,
            _ => 1,
        })
    }

    /// The error and its causes, each said once.
    pub(crate) fn in_one_line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let words = error.to_string();
            if !text.contains(&words) {
                text = format!("{text}: {words}");
            }
            cause = error.source();
        }
        text
    }
}
