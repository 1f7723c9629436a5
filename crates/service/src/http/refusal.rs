//! What the log says no to, as clients read it.

use std::fmt::Display;

use actix_web::{http::StatusCode, web};
use event_store::{DecideError, Position, StoreError};
use projections::ProjectionError;
use uuid::Uuid;

use super::error::HttpError;

/// What a command answers: the id it was about, and the position of its last event in the log.
pub type Answer<Id> = web::Json<(Id, Position)>;

/// A decision's own no, as HTTP has it. The sentence is its `Display`.
pub trait Refusal: Display {
    /// A stable word for programs, in snake case.
    fn code(&self) -> &'static str;

    /// 409, where nothing else fits better.
    fn status(&self) -> StatusCode {
        StatusCode::CONFLICT
    }
}

/// A decision that never says no.
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
            StoreError::Busy => Self::unavailable("the log is busy; try again").code("busy"),
            StoreError::OutcomeUnknown => Self::unavailable(
                "the log did not answer in time: whether the command was carried out is not known; look, or send it again",
            )
            .code("outcome_unknown"),
            error if error.is_unavailable() => Self::unavailable("the log cannot be reached; nothing was done; try again").caused_by(error),
            error => Self::fault(error),
        }
    }
}

impl From<ProjectionError> for HttpError {
    fn from(error: ProjectionError) -> Self {
        match error {
            ProjectionError::Parked { projection, key } => Self::parked(&projection, key),
            ProjectionError::Store(error) => error.into(),
        }
    }
}

/// Seconds after which a client may try again where a key is parked: an operator has to do something first.
const PARKED_RETRY_AFTER_SECONDS: u32 = 30;

impl HttpError {
    /// 503: an event of a key could not be applied to what is asked, and waits for an operator.
    pub(crate) fn parked(projection: &str, key: Uuid) -> Self {
        let message = format!(
            "{projection} cannot tell: an event of {key} could not be applied and is parked until an operator sets it right; try again later"
        );
        Self::unavailable(message).code("parked").retry_after(PARKED_RETRY_AFTER_SECONDS).expected()
    }
}
