//! Carts with Products: the carts and items that hold a product.

use actix_web::{get, web};
use async_trait::async_trait;
use cart_events::{CartId, CartStream, DomainEvent, ItemId, ProductId};
use event_store::Recorded;
use projections::{Projection, Projections};
use serde::Serialize;
use service::{ErrorBody, HttpError, MinPosition, PathValue};
use sqlx::PgConnection;
use uuid::Uuid;

/// Answers the carts and items that hold a product, in the order they were added. Submitted carts do not count.
#[utoipa::path(
    operation_id = "carts_with_products",
    params(("product_id" = ProductId, Path), MinPosition),
    responses((status = 200, body = [CartWithProduct]), (status = 503, description = "behind, parked", body = ErrorBody))
)]
#[get("/cartswithproducts/{product_id}")]
pub(crate) async fn route(
    PathValue(product_id): PathValue<ProductId>,
    min: MinPosition,
    projections: web::Data<Projections<DomainEvent>>,
) -> Result<web::Json<Vec<CartWithProduct>>, HttpError> {
    // The key is the cart, so the product may be in any segment.
    min.projected(&projections, CartsWithProducts::NAME, None).await?;
    let rows = projections
        .read(CartsWithProducts::NAME, None, async |build| {
            sqlx::query!("SELECT cart_id, item_id FROM carts_with_products WHERE product_id = $1 ORDER BY position", product_id.uuid())
                .fetch_all(build)
                .await
        })
        .await?;
    Ok(web::Json(
        rows.into_iter()
            .map(|row| CartWithProduct { cart_id: CartId::from_log(row.cart_id), item_id: ItemId::from_log(row.item_id), product_id })
            .collect(),
    ))
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
        crate::cart_items::CartItemsProjection::key(event)
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        let (mut carts, mut items, mut products, mut positions) = (vec![], vec![], vec![], vec![]);
        // Items that left their carts. No item: all items of the cart left.
        let (mut left_carts, mut left_items, mut left_at) = (vec![], vec![], vec![]);
        for event in batch {
            let left = match &event.event {
                CartStream::CartCreated { .. } => continue,
                CartStream::ItemAdded { cart_id, item_id, product_id, .. } => {
                    carts.push(cart_id.uuid());
                    items.push(item_id.uuid());
                    products.push(product_id.uuid());
                    positions.push(event.position.0);
                    continue;
                }
                CartStream::ItemRemoved { cart_id, item_id } | CartStream::ItemArchived { cart_id, item_id, .. } => {
                    (cart_id.uuid(), Some(item_id.uuid()))
                }
                CartStream::CartCleared { cart_id } | CartStream::CartSubmitted { cart_id, .. } => (cart_id.uuid(), None),
            };
            left_carts.push(left.0);
            left_items.push(left.1);
            left_at.push(event.position.0);
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
        if !left_carts.is_empty() {
            sqlx::query!(
                "DELETE FROM carts_with_products p USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS l(cart_id, item_id, position)
                 WHERE p.cart_id = l.cart_id AND (l.item_id IS NULL OR p.item_id = l.item_id) AND p.position < l.position",
                &left_carts,
                &left_items as &[Option<Uuid>],
                &left_at
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
