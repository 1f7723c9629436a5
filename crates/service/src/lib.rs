//! What every service needs, whatever it is about: settings, telemetry, health, shutdown and HTTP errors.
//!
//! A service's `main` calls [`run`] with its name, its default settings and a function that starts it; that function
//! gets the settings and a [`Service`], to which it adds what readiness waits for ([`Service::ready_when`]) and what
//! works beside the requests ([`Service::background`]), and ends by serving its routes ([`Service::serve`]).

mod body;
mod command;
mod cors;
mod edge;
mod error;
mod expectation;
mod health;
mod log;
mod log_format;
mod path;
mod position;
mod refused_head;
mod run;
mod server;
mod supervise;
mod telemetry;

pub mod lag;
pub mod openapi;
pub mod settings;
pub mod trace;

pub use body::{IgnoredBody, JsonBody, MAX_BODY_BYTES};
pub use command::command;
pub use error::{ErrorBody, HttpError};
pub use log::{Answer, Refusal, open_log};
pub use path::{PathValue, agree};
pub use position::{At, MinPosition};
pub use run::{Arguments, Service, run, run_with_kafka};
pub use settings::Validate;

/// A fault: an error that is nobody's refusal, with the causes that led to it. `?` makes one of any error.
pub use anyhow::Error as Fault;
/// The token that tells a background task to finish.
pub use tokio_util::sync::CancellationToken;
/// The version of this build, for a command line of one's own.
pub use version::VERSION;

#[cfg(test)]
mod tests;
