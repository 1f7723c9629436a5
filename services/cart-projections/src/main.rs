//! The read models of the shopping cart, over HTTP, and the automation Archive Item.

mod archive_item;
mod cart_items;
mod carts_with_products;
mod inventories;
mod submitted_cart;
mod unknown_cart;

use std::{process::ExitCode, sync::Arc, time::Duration};

use cart_events::DomainEvent;
use cart_items::CartItemsProjection;
use clap::Parser;
use event_store::Position;
use projections::{Projection, todo};
use serde::Deserialize;
use service::{CancellationToken, Fault, Program, Service, Slices, Validate, settings::Whole};
use tokio::sync::watch;

static PROGRAM: Program<DomainEvent> = Program {
    name: env!("CARGO_PKG_NAME"),
    about: "The read models of the shopping cart, and the automation Archive Item.",
    defaults: include_str!("settings.toml"),
    slices,
};

fn slices(slices: &mut Slices<'_, '_, DomainEvent>) {
    slices.read_model(CartItemsProjection).route(cart_items::live).route(cart_items::projected);
    slices.read_model(carts_with_products::CartsWithProducts).route(carts_with_products::route);
    slices.read_model(inventories::Inventories).route(inventories::route);
    slices.route(submitted_cart::route);
    slices.route(service::lag::route);
}

/// The read models of the shopping cart, and the automation Archive Item.
#[derive(Debug, Parser)]
#[command(version = service::VERSION)]
struct Arguments {
    #[command(flatten)]
    common: service::Arguments,
    /// Rebuild Cart Items at start. The build in service answers until the new build has caught up
    #[arg(short, long)]
    reset_cart_items: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let common = arguments.common.clone();
    service::run_with_arguments(&PROGRAM, &common, |settings, service| start(&arguments, &settings, service))
}

#[derive(Debug, Deserialize)]
struct Settings {
    projection_batch: Whole<1, 100_000>,
    projection_lease_seconds: Whole<1, 60>,
    projection_throttle_events_per_second: Whole<0, 1_000_000>,
}

impl Validate for Settings {}

fn start(arguments: &Arguments, settings: &Settings, service: Service) -> Result<Service, Fault> {
    let (service, log) = service.with_log::<DomainEvent>()?;
    let (service, projections) = service.with_projections(&log);
    let settings = projections::Settings {
        batch: i64::from(settings.projection_batch.as_u32()),
        lease: settings.projection_lease_seconds.seconds(),
        throttle: settings.projection_throttle_events_per_second.as_u32(),
        ..projections::Settings::default()
    };
    let rebuild: &[&str] = if arguments.reset_cart_items { &[CartItemsProjection::NAME] } else { &[] };
    let service = PROGRAM.run_read_models(service, &projections, &settings, rebuild);

    // Longer than an attempt may take, so that no other process takes the to-do over meanwhile.
    let lease = service.settings().command_timeout_milliseconds.milliseconds() + Duration::from_secs(3);
    let archived = Arc::new(watch::Sender::new(Position::START));
    let asked = archived.subscribe();
    Ok(service
        .background(archive_item::ArchiveItemAutomation::NAME, move |shutdown: CancellationToken| async move {
            Ok(projections.run(archive_item::ArchiveItemAutomation, settings, archived, shutdown).await?)
        })
        .background("archive_item to-dos", move |shutdown: CancellationToken| async move {
            let settings = todo::Settings { lease, max_backoff: Duration::from_secs(5), ..todo::Settings::default() };
            let attempt = |todo| archive_item::attempt(log.clone(), todo);
            todo::work(log.pool().clone(), archive_item::ArchiveItemAutomation::NAME, settings, asked, shutdown, attempt).await;
            Ok(())
        }))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_its_own_and_every_services() {
        let mut command = Arguments::command();
        command.build();
        for argument in ["healthcheck", "reset_cart_items", "version"] {
            assert!(command.get_arguments().any(|one| one.get_id() == argument), "{argument}");
        }
    }

    /// The tests of crate `projections` measure a takeover with this lease.
    #[test]
    fn default_lease_is_the_one_that_tests_measure() {
        let lease = format!("projection_lease_seconds = {}", projections::Settings::default().lease.as_secs());
        assert!(include_str!("settings.toml").lines().any(|line| line == lease), "{lease}");
    }

    #[test]
    fn committed_openapi_document_matches_the_routes() {
        service::openapi::assert_committed(&PROGRAM.document(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
