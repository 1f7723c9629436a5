//! What the log says that there must be: every table, to-do and message, folded event by event from the beginning, with nothing of the
//! services' own code.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::published::{Line, PublishedCart};
use embedded::error::{Context, Error};

/// An event as the log has it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Event {
    #[sqlx(rename = "event_id")]
    pub position: i64,
    pub event_type: String,
    pub payload: Vec<u8>,
}

/// All of the log.
pub async fn read(pool: &PgPool) -> Result<Vec<Event>, Error> {
    let all = "SELECT event_id, event_type, payload FROM event ORDER BY event_id";
    sqlx::query_as(all).fetch_all(pool).await.context(|| "read the log".to_owned())
}

/// A table's rows by their keys, each as text.
pub type Table = BTreeMap<String, String>;

/// What there must be.
#[derive(Debug, Default)]
pub struct Expected {
    /// By the tables' names.
    pub tables: BTreeMap<&'static str, Table>,
    /// What is to be on the topic, by the position of the submission.
    pub messages: BTreeMap<i64, PublishedCart>,
    /// Each product's inventories and new prices, in order.
    pub inventories: BTreeMap<Uuid, Vec<u64>>,
    pub prices: BTreeMap<Uuid, Vec<String>>,
    /// The cart of each event that has one.
    pub carts: HashMap<i64, Uuid>,
    /// Items that are in no open cart any more.
    pub left: HashSet<(Uuid, Uuid)>,
    /// How many events of each type.
    pub events: BTreeMap<String, u64>,
    /// What must not be in a log.
    pub faults: Vec<String>,
}

#[derive(Debug, Default)]
struct Cart {
    items: Vec<Item>,
    submitted_at: Option<i64>,
    published: bool,
}

#[derive(Debug)]
struct Item {
    id: Uuid,
    product: Uuid,
    added_at: i64,
    shown: String,
}

/// The fields of all events; each has some of them.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    cart_id: Uuid,
    #[serde(default)]
    item_id: Uuid,
    #[serde(default)]
    product_id: Uuid,
    #[serde(default)]
    description: String,
    #[serde(default)]
    image: String,
    #[serde(default)]
    price: String,
    #[serde(default)]
    device_fingerprint: String,
    #[serde(default)]
    price_changed_at: i64,
    #[serde(default)]
    ordered_products: Vec<Line>,
    #[serde(default)]
    total_price: String,
    #[serde(default)]
    inventory: u64,
    #[serde(default)]
    new_price: String,
}

#[derive(Default)]
struct Folding {
    expected: Expected,
    carts: BTreeMap<Uuid, Cart>,
    /// The items of each product in open carts.
    open: HashMap<Uuid, BTreeSet<(Uuid, Uuid)>>,
    /// The product of each change of price, and each product's newest.
    changes: HashMap<i64, Uuid>,
    newest: HashMap<Uuid, i64>,
}

impl Expected {
    pub fn fold(log: &[Event]) -> Result<Self, Error> {
        let mut folding = Folding::default();
        for (event, position) in log.iter().zip(1..) {
            if event.position != position {
                folding.fault(position, format!("the log has position {} there", event.position));
                break;
            }
            folding.fold(event)?;
        }
        folding.end();
        Ok(folding.expected)
    }
}

impl Folding {
    fn fault(&mut self, position: i64, text: impl std::fmt::Display) {
        self.expected.faults.push(format!("position {position}: {text}"));
    }

    fn row(&mut self, table: &'static str, key: impl std::fmt::Display, row: impl std::fmt::Display) {
        self.expected.tables.entry(table).or_default().insert(key.to_string(), row.to_string());
    }

