//! The read models of the shopping cart, over HTTP, and the automation Archive Item.

mod archive_item;
mod cart_items;
mod carts_with_products;
mod changed_prices;
mod inventories;
mod submitted_cart_data;
mod unknown_cart;

use std::{process::ExitCode, time::Duration};

use archive_item::ArchiveItemAutomation;
use cart_events::DomainEvent;
use cart_items::CartItemsProjection;
use clap::Parser;
use event_store::SessionTimeouts;
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
    slices.read_model(changed_prices::ChangedPrices).route(changed_prices::route);
    slices.route(submitted_cart_data::route);
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
    // A batch of a projection may take longer than an append: no command waits for it.
    let timeouts = SessionTimeouts { transaction: Some(Duration::from_secs(30)), ..SessionTimeouts::default() };
    let (service, log) = service.with_log_in::<DomainEvent>(timeouts)?;
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
    Ok(service.automation(&projections, &settings, ArchiveItemAutomation::new(log)))
}

#[cfg(test)]
mod tests {
    use cart_events::examples::Shopping;
    use clap::CommandFactory as _;
    use event_store::{Metadata, Position, Recorded};
    use sqlx::Connection as _;
    use test_support::TestLog;

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

    /// One cart that is changed this often.
    fn busy_cart(changes: usize) -> Vec<DomainEvent> {
        let cart = Shopping::new();
        // Each turn has other items.
        let turns = std::iter::repeat_with(|| Shopping { cart_id: cart.cart_id, ..Shopping::new() });
        let turn = |turn: Shopping| {
            [
                turn.added(0),
                turn.added(1),
                turn.removed(0),
                turn.added(2),
                turn.archived(1),
                turn.added(3),
                turn.cleared(),
                turn.price_changed(2),
            ]
        };
        [cart.created()].into_iter().chain(turns.flat_map(turn)).take(changes).collect()
    }

