//! Cart Items: the items of a cart and their total price, in two forms with the same answer. The live form is folded from the log when it
//! is requested. The projected form is a table that can be rebuilt.

use std::collections::BTreeMap;

use actix_web::{get, middleware::from_fn, web};
use async_trait::async_trait;
use cart_events::{CartId, CartStream, Description, DomainEvent, Image, ItemId, Price, ProductId, Total};
use disintegrate::StateQuery;
use event_store::{EventStore, Position, Recorded, State};
use projections::{Projection, Projections, Query};
use serde::Serialize;
use service::{At, ErrorBody, Fault, HttpError, MinPosition, PathValue};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::unknown_cart::unknown_cart;

/// Answers a cart's items, folded from the log as it is now, or as it was at a position.
#[utoipa::path(
    operation_id = "cart_items",
    tag = "public",
    params(("cart_id" = CartId, Path), At, MinPosition),
    responses(
        (status = 200, content((CartItems = "application/json"), (CartItems = "text/event-stream"))),
        (status = 404, description = "unknown_cart", body = ErrorBody),
        (status = 503, description = "behind", body = ErrorBody)
    )
)]
#[get("/{cart_id}/cartitems", wrap = "from_fn(service::live)")]
pub(crate) async fn live(
    PathValue(cart_id): PathValue<CartId>,
    at: At,
    min: MinPosition,
    log: web::Data<EventStore<DomainEvent>>,
) -> Result<web::Json<CartItems>, HttpError> {
    let cart = min.live(&log, "cart_items_live", Cart { cart_id, exists: false, items: vec![] }, at).await?;
    cart.exists.then(|| web::Json(CartItems::new(cart_id, cart.items))).ok_or_else(|| unknown_cart(cart_id, at))
}

/// Answers a cart's items from the projection. An event written a moment ago may be missing unless `min_position` names it.
#[utoipa::path(
    operation_id = "cart_items_from_db",
    tag = "public",
    params(("cart_id" = CartId, Path), MinPosition),
    responses(
        (status = 200, content((CartItems = "application/json"), (CartItems = "text/event-stream"))),
        (status = 404, description = "unknown_cart", body = ErrorBody),
        (status = 503, description = "behind, parked", body = ErrorBody)
    )
)]
#[get("/{cart_id}/cartitemsfromdb", wrap = "from_fn(service::live)")]
pub(crate) async fn projected(
    PathValue(cart_id): PathValue<CartId>,
    min: MinPosition,
    projections: web::Data<Projections<DomainEvent>>,
) -> Result<web::Json<CartItems>, HttpError> {
    let query = Query::new(
        "SELECT i.item_id, i.product_id, i.description, i.image, i.price, i.fingerprint
         FROM {build}.cart_items_cart c LEFT JOIN {build}.cart_items_item i USING (cart_id) WHERE c.cart_id = $1 ORDER BY i.position",
    );
    let rows: Vec<Row> = min.projected(&projections, CartItemsProjection::NAME, Some(cart_id.uuid()), query.bind(cart_id.uuid())).await?;
    if rows.is_empty() {
        return Err(unknown_cart(cart_id, At::default()));
    }
    let of_items = rows
        .into_iter()
        .filter_map(|row| Some((row.item_id?, row.product_id?, row.description?, row.image?, row.price?, row.fingerprint?)));
    let items = of_items.map(|(item_id, product_id, description, image, price, fingerprint)| {
        Ok(Item {
            cart_id,
            description: Description::try_from(description)?,
            image: Image::try_from(image)?,
            price: Price::try_from(price)?,
            item_id: ItemId::from_log(item_id),
            product_id: ProductId::from_log(product_id),
            fingerprint,
        })
    });
    let items = items
        .collect::<Result<_, Fault>>()
        .map_err(|error| HttpError::fault(error.context(format!("a row of cart_items_item of cart {cart_id} is no item"))))?;
    Ok(web::Json(CartItems::new(cart_id, items)))
}

/// An item of a cart. A cart without items is one row without an item.
#[derive(sqlx::FromRow)]
struct Row {
    item_id: Option<Uuid>,
    product_id: Option<Uuid>,
    description: Option<String>,
    image: Option<String>,
    price: Option<rust_decimal::Decimal>,
    fingerprint: Option<String>,
}

