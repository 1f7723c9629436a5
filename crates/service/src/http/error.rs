//! What a client is told when it does not get what it asked for.
//!
//! There are two kinds. A *refusal* (4xx) is an answer: the client can read what to change, and nothing is logged as
//! an error. A *fault* (5xx) is ours: it is logged once, where the request ends, with every cause; the client learns
//! only that it happened and the trace to ask about. In between stands 503: nothing is broken, the client shall try
//! again after `Retry-After`.

use std::{borrow::Cow, fmt};

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use serde::{Deserialize, Serialize};

use crate::{Fault, telemetry::trace};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// A stable word for programs, in snake case.
    #[schema(example = "invalid_field")]
    pub code: Cow<'static, str>,
    /// A sentence for people. It may change.
    pub message: String,
}

/// An answer that is not a success: a refusal (4xx), a fault of ours (5xx), or 503 with the time to try again.
#[derive(Debug)]
pub struct HttpError {
    status: StatusCode,
    body: ErrorBody,
    /// Seconds.
    retry_after: Option<u32>,
    cause: Option<Fault>,
    /// Logged as any other answer, whatever its status.
    expected: bool,
}

/// Seconds after which a client may try again when the store is away or busy.
const RETRY_AFTER_SECONDS: u32 = 1;

impl HttpError {
    /// An answer of any 4xx status; prefer the named ones below.
    #[must_use]
    pub fn refusal(status: StatusCode, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        debug_assert!(status.is_client_error(), "a refusal is 4xx");
        Self { status, body: ErrorBody { code: code.into(), message: message.into() }, retry_after: None, cause: None, expected: false }
    }

    /// 400: what was sent cannot be read.
    #[must_use]
    pub fn bad_request(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404: what was asked for does not exist.
    #[must_use]
    pub fn not_found(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::refusal(StatusCode::NOT_FOUND, code, message)
    }

    /// 409: understood, and refused by the rules of the domain.
    #[must_use]
    pub fn conflict(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::refusal(StatusCode::CONFLICT, code, message)
    }

    /// 503 with `Retry-After`: something needed is away or busy; the message says what.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            body: ErrorBody { code: "unavailable".into(), message: message.into() },
            retry_after: Some(RETRY_AFTER_SECONDS),
            cause: None,
            expected: false,
        }
    }

    /// 500: a fault of ours. Its causes are logged and not told.
    #[must_use]
    pub fn fault(cause: impl Into<Fault>) -> Self {
        let message = match trace::current_trace_id() {
            Some(id) => format!("a fault of ours; the logs tell more under trace_id {id}"),
            None => "a fault of ours; the logs tell more".to_owned(),
        };
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: ErrorBody { code: "fault".into(), message },
            retry_after: None,
            cause: Some(cause.into()),
            expected: false,
        }
    }

    /// With another code for programs.
    #[must_use]
    pub fn code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.body.code = code.into();
        self
    }

    /// With the time, in seconds, after which the client may try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// As an answer to what was asked, where nothing is wrong: it is logged as one.
    #[must_use]
    pub fn expected(mut self) -> Self {
        self.expected = true;
        self
    }

    pub(crate) fn is_expected(&self) -> bool {
        self.expected
    }

    /// With what led to it, for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Fault>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What the client reads.
    #[must_use]
    pub fn body(&self) -> &ErrorBody {
        &self.body
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
