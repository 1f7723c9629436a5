//! Outcomes of decisions and reads, as HTTP answers.

use std::fmt::Display;

use actix_web::{http::StatusCode, web};
use event_store::{DecideError, Position, StoreError};
use projections::ProjectionError;
use uuid::Uuid;

use super::{error::HttpError, error_code::ErrorCode};

/// The answer to a command: the id of its subject and the position of its last event in the log.
pub type Answer<Id> = web::Json<(Id, Position)>;

/// A refusal by the rules of the domain, as an HTTP answer. Its `Display` is the message.
pub trait Refusal: Display {
    /// A stable word for programs, in snake case.
    fn code(&self) -> &'static str;

    /// 409 unless another status fits better.
    fn status(&self) -> StatusCode {
        StatusCode::CONFLICT
    }
}

/// A decision that never refuses.
impl Refusal for std::convert::Infallible {
    fn code(&self) -> &'static str {
        match *self {}
    }
}

impl<R: Refusal> From<DecideError<R>> for HttpError {
    fn from(error: DecideError<R>) -> Self {
        match error {
            DecideError::Refused(refusal) => Self::refusal(refusal.status(), refusal.code(), refusal.to_string()),
            DecideError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy => Self::new(ErrorCode::Busy, "the log is busy and nothing was written; try again"),
            StoreError::OutcomeUnknown => Self::new(
                ErrorCode::OutcomeUnknown,
                "the log did not reply in time, so the command may have been carried out; read, or send the command again",
            ),
            error if error.is_unavailable() => {
                Self::new(ErrorCode::Unavailable, "the log cannot be reached and nothing was written; try again").caused_by(error)
            }
            error => Self::fault(error),
        }
    }
}

impl From<ProjectionError> for HttpError {
    fn from(error: ProjectionError) -> Self {
        match error {
            ProjectionError::Parked { projection, key } => Self::parked(&projection, key),
            ProjectionError::Behind(_) => Self::new(ErrorCode::Behind, error.to_string()).expected(),
            ProjectionError::Store(error) => error.into(),
        }
    }
}

/// Seconds after which a client may read a parked key again: an operator must act first.
const PARKED_RETRY_AFTER_SECONDS: u32 = 30;

impl HttpError {
    /// Answers 503 for a key that is parked.
    pub(crate) fn parked(projection: &str, key: Uuid) -> Self {
        let message = format!("{projection} could not apply an event of {key}; an operator must retry or skip it");
        Self::new(ErrorCode::Parked, message).retry_after(PARKED_RETRY_AFTER_SECONDS).expected()
    }
}
