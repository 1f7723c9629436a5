//! The read models of the shopping cart, over HTTP, and the automation Archive Item.

mod archive_item;
mod cart_items;
mod carts_with_products;
mod inventories;
mod submitted_cart;
mod unknown_cart;

use std::process::ExitCode;

use archive_item::ArchiveItemAutomation;
use cart_events::DomainEvent;
use cart_items::CartItemsProjection;
use clap::Parser;
use projections::Projection;
use serde::Deserialize;
use service::{Fault, Program, Service, Slices, Validate, settings::Whole};

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
    todo_retention_days: Whole<1, 3_650>,
}

impl Validate for Settings {}

fn start(arguments: &Arguments, settings: &Settings, service: Service) -> Result<Service, Fault> {
    let (service, log) = service.with_log::<DomainEvent>()?;
    let (service, projections) = service.with_projections(&log);
    let settings = projections::Settings {
        batch: i64::from(settings.projection_batch.as_u32()),
        lease: settings.projection_lease_seconds.seconds(),
        throttle: settings.projection_throttle_events_per_second.as_u32(),
        todo_retention: settings.todo_retention_days.days(),
        ..projections::Settings::default()
    };
    let rebuild: &[&str] = if arguments.reset_cart_items { &[CartItemsProjection::NAME] } else { &[] };
    let service = PROGRAM.run_read_models(service, &projections, &settings, rebuild);
    Ok(service.automation(&projections, &settings, ArchiveItemAutomation { log }))
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
