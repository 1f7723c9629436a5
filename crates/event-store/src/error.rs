//! Faults of the log. A decision's own refusal is not one of them.

use std::{borrow::Cow, sync::Arc, time::Duration};

use sqlx::{
    error::DatabaseError,
    postgres::{PgDatabaseError, PgSeverity},
};

use crate::position::Position;

/// A fault of the log. Cloning keeps its kind and its cause.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database is unreachable or cannot serve at the moment. Nothing was written; a retry may succeed.
    #[error("the log is not reachable")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// The database did not answer within this time.
    #[error("the database did not answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
    /// An append was sent, and its answer is not known. The append was written whole or not at all.
    #[error("the log did not answer an append in time: whether it was written is not known")]
    OutcomeUnknown,
    /// The time ran out before the work began: an append was not sent, a read found no free connection. Nothing was written.
    #[error("the log is busy")]
    Busy,
    /// The server that answered is not the log's current one. Nothing was written; the next connection may find the current one.
    #[error("the server is not the log's current one: {0}")]
    NotCurrent(String),
    /// The log was reset or restored: it ends before a position that this process has read, or it is another log.
    #[error("the log was reset or restored under this process: {0}")]
    Reset(String),
    /// The database refused the data (SQLSTATE class 22 or 23).
    #[error("the log refused the data")]
    Rejected(#[source] Arc<sqlx::Error>),
    /// The database answered with another error.
    #[error("the log answered with an error")]
    Database(#[source] Arc<sqlx::Error>),
    /// An event's payload does not have the shape that this build expects.
    #[error("the event at {position} cannot be read: {error}")]
    Decode {
        /// The event's position.
        position: Position,
        /// The deserializer's error.
        error: String,
    },
    /// An event cannot be written as JSON.
    #[error("an event cannot be written: {0}")]
    Encode(String),
    /// A decision names an id or an event type that the log's schema does not have.
    #[error("the log's schema does not fit: {0}")]
    Schema(String),
    /// The store is closed.
    #[error("the store is shutting down")]
    Closed,
}

impl StoreError {
    /// Returns whether the fault may pass by itself. A service then answers 503; a worker tries again.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::NoAnswer(_) | Self::OutcomeUnknown | Self::Busy => true,
            Self::NotCurrent(_) | Self::Reset(_) | Self::Closed => true,
            Self::Rejected(_) | Self::Database(_) | Self::Decode { .. } | Self::Encode(_) | Self::Schema(_) => false,
        }
    }

    /// Returns whether the database refused just this data.
    pub fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected(_))
    }

    /// Returns the SQLSTATE, if the database answered with an error.
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Unavailable(error) | Self::Rejected(error) | Self::Database(error) => error.as_database_error()?.code(),
            _ => None,
        }
    }
}

/// Returns whether the server ended the connection with this error.
pub(crate) fn ends_the_connection(error: &dyn DatabaseError) -> bool {
    let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic))
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => match database.code().as_deref() {
                Some("CL001") => Self::Reset(database.message().to_owned()),
                // FATAL and PANIC end the connection, whatever the code is.
                _ if ends_the_connection(database.as_ref()) => Self::Unavailable(error.into()),
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
                    Self::Unavailable(error.into())
                }
                Some(code) if code.starts_with("22") || code.starts_with("23") => Self::Rejected(error.into()),
                _ => Self::Database(error.into()),
            },
            // A fault of ours that was passed through sqlx's error type.
            sqlx::Error::AnyDriverError(ours) => match ours.downcast_ref::<Self>() {
                Some(ours) => ours.clone(),
                None => Self::Database(error.into()),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error.into()),
            _ => Self::Database(error.into()),
        }
    }
}

/// So that `?` works within database work, whose error is sqlx's. [`StoreError`] gets the fault out again.
impl From<StoreError> for sqlx::Error {
    fn from(error: StoreError) -> Self {
        Self::AnyDriverError(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_error_keeps_its_kind_and_its_cause() {
        let unavailable = StoreError::from(sqlx::Error::PoolClosed);
        let reset = StoreError::Reset("it ends at 3".to_owned());
        for error in [unavailable, StoreError::Busy, StoreError::OutcomeUnknown, reset, StoreError::NoAnswer(Duration::from_secs(5))] {
            let repeated = error.clone();
            assert_eq!(repeated.to_string(), error.to_string());
            let cause = |error: &StoreError| std::error::Error::source(error).map(ToString::to_string);
            assert_eq!(cause(&repeated), cause(&error));
        }
    }
}
