//! The tables of the read models and automations: what they hold, and what the model says they must hold.

use std::collections::{BTreeMap, BTreeSet};

use embedded::error::{Context, Error};
use shop::model::{Item, Model, PriceChange};
use sqlx::PgPool;
use uuid::Uuid;

/// A table's rows by their keys, each as text.
pub(super) type Table = BTreeMap<String, String>;

/// A table, with the SQL that makes a key and a text of each row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) name: &'static str,
    /// The projection that has the table in its builds; none if the table has no builds.
    projection: Option<&'static str>,
    key: &'static str,
    rest: &'static str,
}

const ITEM: &str = "concat(cart_id, '/', item_id)";

pub(super) const TABLES: [Source; 7] = [
    Source { name: "cart_items_cart", projection: Some("cart_items"), key: "cart_id::text", rest: "''" },
    Source {
        name: "cart_items_item",
        projection: Some("cart_items"),
        key: ITEM,
        rest: "concat_ws('|', product_id, description, image, price, fingerprint, position)",
    },
    Source {
        name: "carts_with_products",
        projection: Some("carts_with_products"),
        key: ITEM,
        rest: "concat_ws('|', product_id, position)",
    },
    Source { name: "inventories", projection: Some("inventories"), key: "product_id::text", rest: "concat_ws('|', inventory, position)" },
    Source {
        name: "changed_prices",
        projection: Some("changed_prices"),
        key: "product_id::text",
        rest: "concat_ws('|', old_price, new_price, position)",
    },
    Source { name: "archive_item_open_item", projection: Some("archive_item"), key: ITEM, rest: "concat_ws('|', product_id, position)" },
    Source { name: "todo", projection: None, key: "concat(automation, ' ', key)", rest: "concat_ws('|', position, status)" },
];

impl Source {
    /// Returns its name with the schema of the build in service.
    pub(super) async fn qualified(&self, pool: &PgPool) -> Result<String, Error> {
        let schema: String = match self.projection {
            None => "public".to_owned(),
            Some(projection) => sqlx::query_scalar("SELECT build FROM projection WHERE name = $1 AND status = 'serving'")
                .bind(projection)
                .fetch_one(pool)
                .await
                .context(|| format!("find the build of {projection} that is in service"))?,
        };
        Ok(format!("{schema}.{}", self.name))
    }

    pub(super) async fn read(&self, pool: &PgPool) -> Result<Vec<(String, String)>, Error> {
        let sql = format!("SELECT {}, {} FROM {}", self.key, self.rest, self.qualified(pool).await?);
        sqlx::query_as(&sql).fetch_all(pool).await.context(|| format!("read {}", self.name))
    }
}

/// The rows that every table must have.
pub(super) fn expected(model: &Model) -> BTreeMap<&'static str, Table> {
    // An empty table is compared, too.
    let mut tables: BTreeMap<&'static str, Table> = TABLES.map(|table| (table.name, Table::new())).into();
    let mut row = |table: &'static str, key: String, row: String| {
        tables.entry(table).or_default().insert(key, row);
    };
    for (product, inventories) in &model.inventories {
        let (newest, at) = (inventories.last().copied().unwrap_or_default(), model.inventory_at.get(product).copied().unwrap_or_default());
        row("inventories", product.to_string(), format!("{newest}|{at}"));
    }
    for (product, PriceChange { old_price, new_price, at }) in &model.newest_change {
        row("changed_prices", product.to_string(), format!("{old_price}|{new_price}|{at}"));
    }
    for (cart_id, cart) in &model.carts {
        row("cart_items_cart", cart_id.to_string(), String::new());
        for Item { id, product, added_at, shown, .. } in &cart.items {
            let key = format!("{cart_id}/{id}");
            row("cart_items_item", key.clone(), format!("{product}|{shown}|{added_at}"));
            if cart.submitted_at.is_none() {
                row("carts_with_products", key.clone(), format!("{product}|{added_at}"));
                row("archive_item_open_item", key, format!("{product}|{added_at}"));
            }
        }
    }
    for (cart, item, at) in &model.to_archive {
        row("todo", archiving(*cart, *item, *at), format!("{at}|done"));
    }
    for (at, submission) in &model.submissions {
        row("todo", format!("publish_cart {}", submission.message.cart_id), format!("{at}|done"));
    }
    tables
}

fn archiving(cart: Uuid, item: Uuid, at: i64) -> String {
    format!("archive_item {cart}/{item}@{at}")
}

/// The to-dos that may be missing: Archive Item enqueues none for an item that has left its cart before its turn comes.
pub(super) fn optional(model: &Model) -> BTreeSet<String> {
    let is_open = |cart: &Uuid, item: &Uuid| {
        model.carts.get(cart).is_some_and(|cart| cart.submitted_at.is_none() && cart.items.iter().any(|one| one.id == *item))
    };
    let gone = model.to_archive.iter().filter(|(cart, item, _)| !is_open(cart, item));
    gone.map(|(cart, item, at)| archiving(*cart, *item, *at)).collect()
}

/// Whether a to-do only enqueued others, because a product was in very many carts.
pub(super) fn is_portion(key: &str, row: &str) -> bool {
    key.starts_with("archive_item ") && key.contains(" after ") && row.ends_with("|done")
}
