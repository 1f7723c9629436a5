//! The commands of the shopping cart, over HTTP. Each command draws its own consistency boundary over the log.

mod add_item;
mod changes;
mod clear_cart;
mod remove_item;
mod stock;
mod submit_cart;

use std::process::ExitCode;

use cart_events::DomainEvent;
use changes::MaxChanges;
use serde::Deserialize;
use service::{Fault, Program, Service, Slices, Validate, settings::Whole};

static PROGRAM: Program<DomainEvent> =
    Program { name: env!("CARGO_PKG_NAME"), about: "The commands of the shopping cart.", defaults: include_str!("settings.toml"), slices };

fn slices(slices: &mut Slices<'_, '_, DomainEvent>) {
    slices.route(add_item::route);
    slices.route(remove_item::route);
    slices.route(clear_cart::route);
    slices.route(submit_cart::route);
}

fn main() -> ExitCode {
    service::run(&PROGRAM, |settings: Settings, service: Service| -> Result<_, Fault> {
        let (service, _) = service.with_log::<DomainEvent>()?;
        Ok(service.data(MaxChanges(settings.max_cart_changes.as_u32())))
    })
}

#[derive(Debug, Deserialize)]
struct Settings {
    max_cart_changes: Whole<10, 100_000>,
}

impl Validate for Settings {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_openapi_document_matches_the_routes() {
        service::openapi::assert_committed(&PROGRAM.document(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }

    /// The specifications use it.
    #[test]
    fn default_limit_of_changes_is_the_specified_one() {
        let setting = format!("max_cart_changes = {}", MaxChanges::default().0);
        assert!(PROGRAM.defaults.lines().any(|line| line == setting), "{setting}");
    }
}
