//! Changed Prices: the newest change of a product's price.

use std::collections::BTreeMap;

use actix_web::{get, middleware::from_fn, web};
use async_trait::async_trait;
use cart_events::{DomainEvent, Price, PriceStream, ProductId};
use event_store::Recorded;
use projections::{Projection, Projections, Query};
use serde::Serialize;
use service::{ErrorBody, HttpError, MinPosition, PathValue};
use sqlx::PgConnection;
use uuid::Uuid;

/// Answers the old and the new price of a product's newest change, or null if its price never changed.
#[utoipa::path(
    operation_id = "changed_prices",
    tag = "internal",
    params(("product_id" = ProductId, Path), MinPosition),
    responses((status = 200, content((Option<ChangedPrice> = "application/json"), (Option<ChangedPrice> = "text/event-stream"))), (status = 503, description = "behind, parked", body = ErrorBody))
)]
#[get("/changedprices/{product_id}", wrap = "from_fn(service::live)")]
pub(crate) async fn route(
    PathValue(product_id): PathValue<ProductId>,
    min: MinPosition,
    projections: web::Data<Projections<DomainEvent>>,
) -> Result<web::Json<Option<ChangedPrice>>, HttpError> {
    let query = Query::new("SELECT old_price, new_price FROM {build}.changed_prices WHERE product_id = $1").bind(product_id.uuid());
    let found: Vec<(rust_decimal::Decimal, rust_decimal::Decimal)> =
        min.projected(&projections, ChangedPrices::NAME, Some(product_id.uuid()), query).await?;
    let price = |decimal: rust_decimal::Decimal| Price::try_from(decimal).map_err(HttpError::fault);
    let changed =
        found.first().map(|(old, new)| Ok::<_, HttpError>(ChangedPrice { product_id, old_price: price(*old)?, new_price: price(*new)? }));
    Ok(web::Json(changed.transpose()?))
}

/// The answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ChangedPrice {
    product_id: ProductId,
    old_price: Price,
    new_price: Price,
}

/// The projection.
pub(crate) struct ChangedPrices;

#[async_trait]
impl Projection for ChangedPrices {
    type Log = DomainEvent;
    type Event = PriceStream;
    const NAME: &'static str = "changed_prices";
    const TABLES: &'static [&'static str] = &["changed_prices"];
    const KEYED_BY: Option<&'static str> = Some("product_id");

    fn key(event: &PriceStream) -> Option<Uuid> {
        let PriceStream::PriceChanged { product_id, .. } = event;
        Some(product_id.uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<PriceStream>]) -> Result<(), sqlx::Error> {
        // The newest of each product, because one statement cannot change a row twice.
        let mut newest = BTreeMap::new();
        for event in batch {
            let PriceStream::PriceChanged { product_id, old_price, new_price } = &event.event;
            newest.insert(product_id.uuid(), (old_price.decimal(), new_price.decimal(), event.position.0));
        }
        let (mut products, mut old_prices, mut new_prices, mut positions) = (vec![], vec![], vec![], vec![]);
        for (product, (old, new, position)) in newest {
            products.push(product);
            old_prices.push(old);
            new_prices.push(new);
            positions.push(position);
        }
        sqlx::query!(
            "INSERT INTO changed_prices (product_id, old_price, new_price, position)
             SELECT * FROM unnest($1::uuid[], $2::numeric[], $3::numeric[], $4::bigint[])
             ON CONFLICT (product_id)
             DO UPDATE SET old_price = excluded.old_price, new_price = excluded.new_price, position = excluded.position",
            &products,
            &old_prices,
            &new_prices,
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
    async fn shows_the_newest_change() {
        let log = TestLog::<DomainEvent>::create().await;
        let shop = Shopping::new();
        let again = |old: &str, new: &str| DomainEvent::PriceChanged {
            product_id: shop.product(0),
            old_price: old.parse().unwrap(),
            new_price: new.parse().unwrap(),
        };
        log.append([shop.price_changed(0), shop.price_changed(1), again("8.00", "9999999999.99"), again("9999999999.99", "0.01")]).await;
        for batch in [1_000, 1] {
            projections::rebuild::<ChangedPrices>(log.store.pool()).await.unwrap();
            log.project(ChangedPrices, Settings { batch, ..Settings::default() }).await;
            let app = test::init_service(App::new().app_data(Data::new(log.projections.clone())).service(route)).await;
            let shown = async |n: usize| -> serde_json::Value {
                let request = test::TestRequest::get().uri(&format!("/changedprices/{}", shop.product(n))).to_request();
                test::call_and_read_body_json(&app, request).await
            };
            let changed =
                |n: usize, old: &str, new: &str| serde_json::json!({"product_id": shop.product(n), "old_price": old, "new_price": new});
            assert_eq!(shown(0).await, changed(0, "9999999999.99", "0.01"));
            assert_eq!(shown(1).await, changed(1, "11.10", "8.00"));
            assert_eq!(shown(2).await, serde_json::Value::Null);
        }
    }
}