    /// Returns how much longer a batch with ten times the changes of one cart takes.
    async fn growth<P: projections::Projection<Log = DomainEvent>>(projection: impl Fn(&TestLog<DomainEvent>) -> P) -> f64 {
        let mut fastest = [f64::MAX; 2];
        for (changes, fastest) in [1_000, 10_000].into_iter().zip(&mut fastest) {
            let log = TestLog::<DomainEvent>::create().await;
            let events = (1..).map(Position).zip(busy_cart(changes));
            let batch: Vec<Recorded<P::Event>> = events
                .filter_map(|(position, event)| {
                    let event = event.try_into().ok()?;
                    Some(Recorded { position, event, metadata: Metadata::default(), recorded_at: time::OffsetDateTime::UNIX_EPOCH })
                })
                .collect();
            let projection = projection(&log);
            for _ in 0..3 {
                let mut connection = log.store.connection().await.unwrap();
                let mut transaction = connection.begin().await.unwrap();
                sqlx::query("SELECT set_config('search_path', 'projection_a, automation, public', true)")
                    .execute(&mut *transaction)
                    .await
                    .unwrap();
                let started = std::time::Instant::now();
                projection.apply(&mut transaction, &batch).await.unwrap();
                *fastest = fastest.min(started.elapsed().as_secs_f64());
                transaction.rollback().await.unwrap();
            }
        }
        fastest[1] / fastest[0]
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn batch_of_one_cart_takes_time_in_proportion_to_its_changes() {
        // Ten times is in proportion, a hundred times is quadratic.
        for (name, growth) in [
            (CartItemsProjection::NAME, growth(|_| CartItemsProjection).await),
            (carts_with_products::CartsWithProducts::NAME, growth(|_| carts_with_products::CartsWithProducts).await),
            (ArchiveItemAutomation::NAME, growth(|log| ArchiveItemAutomation::new(log.store.clone())).await),
        ] {
            assert!(growth < 30.0, "{name}: {growth:.0} times as long");
        }
    }

    /// A stream of a route, as a client reads it.
    struct Events {
        body: std::pin::Pin<Box<actix_web::body::BoxBody>>,
        text: String,
    }

    impl Events {
        /// Waits until the newest answer is as wanted. Returns how many answers came before it.
        async fn until(&mut self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> usize {
            use actix_web::body::MessageBody as _;
            let reading = async {
                let mut before = 0;
                loop {
                    while let Some((event, rest)) = self.text.split_once("\n\n") {
                        let data =
                            event.lines().find_map(|line| line.strip_prefix("data: ")).map(|data| serde_json::from_str(data).unwrap());
                        self.text = rest.to_owned();
                        if let Some(data) = data {
                            if wanted(&data) {
                                return before;
                            }
                            before += 1;
                        }
                    }
                    let chunk = std::future::poll_fn(|context| self.body.as_mut().poll_next(context)).await;
                    self.text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
                }
            };
            tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap_or_else(|_| panic!("never: {what}"))
        }
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn read_models_push_each_change() {
        use actix_web::{App, test, web::Data};
        use projections::Settings;

        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let other = cart.other_cart();
        log.append(cart.with_items(1)).await;
        let stop = service::CancellationToken::new();
        let running = [
            tokio::spawn(log.projections.run(CartItemsProjection, Settings::default(), stop.clone())),
            tokio::spawn(log.projections.run(carts_with_products::CartsWithProducts, Settings::default(), stop.clone())),
            tokio::spawn(log.projections.run(inventories::Inventories, Settings::default(), stop.clone())),
            tokio::spawn(log.projections.run(changed_prices::ChangedPrices, Settings::default(), stop.clone())),
        ];
        let app = App::new()
            .app_data(Data::new(log.store.clone()))
            .app_data(Data::new(log.projections.clone()))
            .app_data(Data::new(service::Changes::of(&log.store)))
            .service(cart_items::live)
            .service(cart_items::projected)
            .service(submitted_cart_data::route)
            .service(carts_with_products::route)
            .service(inventories::route)
            .service(changed_prices::route);
        let app = test::init_service(app).await;
        let head = log.store.head().await.unwrap();
        let open = async |path: String| {
            let request = test::TestRequest::get().uri(&format!("{path}?min_position={head}&timeout=20"));
            let answer = test::call_service(&app, request.insert_header(("accept", "text/event-stream")).to_request()).await;
            assert_eq!(answer.status(), 200, "{path}");
            Events { body: Box::pin(answer.into_body()), text: String::new() }
        };
        let (id, product) = (cart.cart_id, cart.product(0));
        let mut live = open(format!("/{id}/cartitems")).await;
        let mut projected = open(format!("/{id}/cartitemsfromdb")).await;
        let mut submitted = open(format!("/{id}/submittedcart")).await;
        let mut with_product = open(format!("/cartswithproducts/{product}")).await;
        let mut inventory = open(format!("/inventories/{product}")).await;
        let mut price = open(format!("/changedprices/{product}")).await;
        let items = |wanted: usize| move |answer: &serde_json::Value| answer["data"].as_array().unwrap().len() == wanted;
        let carts = |wanted: usize| move |answer: &serde_json::Value| answer.as_array().unwrap().len() == wanted;
        assert_eq!(live.until("the first answer", items(1)).await, 0);
        assert_eq!(projected.until("the first answer", items(1)).await, 0);
        assert_eq!(submitted.until("the first answer", serde_json::Value::is_null).await, 0);
        assert_eq!(with_product.until("the first answer", carts(1)).await, 0);
        inventory.until("the first answer", serde_json::Value::is_null).await;
        price.until("the first answer", serde_json::Value::is_null).await;

        log.append([cart.added(1), cart.inventory(0, 3), cart.price_changed(0)]).await;
        live.until("two items", items(2)).await;
        projected.until("two items", items(2)).await;
        inventory.until("an inventory", |answer| answer["inventory"] == 3).await;
        price.until("a price", |answer| answer["new_price"] == "8.00").await;
        // Another cart gets the product, and leaves again: the last event names the cart only.
        log.append(other.with_items(1)).await;
        with_product.until("two carts", carts(2)).await;
        log.append([other.cleared()]).await;
        with_product.until("one cart", carts(1)).await;
        log.append([cart.submitted(2)]).await;
        submitted.until("the submission", |answer| answer["total_price"] == "21.20").await;
        with_product.until("no cart", carts(0)).await;

        let request = test::TestRequest::get().uri(&format!("/{}/cartitems", other.other_cart().cart_id));
        let answer = test::call_service(&app, request.insert_header(("accept", "text/event-stream")).to_request()).await;
        assert_eq!(answer.status(), 404);
        drop((live, projected, submitted, with_product, inventory, price));
        stop.cancel();
        for task in running {
            task.await.unwrap().unwrap();
        }
    }
}
