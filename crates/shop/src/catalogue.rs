//! The products of the shop.

use rand::Rng;
use rand::seq::IndexedRandom;
use rust_decimal::Decimal;
use uuid::Uuid;

/// A product.
#[derive(Debug, Clone)]
pub struct Product {
    /// Its id.
    pub id: Uuid,
    /// Its description.
    pub description: String,
    /// Its price at the start of the day.
    pub price: Decimal,
    /// Its inventory at the start of the day.
    pub inventory: u32,
}

/// The products. Something happens to three of them.
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
    /// Draws prices and inventories at random.
    #[must_use]
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

    /// Every product.
    #[must_use]
    pub fn all(&self) -> &[Product] {
        &self.products
    }

    /// The product that is out of stock all day.
    #[must_use]
    pub fn never_in_stock(&self) -> &Product {
        &self.products[0]
    }

    /// The product that runs out at noon.
    #[must_use]
    pub fn runs_out(&self) -> &Product {
        &self.products[1]
    }

    /// The product whose price changes at noon.
    #[must_use]
    pub fn changes_price(&self) -> &Product {
        &self.products[2]
    }

    /// Draws a product for a shopper. The three special ones are popular.
    #[must_use]
    pub fn any(&self) -> &Product {
        let mut random = rand::rng();
        let popular = &self.products[..3];
        let shelf = if random.random_bool(0.25) { popular } else { &self.products[..] };
        shelf.choose(&mut random).unwrap_or(&self.products[0])
    }
}
