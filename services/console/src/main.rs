//! Pages for operators and learners: the event model as a board, carts, the log, projections, and what needs attention.

mod assets;
mod attention;
mod board;
mod carts;
mod confirm;
mod events;
mod log;
mod model;
mod page;
mod projections;
mod query;
mod slices;
#[cfg(test)]
mod testing;
mod watched;

use std::{process::ExitCode, time::Duration};

use cart_events::DomainEvent;
use event_store::SessionTimeouts;
use kafka::Brokers;
use operations::Operator;
use serde::Deserialize;
use service::{Fault, Program, Service, Slices, Validate, settings::Kafka};
use watched::Watched;

/// The navigation.
const TABS: [(&str, &str); 5] = [
    ("Board", "/console"),
    ("Carts", "/console/carts"),
    ("Log", "/console/log"),
    ("Projections", "/console/projections"),
    ("Attention", "/console/attention"),
];

/// Adds each route to what takes them.
macro_rules! pages {
    ($to:expr, $add:ident) => {
        $to.$add($crate::board::root)
            .$add($crate::board::route)
            .$add($crate::slices::route)
            .$add($crate::carts::list_route)
            .$add($crate::carts::route)
            .$add($crate::log::route)
            .$add($crate::log::event_route)
            .$add($crate::projections::list_route)
            .$add($crate::projections::ask_route)
            .$add($crate::projections::change_route)
            .$add($crate::attention::list_route)
            .$add($crate::attention::letter_route)
            .$add($crate::attention::ask_route)
            .$add($crate::attention::change_route)
            .$add($crate::assets::style)
            .$add($crate::assets::script)
            .$add($crate::assets::icon)
            .$add($crate::assets::stream)
    };
}
#[cfg(test)]
pub(crate) use pages;

static PROGRAM: Program<DomainEvent> = Program {
    name: "console",
    about: "Pages for operators and learners: the event model, carts, the log, projections, and what needs attention.",
    defaults: include_str!("settings.toml"),
    slices,
};

fn slices(slices: &mut Slices<'_, '_, DomainEvent>) {
    pages!(slices, route);
}

fn main() -> ExitCode {
    service::run_with_kafka(&PROGRAM, start)
}

#[derive(Debug, Deserialize)]
struct Settings {}

impl Validate for Settings {}

fn start(_: Settings, kafka: Kafka, service: Service) -> Result<Service, Fault> {
    // A page is never waited for longer. Some operations empty tables, and wait for queries that read them.
    let timeouts = SessionTimeouts {
        idle_in_transaction: Duration::from_secs(5),
        transaction: None,
        statement: Some(Duration::from_secs(30)),
        lock: Some(Duration::from_secs(5)),
    };
    let (service, log) = service.with_log_in::<DomainEvent>(timeouts)?;
    let brokers = Brokers::new(&*kafka.kafka_bootstrap_servers, service.name())
        .secured(kafka.security().into_iter().collect())
        .replaced_after(kafka.kafka_replace_client_seconds.seconds());
    let watched = Watched::new(log);
    let stopping = service.stopping().clone();
    let (counting, sampling) = (watched.clone(), watched.clone());
    Ok(service
        .data(watched)
        .data(Operator::new(&brokers)?)
        .data(stopping)
        .data(attention::Recent::default())
        .background("counts", move |stop| counting.count(stop))
        .background("lags", move |stop| sampling.sample(stop)))
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn committed_openapi_document_matches_the_routes() {
        service::openapi::assert_committed(&PROGRAM.document(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
