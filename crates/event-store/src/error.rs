//! What can go wrong with the log itself. A decision's own refusal is not among these.

use sqlx::{
    error::DatabaseError,
    postgres::{PgDatabaseError, PgSeverity},
};

use crate::position::Position;

/// A fault of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, or does not answer in time. Nothing was done; it may be tried again.
    #[error("the log is not reachable")]
    Unavailable(#[source] sqlx::Error),
    /// An append was sent and not answered in time, or its connection was lost and could not be had back in time to see what became of it.
    /// The append is whole or not there.
    #[error("the log did not answer an append in time: whether it was written is not known")]
    OutcomeUnknown,
    /// More work waits for the log than it takes in the time a command may wait.
    #[error("the log is busy")]
    Busy,
    /// The log was reset or restored: it is behind what this process has seen of it, or another one.
    #[error("the log was reset or restored under this process: {0}")]
    Reset(String),
    /// The database refused the data (SQLSTATE class 22 or 23).
    #[error("the log refused the data")]
    Rejected(#[source] sqlx::Error),
    /// The database answered with another error.
    #[error("the log answered with an error")]
    Database(#[source] sqlx::Error),
    /// An event's payload is not of today's shape.
    #[error("the event at {position} cannot be read: {error}")]
    Decode {
        /// The event's position.
        position: Position,
        /// Why.
        error: String,
    },
    /// An event cannot be written as JSON.
    #[error("an event cannot be written: {0}")]
    Encode(String),
    /// A decision names an id or type that the log's schema does not have.
    #[error("the log's schema does not fit: {0}")]
    Schema(String),
    /// The process is shutting down.
    #[error("the store is shutting down")]
    Closed,
}

impl StoreError {
    /// Whether it may go away by itself: a caller answers 503, a worker tries again.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::OutcomeUnknown | Self::Busy | Self::Reset(_) | Self::Closed)
    }

    /// The same error once more: sqlx's errors cannot be cloned.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Unavailable(cause) => Self::Unavailable(sqlx::Error::Protocol(cause.to_string())),
            _ => Self::Closed,
        }
    }

    /// Whether the database refused just this data.
    pub fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected(_))
    }
}

/// Whether the server has ended the connection with this error.
pub(crate) fn ends_the_connection(error: &dyn DatabaseError) -> bool {
    let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic))
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => match database.code().as_deref() {
                Some("CL001") => Self::Reset(database.message().to_owned()),
                // FATAL or PANIC, whatever it was: the connection is gone with it.
                _ if ends_the_connection(database.as_ref()) => Self::Unavailable(error),
                // Connection exceptions, insufficient resources, operator intervention (shutdown, terminated), timeouts, missing objects
                // (migrations not applied), read-only (a standby).
                Some(code)
                    if ["08", "53", "57"].contains(&code.get(..2).unwrap_or_default())
                        || [
                            "25P03", "25P04", "25006", "42P01", "42883", "3F000", "42501", "28000", "28P01", "3D000", "40001", "40P01",
                            "55P03",
                        ]
                        .contains(&code) =>
                {
                    Self::Unavailable(error)
                }
                Some(code) if code.starts_with("22") || code.starts_with("23") => Self::Rejected(error),
                _ => Self::Database(error),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error),
            _ => Self::Database(error),
        }
    }
}
