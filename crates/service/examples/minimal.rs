//! The smallest service; the tests of the process's life run it.

use std::process::ExitCode;

use actix_web::{Responder, get};
use service::{Arguments, Fault, Service, trace};
use utoipa::OpenApi;

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

#[derive(Debug, serde::Deserialize)]
struct Settings {
    failing: Failing,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Failing {
    None,
    Error,
    Panic,
    Unready,
}

impl service::Validate for Settings {}

/// The trace the request is part of
#[utoipa::path(get, path = "/traceparent", responses((status = 200, body = String)))]
#[get("/traceparent")]
async fn traceparent() -> impl Responder {
    trace::current_traceparent().unwrap_or_default()
}

#[derive(OpenApi)]
#[openapi(paths(traceparent))]
struct Document;

fn main() -> ExitCode {
    let arguments = Arguments::parse("minimal", "The least that is a service");
    service::run("minimal", &arguments, DEFAULTS, start)
}

async fn start(settings: Settings, service: Service) -> Result<(), Fault> {
    let unready = matches!(settings.failing, Failing::Unready);
    let check = move || async move { if unready { Err("none is there".to_owned()) } else { Ok(()) } };
    let service = service.ready_when("paper", check).background("worker", |shutdown| async move {
        match settings.failing {
            Failing::None | Failing::Unready => shutdown.cancelled().await,
            Failing::Error => return Err(Fault::msg("out of paper")),
            #[allow(clippy::panic, reason = "the test is about panics")]
            Failing::Panic => panic!("out of cheese"),
        }
        Ok(())
    });
    service
        .serve(Document::openapi(), |app| {
            app.service(traceparent);
        })
        .await
}
