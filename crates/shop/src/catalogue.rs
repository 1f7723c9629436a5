//! What the shop sells today.

use rand::Rng;
use rand::seq::IndexedRandom;
use rust_decimal::Decimal;
use uuid::Uuid;

/// A product of the shop.
#[derive(Debug, Clone)]
pub struct Product {
    pub id: Uuid,
    pub description: String,
    pub price: Decimal,
    pub inventory: u32,
}

/// The products, among them three with a fate.
#[derive(Debug)]
pub struct Catalogue {
    products: Vec<Product>,
}

const THINGS: [&str; 12] = [
    "tea pot",
    "tea cup",
    "tea strainer",
    "sugar bowl",
    "cake stand",
    "milk jug",
    "saucer",
    "kettle",
    "tea towel",
    "tea cosy",
    "honey spoon",
    "tea caddy",
];
const KINDS: [&str; 4] = ["blue", "white", "stoneware", "old"];

impl Catalogue {
    pub fn draw() -> Self {
        let mut random = rand::rng();
        let names = KINDS.iter().flat_map(|kind| THINGS.iter().map(move |thing| format!("A {kind} {thing}")));
        let mut products: Vec<Product> = names
            .map(|description| Product {
                id: Uuid::now_v7(),
                description,
                price: Decimal::new(random.random_range(99..9_999), 2),
                inventory: random.random_range(20..500),
            })
            .collect();
        products[0].inventory = 0;
        Self { products }
    }

    pub fn all(&self) -> &[Product] {
        &self.products
    }

    /// Out of stock from the morning on.
    pub fn never_in_stock(&self) -> &Product {
        &self.products[0]
    }

    /// Runs out at noon.
    pub fn runs_out(&self) -> &Product {
        &self.products[1]
    }

    /// Changes its price at noon.
    pub fn changes_price(&self) -> &Product {
        &self.products[2]
    }

    /// Most shoppers take anything, and the three with a fate are popular.
    pub fn any(&self) -> &Product {
        let mut random = rand::rng();
        let popular = &self.products[..3];
        let shelf = if random.random_bool(0.25) { popular } else { &self.products[..] };
        shelf.choose(&mut random).unwrap_or(&self.products[0])
    }
}
