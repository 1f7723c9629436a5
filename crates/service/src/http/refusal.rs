//! Outcomes of decisions and reads, as HTTP answers.

use std::fmt::Display;

use actix_web::{HttpRequest, HttpResponse, Responder, body::BoxBody, http::StatusCode};
use event_store::{DecideError, Position, StoreError};
use projections::ProjectionError;
use serde::Serialize;
use uuid::Uuid;

use super::{error::HttpError, error_code::ErrorCode};

/// The header with the position of a command's last event.
pub(crate) const POSITION: &str = "cartlog-position";

/// The answer to a command: the id of its subject and the position of its last event in the log. The header `Cartlog-Position` repeats the
/// position.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Answer<Id>(pub Id, pub Position);

impl<Id: Serialize> Responder for Answer<Id> {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::Ok().insert_header((POSITION, self.1.0)).json(&self)
    }
}

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

#[cfg(test)]
mod tests {
    use actix_web::{body::to_bytes, test::TestRequest};

    use super::*;

    #[actix_web::test]
    async fn answer_is_a_pair_and_repeats_the_position_in_a_header() {
        let answer = Answer("some id", Position(42)).respond_to(&TestRequest::default().to_http_request());
        assert_eq!(answer.headers().get(POSITION).unwrap(), "42");
        assert_eq!(to_bytes(answer.into_body()).await.unwrap(), r#"["some id",42]"#);
    }
}
