//! Answers that are not a success.
//!
//! A *refusal* (4xx) tells the client what to change; it is not logged as an error. A *fault* (5xx) is ours: it is logged once, at the end
//! of the request, with its causes, and the client learns the trace id. A 503 says that the client may try again after `Retry-After`.

use std::{borrow::Cow, fmt};

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use serde::Serialize;

use super::error_code::ErrorCode;
use crate::{fault::Fault, telemetry::trace};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// A stable word for programs, in snake case.
    #[schema(example = "invalid_field")]
    pub code: Cow<'static, str>,
    /// A sentence for people. It may change.
    pub message: String,
}

/// An answer that is not a success.
#[derive(Debug)]
pub struct HttpError {
    status: StatusCode,
    body: ErrorBody,
    /// Seconds.
    retry_after: Option<u32>,
    cause: Option<Fault>,
    expected: bool,
}

/// Seconds after which a client may try again if nothing else is said.
const RETRY_AFTER_SECONDS: u32 = 1;

impl HttpError {
    /// Answers with a code that every service shares and its status. A 503 gets `Retry-After: 1`.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_SECONDS);
        let body = ErrorBody { code: code.as_str().into(), message: message.into() };
        Self { status, body, retry_after, cause: None, expected: false }
    }

    /// Refuses a request by a rule of the domain, with a code of the domain's own.
    #[must_use]
    pub fn refusal(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        debug_assert!(status.is_client_error(), "a refusal is 4xx");
        Self { status, body: ErrorBody { code: code.into(), message: message.into() }, retry_after: None, cause: None, expected: false }
    }

    /// Answers 500 for a fault of ours. Its causes are logged and not told to the client.
    #[must_use]
    pub fn fault(cause: impl Into<Fault>) -> Self {
        let message = match trace::current_trace_id() {
            Some(id) => format!("internal fault; the logs say more under trace_id {id}"),
            None => "internal fault; the logs say more".to_owned(),
        };
        Self::new(ErrorCode::Fault, message).caused_by(cause)
    }

    /// Sets the time after which the client may try again, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Marks a 5xx as an ordinary answer: it is not logged as a fault.
    #[must_use]
    pub fn expected(mut self) -> Self {
        self.expected = true;
        self
    }

    pub(crate) fn is_expected(&self) -> bool {
        self.expected
    }

    /// Adds the cause, for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Fault>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The error and its causes in one line, for the log.
    pub(crate) fn causes(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{cause:#}"),
            None => self.body.message.clone(),
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.body.code, self.body.message)
    }
}

impl std::error::Error for HttpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as _)
    }
}

impl ResponseError for HttpError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        response.json(&self.body)
    }
}
