//! One model of the truth: what the events of the log lead to. The demo and the chaos compare the running system with it.
//!
//! It folds event by event and uses nothing of the services' own code.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;

use embedded::error::{Context, Error};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::published::{Line, PublishedCart};

/// The most items that a cart has room for.
const ROOM: usize = 3;

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Event {
    /// Its position.
    #[sqlx(rename = "event_id")]
    pub position: i64,
    /// Its type.
    pub event_type: String,
    /// Its JSON.
    pub payload: Vec<u8>,
    /// The id of the append that wrote it.
    pub append_id: String,
    /// The trace that it belongs to: 32 hexadecimal digits, or nothing.
    pub trace: String,
}

/// Reads the newest position.
///
/// # Errors
/// The database cannot be reached.
pub async fn head(pool: &PgPool) -> Result<i64, Error> {
    let head = "SELECT coalesce(max(event_id), 0) FROM event";
    sqlx::query_scalar(head).fetch_one(pool).await.context(|| "read the log's head".to_owned())
}

/// Reads the events after a position.
///
/// # Errors
/// The database cannot be reached.
pub async fn read(pool: &PgPool, after: i64) -> Result<Vec<Event>, Error> {
    let events = "SELECT event_id, event_type, payload, coalesce(metadata->>'append_id', '') AS append_id,
            coalesce(split_part(metadata->>'traceparent', '-', 2), '') AS trace
         FROM event WHERE event_id > $1 ORDER BY event_id";
    sqlx::query_as(events).bind(after).fetch_all(pool).await.context(|| "read the log".to_owned())
}

/// The state that the events after a position lead to. It knows nothing of older carts.
#[derive(Debug, Default)]
pub struct Model {
    /// The position after which it begins.
    after: i64,
    /// How many events of each type there are.
    pub events: BTreeMap<String, u64>,
    /// The carts that were created.
    pub carts: BTreeMap<Uuid, Cart>,
    /// The submissions, by position.
    pub submissions: BTreeMap<i64, Submission>,
    /// The inventories of each product, in order.
    pub inventories: BTreeMap<Uuid, Vec<u64>>,
    /// The position of each product's newest inventory.
    pub inventory_at: BTreeMap<Uuid, i64>,
    /// The new prices of each product, in order.
    pub prices: BTreeMap<Uuid, Vec<String>>,
    /// Each product's newest change of its price.
    pub newest_change: BTreeMap<Uuid, PriceChange>,
    /// The items that a price change had to archive: cart, item, and the position of the change.
    pub to_archive: BTreeSet<(Uuid, Uuid, i64)>,
    /// The cart of each event that has one.
    pub cart_of: HashMap<i64, Uuid>,
    /// Items that were in an open cart and are in none any more.
    pub left: HashSet<(Uuid, Uuid)>,
    /// Events that must not be in a log.
    pub faults: Vec<String>,
    published: BTreeSet<Uuid>,
    /// The items of each product in open carts.
    open: HashMap<Uuid, BTreeSet<(Uuid, Uuid)>>,
    /// The product of each price change.
    changes: HashMap<i64, Uuid>,
}

/// A change of a product's price.
#[derive(Debug, PartialEq, Eq)]
pub struct PriceChange {
    /// The price before.
    pub old_price: String,
    /// The price since.
    pub new_price: String,
    /// The position of PriceChanged.
    pub at: i64,
}

/// The submission of a cart, and the message that it must lead to.
#[derive(Debug, PartialEq, Eq)]
pub struct Submission {
    /// The message's `ce_id`.
    pub ce_id: String,
    /// The message.
    pub message: PublishedCart,
}

/// A cart.
#[derive(Debug, Default)]
pub struct Cart {
    /// Its items, in the order in which they were added.
    pub items: Vec<Item>,
    /// The most items that it ever held.
    pub most_items: usize,
    /// How many items were added.
    pub added: u64,
    /// How many items were removed.
    pub removed: u64,
    /// How often it was cleared.
    pub cleared: u64,
    /// The position of its submission.
    pub submitted_at: Option<i64>,
}