    fn fold(&mut self, event: &Event) -> Result<(), Error> {
        let at = event.position;
        let unreadable = |error: serde_json::Error| Error::Refused(format!("the {} at position {at}: {error}", event.event_type));
        let mut payload: Value = serde_json::from_slice(&event.payload).map_err(unreadable)?;
        let fields = payload.get_mut(&event.event_type).map(Value::take).unwrap_or_default();
        let of: Fields = serde_json::from_value(fields).map_err(unreadable)?;
        *self.expected.events.entry(event.event_type.clone()).or_default() += 1;
        match event.event_type.as_str() {
            "InventoryChanged" => {
                self.expected.inventories.entry(of.product_id).or_default().push(of.inventory);
                self.row("inventories", of.product_id, format!("{}|{at}", of.inventory));
                return Ok(());
            }
            "PriceChanged" => {
                self.price_changed(at, of.product_id);
                self.expected.prices.entry(of.product_id).or_default().push(of.new_price);
                return Ok(());
            }
            _ => {}
        }
        let (cart_id, item_id) = (of.cart_id, of.item_id);
        self.expected.carts.insert(at, cart_id);
        if event.event_type == "CartCreated" {
            if self.carts.insert(cart_id, Cart::default()).is_some() {
                self.fault(at, format!("cart {cart_id} is created once more"));
            }
            self.row("cart_items_cart", cart_id, "");
            return Ok(());
        }
        let Some(cart) = self.carts.get_mut(&cart_id) else {
            self.fault(at, format!("{} in cart {cart_id}, which was never created", event.event_type));
            return Ok(());
        };
        if cart.submitted_at.is_some() && event.event_type != "CartPublished" {
            self.fault(at, format!("{} in cart {cart_id}, which has been submitted", event.event_type));
            return Ok(());
        }
        match event.event_type.as_str() {
            "ItemAdded" => {
                let shown = [of.description, of.image, of.price, of.device_fingerprint].join("|");
                cart.items.push(Item { id: item_id, product: of.product_id, added_at: at, shown });
                self.open.entry(of.product_id).or_default().insert((cart_id, item_id));
            }
            "ItemRemoved" | "ItemArchived" => {
                let Some(index) = cart.items.iter().position(|item| item.id == item_id) else {
                    self.fault(at, format!("{} of item {item_id}, which is not in cart {cart_id}", event.event_type));
                    return Ok(());
                };
                let item = cart.items.remove(index);
                let cause = self.changes.get(&of.price_changed_at);
                let rightly = cause == Some(&item.product) && item.added_at < of.price_changed_at;
                if event.event_type == "ItemArchived" && !rightly {
                    self.fault(at, format!("item {item_id} is archived for position {}, which is no reason", of.price_changed_at));
                }
                self.leaves(cart_id, &item);
            }
            "CartCleared" => {
                for item in std::mem::take(&mut cart.items) {
                    self.leaves(cart_id, &item);
                }
            }
            "CartSubmitted" => {
                cart.submitted_at = Some(at);
                let gone: Vec<_> = cart.items.iter().map(|item| (item.product, (cart_id, item.id))).collect();
                for (product, item) in gone {
                    self.open.entry(product).or_default().remove(&item);
                    self.expected.left.insert(item);
                }
                let message = PublishedCart { cart_id, ordered_product: of.ordered_products, total_price: of.total_price };
                self.expected.messages.insert(at, message);
                self.row("todo", format!("publish_cart {cart_id}"), format!("{at}|done"));
            }
            "CartPublished" => {
                let rightly = cart.submitted_at.is_some() && !std::mem::replace(&mut cart.published, true);
                if !rightly {
                    self.fault(at, format!("CartPublished of cart {cart_id}, which is not submitted, or published before"));
                }
            }
            other => self.fault(at, format!("{other} in cart {cart_id}")),
        }
        Ok(())
    }

    fn price_changed(&mut self, at: i64, product: Uuid) {
        self.changes.insert(at, product);
        self.newest.insert(product, at);
        for (cart, item) in self.open.get(&product).cloned().unwrap_or_default() {
            self.row("todo", format!("archive_item {cart}/{item}@{at}"), format!("{at}|done"));
        }
    }

    fn leaves(&mut self, cart: Uuid, item: &Item) {
        self.open.entry(item.product).or_default().remove(&(cart, item.id));
        self.expected.left.insert((cart, item.id));
    }

    /// What is in the carts at the end, and what should not be there any more.
    fn end(&mut self) {
        for (cart_id, cart) in std::mem::take(&mut self.carts) {
            for Item { id, product, added_at, shown } in cart.items {
                let key = format!("{cart_id}/{id}");
                self.row("cart_items_item", &key, format!("{product}|{shown}|{added_at}"));
                if cart.submitted_at.is_some() {
                    continue;
                }
                for table in ["carts_with_products", "archive_item_open_item"] {
                    self.row(table, &key, format!("{product}|{added_at}"));
                }
                if let Some(changed_at) = self.newest.get(&product).copied().filter(|changed_at| *changed_at > added_at) {
                    self.fault(changed_at, format!("item {id} of cart {cart_id} is there still, and should have been archived"));
                }
            }
            if let Some(at) = cart.submitted_at.filter(|_| !cart.published) {
                self.fault(at, format!("cart {cart_id} was submitted, and there is no CartPublished"));
            }
        }
    }
}
