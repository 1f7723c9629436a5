//! Inventories: the newest reported inventory of a product.

use std::collections::BTreeMap;

use actix_web::{get, middleware::from_fn, web};
use async_trait::async_trait;
use cart_events::{DomainEvent, InventoryStream, ProductId};
use event_store::Recorded;
use projections::{Projection, Projections, Query};
use serde::Serialize;
use service::{ErrorBody, HttpError, MinPosition, PathValue};
use sqlx::PgConnection;
use uuid::Uuid;

/// Answers the newest reported inventory of a product, or null if it was never reported.
#[utoipa::path(
    operation_id = "inventories",
    tag = "internal",
    params(("product_id" = ProductId, Path), MinPosition),
    responses((status = 200, content((Option<ProductInventory> = "application/json"), (Option<ProductInventory> = "text/event-stream"))), (status = 503, description = "behind, parked", body = ErrorBody))
)]
#[get("/inventories/{product_id}", wrap = "from_fn(service::live)")]
pub(crate) async fn route(
    PathValue(product_id): PathValue<ProductId>,
    min: MinPosition,
    projections: web::Data<Projections<DomainEvent>>,
) -> Result<web::Json<Option<ProductInventory>>, HttpError> {
    let query = Query::new("SELECT inventory FROM {build}.inventories WHERE product_id = $1").bind(product_id.uuid());
    let found: Vec<(i32,)> = min.projected(&projections, Inventories::NAME, Some(product_id.uuid()), query).await?;
    Ok(web::Json(found.first().map(|(inventory,)| ProductInventory { product_id, inventory: *inventory })))
}

/// The answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ProductInventory {
    product_id: ProductId,
    inventory: i32,
}

/// The projection.
pub(crate) struct Inventories;

#[async_trait]
impl Projection for Inventories {
    type Log = DomainEvent;
    type Event = InventoryStream;
    const NAME: &'static str = "inventories";
    const TABLES: &'static [&'static str] = &["inventories"];
    const KEYED_BY: Option<&'static str> = Some("product_id");

    fn key(event: &InventoryStream) -> Option<Uuid> {
        let InventoryStream::InventoryChanged { product_id, .. } = event;
        Some(product_id.uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<InventoryStream>]) -> Result<(), sqlx::Error> {
        // The newest of each product, because one statement cannot change a row twice.
        let mut newest = BTreeMap::new();
        for event in batch {
            let InventoryStream::InventoryChanged { product_id, inventory } = &event.event;
            newest.insert(product_id.uuid(), (i32::from(*inventory), event.position.0));
        }
        let products: Vec<_> = newest.keys().copied().collect();
        let (inventories, positions): (Vec<_>, Vec<_>) = newest.into_values().unzip();
        sqlx::query!(
            "INSERT INTO inventories (product_id, inventory, position) SELECT * FROM unnest($1::uuid[], $2::integer[], $3::bigint[])
             ON CONFLICT (product_id) DO UPDATE SET inventory = excluded.inventory, position = excluded.position",
            &products,
            &inventories,
            &positions
        )
        .execute(transaction)
        .await?;
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
    async fn shows_the_newest_inventory() {
        let log = TestLog::<DomainEvent>::create().await;
        let shop = Shopping::new();
        log.append([shop.inventory(0, 5), shop.inventory(1, 7), shop.inventory(0, 3)]).await;
        for batch in [1_000, 1] {
            projections::rebuild::<Inventories>(log.store.pool()).await.unwrap();
            log.project(Inventories, Settings { batch, ..Settings::default() }).await;
            let app = test::init_service(App::new().app_data(Data::new(log.projections.clone())).service(route)).await;
            let shown = async |n: usize| -> serde_json::Value {
                let request = test::TestRequest::get().uri(&format!("/inventories/{}", shop.product(n))).to_request();
                test::call_and_read_body_json(&app, request).await
            };
            assert_eq!(shown(0).await, serde_json::json!({"product_id": shop.product(0), "inventory": 3}));
            assert_eq!(shown(1).await, serde_json::json!({"product_id": shop.product(1), "inventory": 7}));
            assert_eq!(shown(2).await, serde_json::Value::Null);
        }
    }
}