/// An item in a cart.
#[derive(Debug)]
pub struct Item {
    /// Its id.
    pub id: Uuid,
    /// Its product.
    pub product: Uuid,
    /// The position of its ItemAdded.
    pub added_at: i64,
    /// Its price.
    pub price: String,
    /// Description, image, price and fingerprint, with bars between them.
    pub shown: String,
}

/// The fields of all events; each event has some of them.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Fields {
    cart_id: Uuid,
    item_id: Uuid,
    product_id: Uuid,
    description: String,
    image: String,
    price: String,
    device_fingerprint: String,
    price_changed_at: i64,
    ordered_products: Vec<Line>,
    total_price: String,
    inventory: u64,
    old_price: String,
    new_price: String,
}

impl Model {
    /// Folds the events after a position.
    ///
    /// # Errors
    /// An event cannot be read.
    pub fn of(events: &[Event], after: i64) -> Result<Self, Error> {
        let mut model = Self { after, ..Self::default() };
        for (event, position) in events.iter().zip(after + 1..) {
            if event.position != position {
                model.fault(position, format!("the log has position {} there", event.position));
                break;
            }
            model.fold(event)?;
        }
        Ok(model)
    }

    /// Lists the open work of the automations: items to archive, and carts to publish.
    #[must_use]
    pub fn unfinished(&self) -> Vec<String> {
        let mut unfinished = vec![];
        for (cart_id, cart) in &self.carts {
            for Item { id, product, added_at, .. } in &cart.items {
                if let Some(PriceChange { at: changed_at, .. }) = self.newest_change.get(product)
                    && cart.submitted_at.is_none()
                    && changed_at > added_at
                {
                    unfinished.push(format!("position {changed_at}: item {id} of cart {cart_id} should have been archived"));
                }
            }
        }
        for (position, Submission { message: PublishedCart { cart_id, .. }, .. }) in &self.submissions {
            if !self.published.contains(cart_id) {
                unfinished.push(format!("position {position}: cart {cart_id} was submitted, and there is no CartPublished"));
            }
        }
        unfinished
    }

    fn fault(&mut self, position: i64, text: impl Display) {
        self.faults.push(format!("position {position}: {text}"));
    }

    fn fold(&mut self, event: &Event) -> Result<(), Error> {
        let at = event.position;
        let unreadable =
            |error: serde_json::Error| Error::Refused(format!("cannot read the {} at position {at}: {error}", event.event_type));
        let mut payload: Value = serde_json::from_slice(&event.payload).map_err(unreadable)?;
        let fields = payload.get_mut(&event.event_type).map(Value::take).unwrap_or_default();
        let fields: Fields = serde_json::from_value(fields).map_err(unreadable)?;
        *self.events.entry(event.event_type.clone()).or_default() += 1;
        match event.event_type.as_str() {
            "InventoryChanged" => {
                self.inventories.entry(fields.product_id).or_default().push(fields.inventory);
                self.inventory_at.insert(fields.product_id, at);
            }
            "PriceChanged" => self.price_changed(at, fields),
            _ => self.fold_cart(event, fields),
        }
        Ok(())
    }

    fn price_changed(&mut self, at: i64, fields: Fields) {
        let product = fields.product_id;
        self.changes.insert(at, product);
        self.to_archive.extend(self.open.get(&product).into_iter().flatten().map(|(cart, item)| (*cart, *item, at)));
        self.prices.entry(product).or_default().push(fields.new_price.clone());
        self.newest_change.insert(product, PriceChange { old_price: fields.old_price, new_price: fields.new_price, at });
    }

