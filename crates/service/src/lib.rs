//! What every service needs, whatever it is about: settings, telemetry, health, shutdown and HTTP errors.
//!
//! A service's `main` calls [`run`] with its name, its default settings and a function that starts it; that function
//! gets the settings and a [`Service`], to which it adds what readiness waits for ([`Service::ready_when`]) and what
//! works beside the requests ([`Service::background`]), and ends by serving its routes ([`Service::serve`]).

mod health;
mod http;
mod log;
mod run;
mod service;
mod supervise;
mod telemetry;

pub mod settings;

pub use health::CHECK_TIMEOUT;
pub use http::{
    body::{IgnoredBody, JsonBody, MAX_BODY_BYTES},
    command::command,
    error::{ErrorBody, HttpError},
    error_code::ErrorCode,
    lag, openapi,
    path::{PathValue, ensure_path_matches_body},
    position::{At, MinPosition},
    refusal::{Answer, Refusal},
};
pub use log::open_log;
pub use run::{Arguments, run, run_with_kafka};
pub use service::Service;
pub use settings::Validate;
pub use telemetry::trace;

/// A fault: an error that is nobody's refusal, with the causes that led to it. `?` makes one of any error.
pub use anyhow::Error as Fault;
/// The token that tells a background task to finish.
pub use tokio_util::sync::CancellationToken;
/// The version of this build, for a command line of one's own.
pub use version::VERSION;

#[cfg(test)]
mod tests;
