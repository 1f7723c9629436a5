//! The read models of the shopping cart, over HTTP and in tables, and the automation Archive Item.

mod archive_item;
mod cart_items;
mod carts_with_products;
mod inventories;
mod submitted_cart;

use std::{process::ExitCode, sync::Arc, time::Duration};

use actix_web::{http::StatusCode, web};
use cart_events::{CartId, DomainEvent};
use clap::Parser;
use event_store::Position;
use projections::{Projection, Projections, rebuild, todo};
use serde::Deserialize;
use service::{At, CancellationToken, Fault, HttpError, Service, Validate, open_log, settings::Whole};
use tokio::sync::watch;
use utoipa::OpenApi;

/// The read models of the shopping cart, and the automation Archive Item.
#[derive(Debug, Parser)]
#[command(version = service::VERSION)]
struct Arguments {
    #[command(flatten)]
    common: service::Arguments,
    /// Makes Cart Items anew at start, beside the one in service, which answers until the new one has caught up.
    #[arg(short, long)]
    reset_cart_items: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let common = arguments.common.clone();
    service::run("cart-projections", &common, include_str!("settings.toml"), move |settings, service| start(arguments, settings, service))
}

#[derive(Debug, Deserialize)]
struct Settings {
    projection_batch: Whole<1, 100_000>,
    projection_lease_seconds: Whole<1, 60>,
    projection_throttle_events_per_second: Whole<0, 1_000_000>,
}

impl Validate for Settings {}

async fn start(arguments: Arguments, settings: Settings, service: Service) -> Result<(), Fault> {
    let log = open_log::<DomainEvent>(service.settings())?;
    let projecting = projections::Settings {
        batch: i64::from(settings.projection_batch.as_u32()),
        lease: settings.projection_lease_seconds.seconds(),
        throttle: settings.projection_throttle_events_per_second.as_u32(),
        ..projections::Settings::default()
    };
    // Longer than an attempt may take: nobody else takes a to-do up while one goes on.
    let lease = service.settings().command_timeout_milliseconds.milliseconds() + Duration::from_secs(3);
    let archived = Arc::new(watch::Sender::new(Position::START));
    let (ready, archive, asked) = (log.clone(), log.clone(), archived.subscribe());
    let projections = Projections::new(log.clone());
    let lag = service::lag::of(&projections);
    let service = service.ready_when("log", move || {
        let log = ready.clone();
        async move { log.ready().await }
    });
    let service = run(service, &projections, &projecting, cart_items::CartItemsProjection, arguments.reset_cart_items, Arc::default());
    let service = run(service, &projections, &projecting, carts_with_products::CartsWithProducts, false, Arc::default());
    let service = run(service, &projections, &projecting, inventories::Inventories, false, Arc::default());
    run(service, &projections, &projecting, archive_item::ArchiveItemAutomation, false, archived)
        .background("archive_item to-dos", move |shutdown: CancellationToken| async move {
            let settings = todo::Settings { lease, max_backoff: Duration::from_secs(5), ..todo::Settings::default() };
            let attempt = |todo| archive_item::attempt(archive.clone(), todo);
            todo::work(archive.pool().clone(), archive_item::ArchiveItemAutomation::NAME, settings, asked, shutdown, attempt).await;
            Ok(())
        })
        .serve(Api::openapi(), move |app: &mut web::ServiceConfig| {
            app.app_data(web::Data::new(log.clone()))
                .app_data(web::Data::new(projections.clone()))
                .app_data(lag.clone())
                .service(service::lag::route)
                .service(carts_with_products::route)
                .service(inventories::route)
                .service(cart_items::live)
                .service(cart_items::projected)
                .service(submitted_cart::route);
        })
        .await
}

/// Runs a projection in the background; made anew first, where that is asked for.
fn run<P: Projection<Log = DomainEvent>>(
    service: Service,
    projections: &Projections<DomainEvent>,
    settings: &projections::Settings,
    projection: P,
    anew: bool,
    applied: Arc<watch::Sender<Position>>,
) -> Service {
    let (projections, settings) = (projections.clone(), settings.clone());
    let known = projections.clone();
    // Before it is known, its read model cannot answer.
    let service = service.ready_when(P::NAME, move || {
        let projections = known.clone();
        async move {
            match projections.registered(P::NAME).await {
                Ok(true) => Ok(()),
                Ok(false) => Err("its first start".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        }
    });
    service.background(P::NAME, move |shutdown: CancellationToken| async move {
        // Asked for once, and waited for as everything is.
        while anew && projections.store().wait_ready(&shutdown).await.is_ok() {
            match rebuild::<P>(projections.store().pool()).await {
                Err(error) if error.is_unavailable() => tracing::warn!(%error, "the projection cannot be made anew yet"),
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
        Ok(projections.run(projection, settings, applied, shutdown).await?)
    })
}

fn unknown_cart(cart_id: CartId, at: At) -> HttpError {
    let message = match at.at {
        Some(at) => format!("there was no cart {cart_id} at position {at}"),
        None => format!("there is no cart {cart_id}"),
    };
    HttpError::refusal(StatusCode::NOT_FOUND, "unknown_cart", message)
}

/// The read models of Cartlog's shopping cart.
#[derive(OpenApi)]
#[openapi(
    info(title = "cart-projections"),
    paths(
        cart_items::live,
        cart_items::projected,
        submitted_cart::route,
        carts_with_products::route,
        inventories::route,
        service::lag::route
    )
)]
struct Api;

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_its_own_and_every_services() {
        let mut command = Arguments::command();
        command.build();
        for argument in ["healthcheck", "reset_cart_items", "version"] {
            assert!(command.get_arguments().any(|one| one.get_id() == argument), "{argument}");
        }
    }

    /// What that comes to, event-store's tests hold.
    #[test]
    fn the_built_in_lease_is_that_by_which_a_share_is_taken_over_within_five_seconds() {
        let lease = format!("projection_lease_seconds = {}", projections::Settings::default().lease.as_secs());
        assert!(include_str!("settings.toml").lines().any(|line| line == lease), "{lease}");
    }

    #[test]
    fn the_committed_openapi_document_is_the_served_one() {
        service::openapi::assert_committed(&Api::openapi(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