    fn fold_cart(&mut self, event: &Event, fields: Fields) {
        let (at, event_type) = (event.position, event.event_type.as_str());
        let (cart_id, item_id) = (fields.cart_id, fields.item_id);
        self.cart_of.insert(at, cart_id);
        if event_type == "CartCreated" {
            if self.carts.insert(cart_id, Cart::default()).is_some() {
                self.fault(at, format!("cart {cart_id} is created once more"));
            }
            return;
        }
        let Some(cart) = self.carts.get_mut(&cart_id) else {
            if self.after == 0 {
                self.fault(at, format!("{event_type} in cart {cart_id}, which was never created"));
            } else {
                self.fold_older_cart(event, fields);
            }
            return;
        };
        if cart.submitted_at.is_some() && event_type != "CartPublished" {
            return self.fault(at, format!("{event_type} in cart {cart_id}, which has been submitted"));
        }
        match event_type {
            "ItemAdded" => {
                let shown = [fields.description, fields.image, fields.price.clone(), fields.device_fingerprint].join("|");
                cart.items.push(Item { id: item_id, product: fields.product_id, added_at: at, price: fields.price, shown });
                cart.added += 1;
                cart.most_items = cart.most_items.max(cart.items.len());
                let is_over = cart.items.len() > ROOM;
                self.open.entry(fields.product_id).or_default().insert((cart_id, item_id));
                if is_over {
                    self.fault(at, format!("cart {cart_id} has room for {ROOM} items and holds more"));
                }
            }
            "ItemRemoved" | "ItemArchived" => {
                let Some(index) = cart.items.iter().position(|item| item.id == item_id) else {
                    return self.fault(at, format!("{event_type} of item {item_id}, which is not in cart {cart_id}"));
                };
                let item = cart.items.remove(index);
                cart.removed += u64::from(event_type == "ItemRemoved");
                let cause = self.changes.get(&fields.price_changed_at);
                let has_cause = cause == Some(&item.product) && item.added_at < fields.price_changed_at;
                if event_type == "ItemArchived" && !has_cause {
                    self.fault(at, format!("item {item_id} is archived for position {}, which is no reason", fields.price_changed_at));
                }
                self.leaves(cart_id, &item);
            }
            "CartCleared" => {
                cart.cleared += 1;
                for item in std::mem::take(&mut cart.items) {
                    self.leaves(cart_id, &item);
                }
            }
            "CartSubmitted" => {
                cart.submitted_at = Some(at);
                let held = cart.items.iter().map(|item| (item.product, &item.price));
                let is_of_items = held.eq(fields.ordered_products.iter().map(|line| (line.product_id, &line.price)));
                let sold: Vec<_> = cart.items.iter().map(|item| (item.product, (cart_id, item.id))).collect();
                for (product, item) in sold {
                    self.open.entry(product).or_default().remove(&item);
                    self.left.insert(item);
                }
                if !is_of_items {
                    self.fault(at, format!("cart {cart_id} is submitted with other items than it holds"));
                }
                self.submitted(event, fields);
            }
            "CartPublished" => {
                let is_first = cart.submitted_at.is_some() && self.published.insert(cart_id);
                if !is_first {
                    self.fault(at, format!("CartPublished of cart {cart_id}, which is not submitted, or published before"));
                }
            }
            // An event of a slice that the simulated shop does not use.
            _ => {}
        }
    }

    /// A cart that was created before the model begins can still be submitted and published.
    fn fold_older_cart(&mut self, event: &Event, fields: Fields) {
        match event.event_type.as_str() {
            "CartSubmitted" => self.submitted(event, fields),
            "CartPublished" => drop(self.published.insert(fields.cart_id)),
            _ => {}
        }
    }

    fn submitted(&mut self, event: &Event, fields: Fields) {
        let at = event.position;
        let Fields { cart_id, ordered_products, total_price, .. } = fields;
        if sum(&ordered_products).is_none_or(|sum| format!("{sum:.2}") != total_price) {
            self.fault(at, format!("the total of cart {cart_id} is not the sum of its lines"));
        }
        let message = PublishedCart { cart_id, ordered_product: ordered_products, total_price };
        self.submissions.insert(at, Submission { ce_id: event.append_id.clone(), message });
    }

