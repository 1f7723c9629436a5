//! Carts with Products: the carts and items that hold a product.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, get, middleware::from_fn, web};
use async_trait::async_trait;
use cart_events::{CartId, CartStream, DomainEvent, ItemId, ProductId};
use event_store::{Position, Recorded};
use projections::{Projection, Projections, Query};
use serde::Serialize;
use service::{ErrorBody, HttpError, MinPosition, Page, PathValue};
use sqlx::PgConnection;
use uuid::Uuid;

/// Answers the carts and items that hold a product, in the order they were added, page by page. Submitted carts do not count.
#[utoipa::path(
    operation_id = "carts_with_products",
    tag = "internal",
    params(("product_id" = ProductId, Path), Page, MinPosition),
    responses(
        (status = 200, description = "A page.", content(([CartWithProduct] = "application/json"), ([CartWithProduct] = "text/event-stream")),
            headers(("Link" = Option<String>, description = "The next page, if there is one: `</cartswithproducts/…?after=…>; rel=\"next\"`."))),
        (status = 503, description = "behind, parked", body = ErrorBody)
    )
)]
#[get("/cartswithproducts/{product_id}", wrap = "from_fn(service::live)")]
pub(crate) async fn route(
    PathValue(product_id): PathValue<ProductId>,
    page: Page,
    min: MinPosition,
    projections: web::Data<Projections<DomainEvent>>,
) -> Result<HttpResponse, HttpError> {
    // The key is the cart, so the product may be in any segment.
    let query = Query::new(
        "SELECT cart_id, item_id, position FROM {build}.carts_with_products WHERE product_id = $1 AND position > $2
         ORDER BY position LIMIT $3",
    );
    let query = query.bind(product_id.uuid()).bind(page.after().0).bind(page.read());
    let rows: Vec<Row> = min.projected(&projections, CartsWithProducts::NAME, None, query).await?;
    let entries = rows.into_iter().map(|row| {
        let entry = CartWithProduct { cart_id: CartId::from_log(row.cart_id), item_id: ItemId::from_log(row.item_id), product_id };
        (row.position, entry)
    });
    Ok(page.answer(entries.collect()))
}

#[derive(sqlx::FromRow)]
struct Row {
    cart_id: Uuid,
    item_id: Uuid,
    position: Position,
}

/// An item of the product in a cart.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct CartWithProduct {
    cart_id: CartId,
    item_id: ItemId,
    product_id: ProductId,
}

/// The projection.
pub(crate) struct CartsWithProducts;

