//! One shopper's visit.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use uuid::Uuid;

use crate::catalogue::Catalogue;
use crate::client::{Answer, Shop};
use crate::ledger::Ledger;
use embedded::error::Error;

/// Adds items, hesitates, removes, clears, and mostly submits. The answers go into the ledger.
///
/// # Errors
/// The shop stays unavailable, or gives an unexpected answer.
pub async fn visit(shop: &Shop, catalogue: &Catalogue, ledger: &Ledger) -> Result<(), Error> {
    let cart = Uuid::now_v7();
    ledger.cart(cart);
    hesitate(1_500).await;

    let mut items = Vec::new();
    let wishes = rand::rng().random_range(1..=5);
    for _ in 0..wishes {
        let item = Uuid::now_v7();
        let product = catalogue.any();
        let answer = shop.add(cart, item, product).await?;
        if ledger.added(answer) {
            items.push(item);
            // As after a lost reply: the same item again must not become a second item.
            if chance(0.05) {
                let again = shop.add(cart, item, product).await?;
                // A price change may have archived the item in between.
                if product.id != catalogue.changes_price().id {
                    ledger.expect(again == Answer::Accepted, || format!("the same item again was {again:?}"));
                }
            }
        }
        hesitate(300).await;
        let regretted = items.choose(&mut rand::rng()).copied().filter(|_| chance(0.15));
        if let Some(item) = regretted {
            ledger.removed(shop.remove(cart, item).await?);
            items.retain(|kept| *kept != item);
        }
    }
    if items.is_empty() || chance(0.25) {
        // Some shoppers leave without an order. Some of them clear the cart first.
        if !items.is_empty() && chance(0.3) {
            ledger.cleared(shop.clear(cart).await?);
        }
        return Ok(());
    }
    hesitate(500).await;
    submit(shop, catalogue, ledger, cart).await
}

/// Submits the cart. If the shop refuses, removes the product that ran out and submits again.
async fn submit(shop: &Shop, catalogue: &Catalogue, ledger: &Ledger, cart: Uuid) -> Result<(), Error> {
    if ledger.submitted(shop.submit(cart).await?) {
        if chance(0.1) {
            let again = shop.submit(cart).await?;
            ledger.expect(again != Answer::Accepted, || format!("cart {cart} was submitted twice"));
        }
        return Ok(());
    }
    for item in shop.items(cart).await?.data {
        if item.product_id == catalogue.runs_out().id {
            ledger.removed(shop.remove(cart, item.item_id).await?);
        }
    }
    // The shop refuses again if nothing is left.
    ledger.submitted(shop.submit(cart).await?);
    Ok(())
}

/// Waits for a random time, as people think before they click.
async fn hesitate(milliseconds: u64) {
    let thinking = rand::rng().random_range(0..milliseconds);
    tokio::time::sleep(Duration::from_millis(thinking)).await;
}

fn chance(probability: f64) -> bool {
    rand::rng().random_bool(probability)
}
