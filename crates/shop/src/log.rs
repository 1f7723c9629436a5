//! The day as the log tells it.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::published::Line;
use embedded::error::{Context, Error};

/// What happened after a position.
#[derive(Debug, Default)]
pub struct Log {
    /// How many events of each type.
    pub events: BTreeMap<String, u64>,
    /// The carts that began after the position.
    pub carts: BTreeMap<Uuid, Cart>,
    /// The submissions by their position, also of older carts.
    pub submissions: BTreeMap<i64, Submission>,
    /// The carts noted as published, also those submitted before the position.
    published: BTreeSet<Uuid>,
    /// The stock levels heard, by product.
    pub inventories: BTreeMap<Uuid, Vec<u64>>,
    /// The price changes heard: position and product.
    pub price_changes: Vec<(i64, Uuid)>,
}

/// What became of a cart.
#[derive(Debug, Default)]
pub struct Cart {
    /// What is in it, in the order it was added.
    pub items: Vec<Item>,
    /// The most that ever was in it.
    pub most_items: usize,
    pub submitted: bool,
    pub added: u64,
    pub removed: u64,
    pub cleared: u64,
    /// Items archived that were not in it, or not because of a price change before which they were added.
    pub wrongly_archived: u64,
    /// The submission ordered something else than what was in it.
    pub wrongly_submitted: bool,
}

/// An item in a cart.
#[derive(Debug)]
pub struct Item {
    id: Uuid,
    pub product: Uuid,
    pub added_at: i64,
    price: String,
}

/// What was ordered.
#[derive(Debug, PartialEq, Eq)]
pub struct Submission {
    pub cart: Uuid,
    pub lines: Vec<Line>,
    pub total: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    event_id: i64,
    event_type: String,
    payload: Vec<u8>,
    cart_id: Option<Uuid>,
    item_id: Option<Uuid>,
    product_id: Option<Uuid>,
}

#[derive(Deserialize)]
struct Submitted {
    ordered_products: Vec<Line>,
    total_price: String,
}

/// The newest position.
pub async fn head(pool: &PgPool) -> Result<i64, Error> {
    sqlx::query_scalar("SELECT coalesce(max(event_id), 0) FROM event").fetch_one(pool).await.context(|| "read the log".to_owned())
}

