//! The smallest service. The tests of a process's life run it.

use std::process::ExitCode;

use actix_web::{Responder, get};
use disintegrate::Event;
use serde::{Deserialize, Serialize};
use service::{Fault, Program, Service, Slices, trace};
use uuid::Uuid;

const DEFAULTS: &str = r#"
# The port to listen on.
port = 8080
# The database.
database_url = "postgres://nobody@127.0.0.1:5432/nothing"
# The time that a command may take, in milliseconds.
command_timeout_milliseconds = 10000
# How the background task fails: none, error or panic. unready: the service never becomes ready.
failing = "none"
"#;

#[derive(Debug, Deserialize)]
struct Settings {
    failing: Failing,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Failing {
    None,
    Error,
    Panic,
    Unready,
}

impl service::Validate for Settings {}

/// Answers the trace that the request is part of.
#[utoipa::path(get, path = "/traceparent", responses((status = 200, body = String)))]
#[get("/traceparent")]
async fn traceparent() -> impl Responder {
    trace::current_traceparent().unwrap_or_default()
}

/// The events of its log.
#[derive(Debug, Clone, PartialEq, Event, Serialize, Deserialize)]
enum Noted {
    /// Something was noted.
    Noted {
        /// The thing that it is about.
        #[id]
        subject: Uuid,
    },
}

static PROGRAM: Program<Noted> = Program { name: "minimal", about: "The smallest service", defaults: DEFAULTS, slices };

fn slices(slices: &mut Slices<'_, '_, Noted>) {
    slices.route(traceparent);
}

fn main() -> ExitCode {
    service::run(&PROGRAM, start)
}

fn start(settings: Settings, service: Service) -> Result<Service, Fault> {
    let unready = matches!(settings.failing, Failing::Unready);
    let check = move || async move { if unready { Err("none is there".to_owned()) } else { Ok(()) } };
    Ok(service.ready_when("paper", check).background("worker", |shutdown| async move {
        match settings.failing {
            Failing::None | Failing::Unready => shutdown.cancelled().await,
            Failing::Error => return Err(Fault::msg("out of paper")),
            #[allow(clippy::panic, reason = "the test is about panics")]
            Failing::Panic => panic!("out of cheese"),
        }
        Ok(())
    }))
}