/// The answer of both forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(crate) struct CartItems {
    cart_id: CartId,
    total_price: Total,
    /// In the order they were added.
    data: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[schema(as = CartItem)]
pub(crate) struct Item {
    cart_id: CartId,
    description: Description,
    image: Image,
    price: Price,
    item_id: ItemId,
    product_id: ProductId,
    fingerprint: String,
}

impl CartItems {
    fn new(cart_id: CartId, data: Vec<Item>) -> Self {
        Self { cart_id, total_price: data.iter().map(|item| &item.price).sum(), data }
    }
}

/// The live form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
pub(crate) struct Cart {
    #[id]
    cart_id: CartId,
    exists: bool,
    items: Vec<Item>,
}

impl State for Cart {
    fn mutate(&mut self, event: CartStream, _: Position) {
        match event {
            CartStream::CartCreated { .. } => self.exists = true,
            CartStream::ItemAdded { cart_id, item_id, product_id, description, image, price, device_fingerprint } => {
                self.items.push(Item { cart_id, description, image, price, item_id, product_id, fingerprint: device_fingerprint });
            }
            CartStream::ItemRemoved { item_id, .. } | CartStream::ItemArchived { item_id, .. } => {
                self.items.retain(|item| item.item_id != item_id);
            }
            CartStream::CartCleared { .. } => self.items.clear(),
            CartStream::CartSubmitted { .. } => {}
        }
    }
}

/// The projected form.
pub(crate) struct CartItemsProjection;