impl Log {
    /// Reads and folds what happened after `position`.
    pub async fn after(pool: &PgPool, position: i64) -> Result<Self, Error> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT event_id, event_type, payload, cart_id, item_id, product_id FROM event WHERE event_id > $1 \
             ORDER BY event_id",
        )
        .bind(position)
        .fetch_all(pool)
        .await
        .context(|| "read the log".to_owned())?;
        let mut log = Self::default();
        for row in rows {
            log.fold(row)?;
        }
        Ok(log)
    }

    fn fold(&mut self, row: Row) -> Result<(), Error> {
        *self.events.entry(row.event_type.clone()).or_default() += 1;
        let payload: Value = serde_json::from_slice(&row.payload).map_err(|error| unreadable(&row, error))?;
        let event = payload.get(&row.event_type).cloned().unwrap_or_default();
        match (row.event_type.as_str(), row.cart_id, row.item_id, row.product_id) {
            ("InventoryChanged", _, _, Some(product)) => {
                let inventory = event.get("inventory").and_then(Value::as_u64).unwrap_or_default();
                self.inventories.entry(product).or_default().push(inventory);
            }
            ("PriceChanged", _, _, Some(product)) => self.price_changes.push((row.event_id, product)),
            ("CartCreated", Some(cart), _, _) => {
                self.carts.insert(cart, Cart::default());
            }
            ("CartPublished", Some(cart), ..) => {
                self.published.insert(cart);
            }
            ("CartSubmitted", Some(cart), _, _) => {
                let Submitted { ordered_products, total_price } = serde_json::from_value(event).map_err(|error| unreadable(&row, error))?;
                if let Some(folded) = self.carts.get_mut(&cart) {
                    folded.submitted = true;
                    folded.wrongly_submitted = !folded.holds(&ordered_products);
                }
                self.submissions.insert(row.event_id, Submission { cart, lines: ordered_products, total: total_price });
            }
            (event_type, Some(cart), item, product) => {
                let caused_by = event.get("price_changed_at").and_then(Value::as_i64).unwrap_or_default();
                let cause = self.price_changes.iter().find(|(position, _)| *position == caused_by).copied();
                if let Some(cart) = self.carts.get_mut(&cart) {
                    cart.fold(event_type, row.event_id, (item, product), &event, cause);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// How many of the submissions were noted as published.
    pub fn published(&self) -> usize {
        self.submissions.values().filter(|submission| self.published.contains(&submission.cart)).count()
    }

    /// The items that a price change should have archived and has not yet.
    pub fn to_be_archived(&self) -> usize {
        let overdue =
            |item: &&Item| self.price_changes.iter().any(|(position, product)| *product == item.product && item.added_at < *position);
        let open = self.carts.values().filter(|cart| !cart.submitted);
        open.flat_map(|cart| cart.items.iter().filter(overdue)).count()
    }
}

impl Cart {
    fn fold(
        &mut self,
        event_type: &str,
        position: i64,
        (item, product): (Option<Uuid>, Option<Uuid>),
        event: &Value,
        cause: Option<(i64, Uuid)>,
    ) {
        match (event_type, item, product) {
            ("ItemAdded", Some(id), Some(product)) => {
                let price = event.get("price").and_then(Value::as_str).unwrap_or_default().to_owned();
                self.items.push(Item { id, product, added_at: position, price });
                self.most_items = self.most_items.max(self.items.len());
                self.added += 1;
            }
            ("ItemRemoved", Some(id), _) => {
                self.items.retain(|item| item.id != id);
                self.removed += 1;
            }
            ("ItemArchived", Some(id), _) => {
                let archived = self.items.iter().position(|item| item.id == id).map(|index| self.items.remove(index));
                let rightly =
                    archived.zip(cause).is_some_and(|(item, (changed_at, product))| item.product == product && item.added_at < changed_at);
                self.wrongly_archived += u64::from(!rightly || self.submitted);
            }
            ("CartCleared", ..) => {
                self.items.clear();
                self.cleared += 1;
            }
            _ => {}
        }
    }

    fn holds(&self, lines: &[Line]) -> bool {
        self.items.iter().map(|item| (item.product, &item.price)).eq(lines.iter().map(|line| (line.product_id, &line.price)))
    }
}

/// The exact sum of lines, as the contract writes it; none where a price is no decimal.
pub fn sum(lines: &[Line]) -> Option<Decimal> {
    lines.iter().map(|line| line.price.parse::<Decimal>().ok()).sum()
}

fn unreadable(row: &Row, error: serde_json::Error) -> Error {
    Error::Refused(format!("the {} at position {} is not readable: {error}", row.event_type, row.event_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(event_id: i64, event_type: &str, ids: (Option<Uuid>, Option<Uuid>, Option<Uuid>), event: Value) -> Row {
        let payload = serde_json::json!({ event_type: event }).to_string().into_bytes();
        let (cart_id, item_id, product_id) = ids;
        Row { event_id, event_type: event_type.to_owned(), payload, cart_id, item_id, product_id }
    }

    fn folded(rows: Vec<Row>) -> Log {
        let mut log = Log::default();
        for row in rows {
            log.fold(row).unwrap();
        }
        log
    }

    #[test]
    fn a_submission_is_right_when_it_orders_what_is_in_the_cart() {
        let [cart, item, product] = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
        for (ordered, wrongly) in [("9.99", false), ("9.98", true)] {
            let log = folded(vec![
                row(1, "CartCreated", (Some(cart), None, None), serde_json::json!({})),
                row(2, "ItemAdded", (Some(cart), Some(item), Some(product)), serde_json::json!({"price": "9.99"})),
                row(
                    3,
                    "CartSubmitted",
                    (Some(cart), None, None),
                    serde_json::json!({
                        "ordered_products": [{"product_id": product, "price": ordered}], "total_price": "9.99"
                    }),
                ),
            ]);
            assert_eq!(log.carts[&cart].wrongly_submitted, wrongly);
            assert_eq!(log.submissions[&3].cart, cart);
        }
    }

    #[test]
    fn an_item_is_to_be_archived_when_its_price_changed_after_it_was_added() {
        let [cart, item, product] = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
        let begin = || {
            vec![
                row(1, "CartCreated", (Some(cart), None, None), serde_json::json!({})),
                row(2, "ItemAdded", (Some(cart), Some(item), Some(product)), serde_json::json!({"price": "9.99"})),
                row(3, "PriceChanged", (None, None, Some(product)), serde_json::json!({})),
            ]
        };
        assert_eq!(folded(begin()).to_be_archived(), 1);
        let archived = |at: i64| row(4, "ItemArchived", (Some(cart), Some(item), None), serde_json::json!({"price_changed_at": at}));
        let log = folded(begin().into_iter().chain([archived(3)]).collect());
        assert_eq!((log.to_be_archived(), log.carts[&cart].wrongly_archived), (0, 0));
        let log = folded(begin().into_iter().chain([archived(2)]).collect());
        assert_eq!(log.carts[&cart].wrongly_archived, 1);
    }
}