#[async_trait]
impl Projection for CartsWithProducts {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "carts_with_products";
    const TABLES: &'static [&'static str] = &["carts_with_products"];
    const KEYED_BY: Option<&'static str> = Some("cart_id");

    fn key(event: &CartStream) -> Option<Uuid> {
        Some(event.cart_id().uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        let (mut carts, mut items, mut products, mut positions) = (vec![], vec![], vec![], vec![]);
        let (mut left_carts, mut left_items) = (vec![], vec![]);
        // All items left. The last time in a batch suffices: of many, each would look at all items of the cart.
        let mut emptied = BTreeMap::new();
        for event in batch {
            match &event.event {
                CartStream::CartCreated { .. } => {}
                CartStream::ItemAdded { cart_id, item_id, product_id, .. } => {
                    carts.push(cart_id.uuid());
                    items.push(item_id.uuid());
                    products.push(product_id.uuid());
                    positions.push(event.position.0);
                }
                CartStream::ItemRemoved { cart_id, item_id } | CartStream::ItemArchived { cart_id, item_id, .. } => {
                    left_carts.push(cart_id.uuid());
                    left_items.push(item_id.uuid());
                }
                CartStream::CartCleared { cart_id } | CartStream::CartSubmitted { cart_id, .. } => {
                    emptied.insert(cart_id.uuid(), event.position.0);
                }
            }
        }
        if !items.is_empty() {
            sqlx::query!(
                "INSERT INTO carts_with_products (cart_id, item_id, product_id, position)
                 SELECT unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::uuid[]), unnest($4::bigint[])",
                &carts,
                &items,
                &products,
                &positions
            )
            .execute(&mut *transaction)
            .await?;
        }
        // The order within the batch does not matter: an item_id that left its cart never returns.
        if !left_items.is_empty() {
            sqlx::query!(
                "DELETE FROM carts_with_products p USING unnest($1::uuid[], $2::uuid[]) AS l(cart_id, item_id)
                 WHERE p.cart_id = l.cart_id AND p.item_id = l.item_id",
                &left_carts,
                &left_items
            )
            .execute(&mut *transaction)
            .await?;
        }
        if !emptied.is_empty() {
            let (carts, positions): (Vec<_>, Vec<_>) = emptied.into_iter().unzip();
            sqlx::query!(
                "DELETE FROM carts_with_products p USING unnest($1::uuid[], $2::bigint[]) AS e(cart_id, position)
                 WHERE p.cart_id = e.cart_id AND p.position < e.position",
                &carts,
                &positions
            )
            .execute(&mut *transaction)
            .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod specifications {
    use actix_web::{App, test, web::Data};
    use projections::Settings;
    use test_support::TestLog;

    use super::*;
    use cart_events::examples::Shopping;

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn shows_an_item_until_it_leaves() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let others: Vec<_> = (0..4).map(|_| cart.other_cart()).collect();
        log.append(cart.with_items(2)).await;
        log.append(others.iter().flat_map(|other| other.with_items(1))).await;
        log.append([others[0].removed(0), others[1].archived(0), others[2].cleared(), others[3].submitted(1)]).await;
        log.append([others[2].added(3)]).await;
        for batch in [1_000, 1] {
            projections::rebuild::<CartsWithProducts>(log.store.pool()).await.unwrap();
            log.project(CartsWithProducts, Settings { batch, ..Settings::default() }).await;
            let app = test::init_service(App::new().app_data(Data::new(log.projections.clone())).service(route)).await;
            let held = async |n: usize| -> serde_json::Value {
                let request = test::TestRequest::get().uri(&format!("/cartswithproducts/{}", cart.product(n))).to_request();
                test::call_and_read_body_json(&app, request).await
            };
            let entry =
                |of: &Shopping, n: usize| serde_json::json!({"cart_id": of.cart_id, "item_id": of.item(n), "product_id": cart.product(n)});
            assert_eq!(held(0).await, serde_json::json!([entry(&cart, 0)]));
            assert_eq!(held(1).await, serde_json::json!([entry(&cart, 1)]));
            assert_eq!(held(2).await, serde_json::json!([]));
            assert_eq!(held(3).await, serde_json::json!([entry(&others[2], 3)]));
        }
    }

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn answers_page_by_page() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let carts: Vec<_> = std::iter::once(cart.cart_id).chain((1..5).map(|_| cart.other_cart().cart_id)).collect();
        log.append(carts.iter().flat_map(|cart_id| Shopping { cart_id: *cart_id, items: cart.items }.with_items(1).collect::<Vec<_>>()))
            .await;
        log.project(CartsWithProducts, Settings::default()).await;
        let app = test::init_service(App::new().app_data(Data::new(log.projections.clone())).service(route)).await;
        let ask = async |uri: &str| {
            let answer = test::call_service(&app, test::TestRequest::get().uri(uri).to_request()).await;
            let next = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
            let next = next.map(|link| link.strip_prefix('<').unwrap().strip_suffix(r#">; rel="next""#).unwrap().to_owned());
            (answer.status().as_u16(), next, test::read_body_json::<serde_json::Value, _>(answer).await)
        };
        let path = format!("/cartswithproducts/{}", cart.product(0));
        let shown = |page: &serde_json::Value| -> Vec<String> {
            page.as_array().unwrap().iter().map(|entry| entry["cart_id"].as_str().unwrap().to_owned()).collect()
        };
        let all: Vec<_> = carts.iter().map(ToString::to_string).collect();
        let (_, next, page) = ask(&path).await;
        assert_eq!((shown(&page), next), (all.clone(), None));

        let (mut uri, mut pages) = (Some(format!("{path}?limit=2&min_position=1")), vec![]);
        while let Some(next) = uri.take() {
            let (status, next, page) = ask(&next).await;
            assert_eq!(status, 200);
            pages.push(shown(&page));
            uri = next;
        }
        assert_eq!(pages, all.chunks(2).map(<[_]>::to_vec).collect::<Vec<_>>());
        let (_, next, page) = ask(&format!("{path}?limit=5")).await;
        assert_eq!((shown(&page), next), (all, None), "a page that is full to the last entry has no next one");

        for wrong in
            ["limit=0", "limit=10001", "limit=-1", "limit=x", "limit=1&limit=2", "after=-1", "after=x", "after=9223372036854775808"]
        {
            let (status, _, body) = ask(&format!("{path}?{wrong}")).await;
            assert_eq!((status, body["code"].as_str()), (400, Some("invalid_query")), "{wrong}");
        }
    }

    #[test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn answers_503_while_any_cart_is_parked() {
        let log = TestLog::<DomainEvent>::create().await;
        let (parked, other) = (Shopping::new(), Shopping::new());
        log.append(other.with_items(1)).await;
        log.project(CartsWithProducts, Settings::default()).await;
        let park =
            "INSERT INTO parked_key (name, build, key, position, error) VALUES ('carts_with_products', 'projection_a', $1, 2, 'a test')";
        sqlx::query(park).bind(parked.cart_id.uuid()).execute(log.store.pool()).await.unwrap();
        let app = test::init_service(App::new().app_data(Data::new(log.projections.clone())).service(route)).await;
        let request = test::TestRequest::get().uri(&format!("/cartswithproducts/{}", other.product(0))).to_request();
        let answer = test::call_service(&app, request).await;
        assert_eq!(answer.status(), 503);
        let body: serde_json::Value = test::read_body_json(answer).await;
        assert_eq!(body["code"], "parked");
        assert!(body["message"].as_str().unwrap().contains(&parked.cart_id.to_string()), "{body}");
    }
}