    fn leaves(&mut self, cart: Uuid, item: &Item) {
        self.open.entry(item.product).or_default().remove(&(cart, item.id));
        self.left.insert((cart, item.id));
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            cart_id: Uuid::nil(),
            item_id: Uuid::nil(),
            product_id: Uuid::nil(),
            description: String::new(),
            image: String::new(),
            price: String::new(),
            device_fingerprint: String::new(),
            price_changed_at: 0,
            ordered_products: vec![],
            total_price: String::new(),
            inventory: 0,
            old_price: String::new(),
            new_price: String::new(),
        }
    }
}

/// Returns the exact sum of lines; none if a price is no decimal.
#[must_use]
pub fn sum(lines: &[Line]) -> Option<Decimal> {
    lines.iter().map(|line| line.price.parse::<Decimal>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folded(after: i64, events: &[(&str, Value)]) -> Model {
        let event = |(position, (event_type, fields)): (i64, &(&str, Value))| Event {
            position,
            event_type: (*event_type).to_owned(),
            payload: json!({ *event_type: fields }).to_string().into_bytes(),
            append_id: format!("append-{position}"),
            trace: String::new(),
        };
        Model::of(&(after + 1..).zip(events).map(event).collect::<Vec<_>>(), after).unwrap()
    }

    fn added(cart: Uuid, item: Uuid, product: Uuid) -> (&'static str, Value) {
        ("ItemAdded", json!({"cart_id": cart, "item_id": item, "product_id": product, "price": "9.99"}))
    }

    #[test]
    fn submission_must_order_what_the_cart_holds() {
        let [cart, item, product] = [(); 3].map(|()| Uuid::now_v7());
        for (ordered, faults) in [("9.99", 0), ("9.98", 1)] {
            let ordered = json!([{"product_id": product, "price": ordered}]);
            let total = if faults == 0 { "9.99" } else { "9.98" };
            let submitted = ("CartSubmitted", json!({"cart_id": cart, "ordered_products": ordered, "total_price": total}));
            let model = folded(0, &[("CartCreated", json!({"cart_id": cart})), added(cart, item, product), submitted]);
            assert_eq!(model.faults.len(), faults, "{:?}", model.faults);
            assert_eq!((model.submissions[&3].message.cart_id, model.submissions[&3].ce_id.as_str()), (cart, "append-3"));
            assert_eq!(model.unfinished().len(), 1, "it is not published");
        }
    }

    #[test]
    fn item_is_archived_for_a_later_price_change_only() {
        let [cart, item, product] = [(); 3].map(|()| Uuid::now_v7());
        let archived = |at: i64| ("ItemArchived", json!({"cart_id": cart, "item_id": item, "price_changed_at": at}));
        let changed = ("PriceChanged", json!({"product_id": product, "new_price": "1.00"}));
        let begin = [("CartCreated", json!({"cart_id": cart})), added(cart, item, product), changed];
        assert_eq!(folded(0, &begin).unfinished().len(), 1);
        let with = |at| folded(0, &begin.iter().cloned().chain([archived(at)]).collect::<Vec<_>>());
        assert_eq!((with(3).unfinished().len(), with(3).faults.len()), (0, 0));
        assert_eq!(with(2).faults.len(), 1);
    }

    #[test]
    fn fourth_item_is_a_fault() {
        let cart = Uuid::now_v7();
        let adding = (0..4).map(|_| added(cart, Uuid::now_v7(), Uuid::now_v7()));
        let model = folded(0, &[("CartCreated", json!({"cart_id": cart}))].into_iter().chain(adding).collect::<Vec<_>>());
        assert_eq!(model.faults.len(), 1);
    }

    #[test]
    fn older_carts_are_unknown_but_for_their_messages() {
        let cart = Uuid::now_v7();
        let events = [
            added(cart, Uuid::now_v7(), Uuid::now_v7()),
            ("CartSubmitted", json!({"cart_id": cart, "ordered_products": [], "total_price": "0.00"})),
            ("CartPublished", json!({"cart_id": cart})),
        ];
        let model = folded(7, &events);
        assert_eq!((model.faults.len(), model.submissions.len(), model.unfinished().len()), (0, 1, 0));
        assert_eq!(folded(0, &events).faults.len(), 3);
    }
}
