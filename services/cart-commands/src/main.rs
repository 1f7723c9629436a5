//! The commands of the shopping cart, over HTTP. Each draws its own consistency boundary over the log.

mod add_item;
mod clear_cart;
mod remove_item;
mod stock;
mod submit_cart;

use std::process::ExitCode;

use actix_web::web;
use cart_events::DomainEvent;
use service::{Arguments, Fault, Service, open_log, settings::NoSettings};
use utoipa::OpenApi;

fn main() -> ExitCode {
    let arguments = Arguments::parse("cart-commands", "The commands of the shopping cart, over HTTP");
    service::run("cart-commands", &arguments, include_str!("settings.toml"), start)
}

async fn start(_: NoSettings, service: Service) -> Result<(), Fault> {
    let log = open_log::<DomainEvent>(service.settings())?;
    let ready = log.clone();
    service
        .ready_when("log", move || {
            let log = ready.clone();
            async move { log.ready().await }
        })
        .serve(Api::openapi(), move |app: &mut web::ServiceConfig| {
            app.app_data(web::Data::new(log.clone()))
                .service(add_item::route)
                .service(remove_item::route)
                .service(clear_cart::route)
                .service(submit_cart::route);
        })
        .await
}

/// The commands of Cartlog's shopping cart.
#[derive(OpenApi)]
#[openapi(info(title = "cart-commands"), paths(add_item::route, remove_item::route, clear_cart::route, submit_cart::route))]
struct Api;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_openapi_document_is_the_served_one() {
        service::openapi::assert_committed(&Api::openapi(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
