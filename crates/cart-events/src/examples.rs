//! A cart, its items and their events, for specifications.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "for tests")]

use crate::{CartId, DomainEvent, Inventory, ItemId, OrderedProduct, Price, ProductId};

pub struct Shopping {
    pub cart_id: CartId,
    pub items: [(ItemId, ProductId); 4],
}

const PRICES: [&str; 4] = ["10.10", "11.10", "12.10", "13.10"];

impl Shopping {
    pub fn new() -> Self {
        Self { cart_id: CartId::new(), items: std::array::from_fn(|_| (ItemId::new(), ProductId::new())) }
    }

    /// Creates another cart with other items of the same products.
    pub fn other_cart(&self) -> Self {
        Self { cart_id: CartId::new(), items: self.items.map(|(_, product_id)| (ItemId::new(), product_id)) }
    }

    pub fn item(&self, n: usize) -> ItemId {
        self.items[n].0
    }

    pub fn product(&self, n: usize) -> ProductId {
        self.items[n].1
    }

    pub fn created(&self) -> DomainEvent {
        DomainEvent::CartCreated { cart_id: self.cart_id }
    }

    pub fn added(&self, n: usize) -> DomainEvent {
        DomainEvent::ItemAdded {
            cart_id: self.cart_id,
            item_id: self.item(n),
            product_id: self.product(n),
            description: format!("Item {n}").try_into().unwrap(),
            image: format!("{n}.png").try_into().unwrap(),
            price: PRICES[n].parse().unwrap(),
            device_fingerprint: "default-fingerprint".into(),
        }
    }

    /// Adds an item with the product of another item, at a price of its own.
    pub fn added_again(&self, n: usize, product: usize) -> DomainEvent {
        let mut other = Self { cart_id: self.cart_id, items: self.items };
        other.items[n].1 = self.product(product);
        other.added(n)
    }

    /// Creates the cart and adds its first items.
    pub fn with_items(&self, n: usize) -> impl Iterator<Item = DomainEvent> {
        [self.created()].into_iter().chain((0..n).map(|n| self.added(n)))
    }

    pub fn removed(&self, n: usize) -> DomainEvent {
        DomainEvent::ItemRemoved { cart_id: self.cart_id, item_id: self.item(n) }
    }

    pub fn archived(&self, n: usize) -> DomainEvent {
        DomainEvent::ItemArchived { cart_id: self.cart_id, item_id: self.item(n), price_changed_at: 1 }
    }

    pub fn cleared(&self) -> DomainEvent {
        DomainEvent::CartCleared { cart_id: self.cart_id }
    }

    /// Submits the cart with its first items.
    pub fn submitted(&self, n: usize) -> DomainEvent {
        let line = |n: usize| OrderedProduct { product_id: self.product(n), price: PRICES[n].parse().unwrap() };
        let ordered_products: Vec<_> = (0..n).map(line).collect();
        let total_price = ordered_products.iter().map(|line| &line.price).sum();
        DomainEvent::CartSubmitted { cart_id: self.cart_id, ordered_products, total_price }
    }

    pub fn inventory(&self, n: usize, inventory: i64) -> DomainEvent {
        DomainEvent::InventoryChanged { product_id: self.product(n), inventory: Inventory::try_from(inventory).unwrap() }
    }

    pub fn price_changed(&self, n: usize) -> DomainEvent {
        let price = |text: &str| text.parse::<Price>().unwrap();
        DomainEvent::PriceChanged { product_id: self.product(n), old_price: price(PRICES[n]), new_price: price("8.00") }
    }
}

impl Default for Shopping {
    fn default() -> Self {
        Self::new()
    }
}