#[async_trait]
impl Projection for CartItemsProjection {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "cart_items";
    const TABLES: &'static [&'static str] = &["cart_items_cart", "cart_items_item"];
    const KEYED_BY: Option<&'static str> = Some("cart_id");

    fn key(event: &CartStream) -> Option<Uuid> {
        Some(event.cart_id().uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        let mut created = vec![];
        let mut added = Added::default();
        let (mut removed_carts, mut removed_items) = (vec![], vec![]);
        // The last time in a batch suffices: of many, each would look at all items of the cart.
        let mut cleared = BTreeMap::new();
        for event in batch {
            match &event.event {
                CartStream::CartCreated { cart_id } => created.push(cart_id.uuid()),
                CartStream::ItemAdded { cart_id, item_id, product_id, description, image, price, device_fingerprint } => {
                    added.carts.push(cart_id.uuid());
                    added.items.push(item_id.uuid());
                    added.products.push(product_id.uuid());
                    added.descriptions.push(description.as_ref());
                    added.images.push(image.as_ref());
                    added.prices.push(price.decimal());
                    added.fingerprints.push(device_fingerprint);
                    added.positions.push(event.position.0);
                }
                CartStream::ItemRemoved { cart_id, item_id } | CartStream::ItemArchived { cart_id, item_id, .. } => {
                    removed_carts.push(cart_id.uuid());
                    removed_items.push(item_id.uuid());
                }
                CartStream::CartCleared { cart_id } => {
                    cleared.insert(cart_id.uuid(), event.position.0);
                }
                // A submitted cart keeps showing its items.
                CartStream::CartSubmitted { .. } => {}
            }
        }
        if !created.is_empty() {
            sqlx::query!("INSERT INTO cart_items_cart SELECT unnest($1::uuid[])", &created).execute(&mut *transaction).await?;
        }
        if !added.items.is_empty() {
            // One unnest per column: a single unnest in FROM would materialize every array first.
            sqlx::query!(
                "INSERT INTO cart_items_item (cart_id, item_id, product_id, description, image, price, fingerprint, position)
                 SELECT unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::uuid[]), unnest($4::text[]), unnest($5::text[]),
                        unnest($6::numeric[]), unnest($7::text[]), unnest($8::bigint[])",
                &added.carts,
                &added.items,
                &added.products,
                &added.descriptions as &[&str],
                &added.images as &[&str],
                &added.prices,
                &added.fingerprints as &[&str],
                &added.positions
            )
            .execute(&mut *transaction)
            .await?;
        }
        // The order within the batch does not matter: an item_id that left its cart never returns.
        if !removed_items.is_empty() {
            sqlx::query!(
                "DELETE FROM cart_items_item i USING unnest($1::uuid[], $2::uuid[]) AS r(cart_id, item_id)
                 WHERE i.cart_id = r.cart_id AND i.item_id = r.item_id",
                &removed_carts,
                &removed_items
            )
            .execute(&mut *transaction)
            .await?;
        }
        if !cleared.is_empty() {
            let (carts, positions): (Vec<_>, Vec<_>) = cleared.into_iter().unzip();
            sqlx::query!(
                "DELETE FROM cart_items_item i USING unnest($1::uuid[], $2::bigint[]) AS c(cart_id, position)
                 WHERE i.cart_id = c.cart_id AND i.position < c.position",
                &carts,
                &positions
            )
            .execute(&mut *transaction)
            .await?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Added<'a> {
    carts: Vec<Uuid>,
    items: Vec<Uuid>,
    products: Vec<Uuid>,
    descriptions: Vec<&'a str>,
    images: Vec<&'a str>,
    prices: Vec<rust_decimal::Decimal>,
    fingerprints: Vec<&'a str>,
    positions: Vec<i64>,
}

#[cfg(test)]
mod specifications {
    use actix_web::{App, test, web::Data};
    use event_store::{StoreSettings, fold_history};
    use projections::Settings;
    use test_support::TestLog;

    use super::*;
    use cart_events::examples::Shopping;

    fn folded(cart: &Shopping, history: impl IntoIterator<Item = DomainEvent>) -> CartItems {
        let history: Vec<_> = (1..).map(Position).zip(history).collect();
        let folded = fold_history(Cart { cart_id: cart.cart_id, exists: false, items: vec![] }, &history).unwrap();
        assert!(folded.exists);
        CartItems::new(cart.cart_id, folded.items)
    }

    fn items(shown: &CartItems) -> Vec<ItemId> {
        shown.data.iter().map(|item| item.item_id).collect()
    }

    #[test]
    async fn shows_items_in_the_order_they_were_added() {
        let cart = Shopping::new();
        let shown = folded(&cart, [cart.created(), cart.added(2), cart.added(0), cart.added(1)]);
        assert_eq!(items(&shown), [cart.item(2), cart.item(0), cart.item(1)]);
        assert_eq!(shown.total_price.to_string(), "33.30");
    }

    #[test]
    async fn hides_items_that_left() {
        let cart = Shopping::new();
        assert_eq!(items(&folded(&cart, cart.with_items(2).chain([cart.removed(0)]))), [cart.item(1)]);
        assert_eq!(items(&folded(&cart, cart.with_items(2).chain([cart.archived(1)]))), [cart.item(0)]);
        assert_eq!(items(&folded(&cart, cart.with_items(2).chain([cart.cleared(), cart.added(2)]))), [cart.item(2)]);
    }

    #[test]
    async fn shows_the_items_of_a_submitted_cart() {
        let cart = Shopping::new();
        assert_eq!(items(&folded(&cart, cart.with_items(2).chain([cart.submitted(2)]))), [cart.item(0), cart.item(1)]);
    }

    #[test]
    async fn ignores_inventory_changes() {
        let cart = Shopping::new();
        assert_eq!(folded(&cart, cart.with_items(1).chain([cart.inventory(0, 0)])), folded(&cart, cart.with_items(1)));
    }

    #[test]
    async fn shows_an_emptied_cart_with_total_zero() {
        let cart = Shopping::new();
        for emptied in [cart.cleared(), cart.removed(0), cart.archived(0)] {
            let shown = folded(&cart, cart.with_items(1).chain([emptied]));
            assert_eq!(serde_json::json!(shown), serde_json::json!({"cart_id": cart.cart_id, "total_price": "0.00", "data": []}));
        }
    }

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn answers_min_position_and_at() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let shown = log.append(cart.with_items(2)).await.0;
        log.project(CartItemsProjection, Settings::default()).await;
        let submitted = log.append([cart.removed(0), cart.submitted(1)]).await.0;
        let app = App::new().app_data(Data::new(log.store.clone())).app_data(Data::new(log.projections.clone()));
        let app = test::init_service(app.service(live).service(projected).service(crate::submitted_cart_data::route)).await;
        let ask = async |form: &str, query: String| -> (u16, serde_json::Value) {
            let request = test::TestRequest::get().uri(&format!("/{}/{form}?{query}", cart.cart_id)).to_request();
            let answer = test::call_service(&app, request).await;
            (answer.status().as_u16(), test::read_body_json(answer).await)
        };
        let shown_items = |answer: &serde_json::Value| answer["data"].as_array().map(Vec::len);
        let behind = |message: String| (503, serde_json::json!({"code": "behind", "message": message}));
        let beyond = |wanted: i64| {
            behind(format!("the log ends at position {}, before {wanted}; try again, with a position that a command answered", wanted - 1))
        };

        // Nobody waits for a position that the log does not have, however long a query may wait.
        let asked = std::time::Instant::now();
        assert_eq!(ask("cartitemsfromdb", format!("min_position={}&timeout=30", submitted + 1)).await, beyond(submitted + 1));
        assert!(asked.elapsed() < std::time::Duration::from_secs(5), "{:?}", asked.elapsed());
        // The projection does not run.
        let (status, answer) = ask("cartitemsfromdb", format!("min_position={shown}")).await;
        assert_eq!((status, shown_items(&answer)), (200, Some(2)));
        let answer = ask("cartitemsfromdb", format!("min_position={submitted}&timeout=0")).await;
        assert_eq!(answer, behind(format!("cart_items reached position {shown} but not {submitted} within 0 s; try again")));

        let (status, answer) = ask("cartitems", format!("min_position={submitted}")).await;
        assert_eq!((status, shown_items(&answer)), (200, Some(1)));
        for form in ["cartitems", "submittedcart"] {
            for query in ["min_position", "at"] {
                let answer = ask(form, format!("{query}={}", submitted + 1)).await;
                assert_eq!(answer, beyond(submitted + 1), "{form} {query}");
            }
            let answer = ask(form, format!("at={shown}&min_position={}", submitted + 1)).await;
            assert_eq!(answer, beyond(submitted + 1), "{form}");
            let (status, answer) = ask(form, "at=0".into()).await;
            assert_eq!((status, answer["code"].as_str()), (404, Some("unknown_cart")), "{form}");
        }
        for (at, items) in [(1, 0), (2, 1), (3, 2), (4, 1), (5, 1)] {
            let (status, answer) = ask("cartitems", format!("at={at}&min_position=2")).await;
            assert_eq!((status, shown_items(&answer)), (200, Some(items)), "at {at}");
            let (status, answer) = ask("submittedcart", format!("at={at}")).await;
            assert_eq!((status, answer.is_null()), (200, at < submitted), "at {at}");
        }
    }

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn live_read_of_an_old_cart_grows_with_its_changes_only() {
        let mut fastest = vec![];
        for changes in [1_000, 10_000] {
            let (log, cart) = (TestLog::<DomainEvent>::create().await, Shopping::new());
            let history = (0..changes / 2).flat_map(|_| {
                let item = Shopping { cart_id: cart.cart_id, ..Shopping::new() };
                [item.added(0), item.removed(0)]
            });
            let history: Vec<_> = history.chain([cart.added(1)]).collect();
            for part in history.chunks(1_000) {
                log.append(part.to_vec()).await;
            }
            let mut times = vec![];
            for _ in 0..3 {
                let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
                store.ready().await.unwrap();
                let started = std::time::Instant::now();
                let (read, _) = store.read(Cart { cart_id: cart.cart_id, exists: false, items: vec![] }).await.unwrap();
                times.push(started.elapsed());
                assert_eq!(read.items.len(), 1);
            }
            fastest.push(times.into_iter().min().unwrap());
        }
        println!("1,000 changes: {:?}; 10,000: {:?}", fastest[0], fastest[1]);
        // A hundred times, if each change cost as much as there are changes.
        assert!(fastest[1] < 40 * fastest[0], "{fastest:?}");
    }

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn answers_alike_in_both_forms() {
        let log = TestLog::<DomainEvent>::create().await;
        let carts: Vec<_> = (0..6).map(|_| Shopping::new()).collect();
        log.append(carts[0].with_items(3)).await;
        log.append(carts[1].with_items(3).chain([carts[1].removed(1), carts[1].added(3)])).await;
        log.append(carts[2].with_items(2).chain([carts[2].cleared(), carts[2].added(2), carts[2].archived(2), carts[2].added(3)])).await;
        log.append(carts[3].with_items(1).chain([carts[3].submitted(1), carts[3].inventory(0, 0)])).await;
        log.append(carts[4].with_items(1).chain([carts[4].cleared()])).await;
        for batch in [1_000, 3, 1] {
            projections::rebuild::<CartItemsProjection>(log.store.pool()).await.unwrap();
            log.project(CartItemsProjection, Settings { batch, ..Settings::default() }).await;
            let app = test::init_service(
                App::new()
                    .app_data(Data::new(log.store.clone()))
                    .app_data(Data::new(log.projections.clone()))
                    .service(live)
                    .service(projected),
            )
            .await;
            for cart in &carts {
                let mut answers = vec![];
                for form in ["cartitems", "cartitemsfromdb"] {
                    let request = test::TestRequest::get().uri(&format!("/{}/{form}", cart.cart_id)).to_request();
                    let answer = test::call_service(&app, request).await;
                    answers.push((answer.status(), test::read_body(answer).await));
                }
                assert_eq!(answers[0], answers[1]);
                assert_eq!(answers[0].0, if cart.cart_id == carts[5].cart_id { 404 } else { 200 });
            }
        }
    }

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn answers_503_for_a_parked_cart_only() {
        let log = TestLog::<DomainEvent>::create().await;
        let (parked, other) = (Shopping::new(), Shopping::new());
        log.append(parked.with_items(1).chain(other.with_items(1))).await;
        log.project(CartItemsProjection, Settings::default()).await;
        sqlx::query("INSERT INTO parked_key (name, build, key, position, error) SELECT 'cart_items', 'projection_a', $1, 2, 'a test'")
            .bind(parked.cart_id.uuid())
            .execute(log.store.pool())
            .await
            .unwrap();
        let app = test::init_service(
            App::new().app_data(Data::new(log.store.clone())).app_data(Data::new(log.projections.clone())).service(live).service(projected),
        )
        .await;
        let ask = async |uri: String| {
            let answer = test::call_service(&app, test::TestRequest::get().uri(&uri).to_request()).await;
            let retry_after = answer.headers().get("retry-after").map(|seconds| seconds.to_str().unwrap().to_owned());
            (answer.status().as_u16(), retry_after, test::read_body_json::<serde_json::Value, _>(answer).await)
        };
        // A parked key does not wait.
        for query in ["", "?min_position=1", "?min_position=9&timeout=30"] {
            let (status, retry_after, body) = ask(format!("/{}/cartitemsfromdb{query}", parked.cart_id)).await;
            assert_eq!((status, retry_after.as_deref(), body["code"].as_str()), (503, Some("30"), Some("parked")), "{query}");
            assert!(body["message"].as_str().unwrap().contains(&parked.cart_id.to_string()), "{body}");
        }
        assert_eq!(ask(format!("/{}/cartitemsfromdb", other.cart_id)).await.0, 200);
        assert_eq!(ask(format!("/{}/cartitems", parked.cart_id)).await.0, 200, "the live form needs no table");
    }

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn fails_on_a_row_that_is_no_item() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        log.append(cart.with_items(2)).await;
        log.project(CartItemsProjection, Settings::default()).await;
        let app = test::init_service(App::new().app_data(Data::new(log.projections.clone())).service(projected)).await;
        for wrong in ["description = ''", "price = -1"] {
            let spoil = format!("UPDATE projection_a.cart_items_item SET {wrong} WHERE item_id = $1");
            sqlx::query(&spoil).bind(cart.item(1).uuid()).execute(log.store.pool()).await.unwrap();
            let request = test::TestRequest::get().uri(&format!("/{}/cartitemsfromdb", cart.cart_id)).to_request();
            let answer = test::call_service(&app, request).await;
            assert_eq!(answer.status(), 500, "{wrong}");
            let error = answer.response().error().map(ToString::to_string).unwrap_or_default();
            assert!(error.starts_with("fault"), "{error}");
        }
    }
}
