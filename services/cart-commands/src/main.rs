//! The commands of the shopping cart, over HTTP. Each command draws its own consistency boundary over the log.

mod add_item;
mod clear_cart;
mod remove_item;
mod stock;
mod submit_cart;

use std::process::ExitCode;

use cart_events::DomainEvent;
use service::{Fault, Program, Service, Slices, settings::NoSettings};

static PROGRAM: Program<DomainEvent> =
    Program { name: env!("CARGO_PKG_NAME"), about: "The commands of the shopping cart.", defaults: include_str!("settings.toml"), slices };

fn slices(slices: &mut Slices<'_, '_, DomainEvent>) {
    slices.route(add_item::route);
    slices.route(remove_item::route);
    slices.route(clear_cart::route);
    slices.route(submit_cart::route);
}

fn main() -> ExitCode {
    service::run(&PROGRAM, |_: NoSettings, service: Service| -> Result<_, Fault> { Ok(service.with_log::<DomainEvent>()?.0) })
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn committed_openapi_document_matches_the_routes() {
        service::openapi::assert_committed(&PROGRAM.document(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
