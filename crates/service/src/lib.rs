//! The common part of all services: settings, telemetry, readiness, shutdown and HTTP.
//!
//! A service declares a [`Program`]: its name, its default settings and its slices. Its `main` calls [`run`] with the program and a
//! function that adds what the service needs to a [`Service`]: the log ([`Service::with_log`]), projections, readiness checks
//! ([`Service::ready_when`]) and background tasks ([`Service::background`]). The example `minimal` is a whole service.

mod fault;
mod health;
mod http;
mod run;
mod service;
mod slices;
mod supervise;
mod telemetry;

pub mod settings;

pub use fault::Fault;
pub use health::CHECK_TIMEOUT;
pub use http::{
    body::{IgnoredBody, JsonBody, MAX_BODY_BYTES},
    command::command,
    common::Routes,
    error::{ErrorBody, HttpError},
    error_code::ErrorCode,
    lag,
    live::{Changes, live},
    openapi,
    page::Page,
    path::{PathValue, ensure_path_matches_body},
    position::{At, MinPosition},
    refusal::{Answer, Refusal},
};
pub use run::{Arguments, run, run_with_arguments, run_with_kafka};
pub use service::Service;
pub use settings::Validate;
pub use slices::{Program, Slices};
pub use telemetry::trace;

/// Tells a background task to stop.
pub use tokio_util::sync::CancellationToken;
/// The version of this build.
pub use version::VERSION;

#[cfg(test)]
mod tests;
