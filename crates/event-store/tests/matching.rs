//! A query matches the same events in memory and in SQL, for any events and ids.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot continue fails")]

use cart_events::{ArchivingStream, CartId, CartStream, DomainEvent, ItemId, ProductId, examples::Shopping};
use disintegrate::StateQuery;
use event_store::{EventStore, Position, State, StoreSettings, fold_history};
use proptest::prelude::*;
use test_support::TestLog;

macro_rules! seen {
    ($name:ident, $stream:ident, { $($id:ident: $type:ty),* }, newest: $newest:literal) => {
        /// The positions that it folded: all, or the last.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
        #[state_query($stream)]
        struct $name {
            $(#[id] $id: $type,)*
            seen: Vec<i64>,
        }

        impl State for $name {
            const NEWEST_SUFFICES: bool = $newest;

            fn mutate(&mut self, _: $stream, at: Position) {
                if $newest {
                    self.seen.clear();
                }
                self.seen.push(at.0);
            }
        }
    };
}
seen!(OfCart, CartStream, { cart_id: CartId }, newest: false);
seen!(OfItem, CartStream, { cart_id: CartId, item_id: ItemId }, newest: false);
seen!(OfItemAnywhere, ArchivingStream, { item_id: ItemId }, newest: false);
seen!(OfProduct, ArchivingStream, { product_id: ProductId }, newest: false);
seen!(OfAll, ArchivingStream, { cart_id: CartId, item_id: ItemId, product_id: ProductId }, newest: false);
seen!(OfTypes, ArchivingStream, {}, newest: false);
seen!(LastOfCart, CartStream, { cart_id: CartId }, newest: true);
seen!(LastOfItem, ArchivingStream, { item_id: ItemId }, newest: true);
seen!(LastOfProduct, ArchivingStream, { product_id: ProductId }, newest: true);
seen!(LastOfTypes, ArchivingStream, {}, newest: true);

/// Few carts and products, so that ids coincide.
fn event(carts: &[Shopping], (kind, cart, n): (u8, usize, usize)) -> DomainEvent {
    let cart = &carts[cart];
    match kind {
        0 => cart.created(),
        1 => cart.added(n),
        2 => cart.removed(n),
        3 => cart.archived(n),
        4 => cart.cleared(),
        5 => cart.submitted(n),
        6 => cart.inventory(n, 1),
        _ => cart.price_changed(n),
    }
}

#[test]
#[ignore = "needs PostgreSQL: cargo dev test"]
fn queries_match_the_same_in_memory_and_in_sql() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = Shopping::new();
    let carts = [first.other_cart(), first.other_cart(), first];
    let log = runtime.block_on(TestLog::<DomainEvent>::create());
    // Each case empties the log, which no server does: cached states would be another log's.
    let settings = StoreSettings { state_cache_bytes: 0, ..StoreSettings::default() };
    let store = runtime.block_on(async { EventStore::<DomainEvent>::new(log.database.options(), settings) });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 32, ..ProptestConfig::default() });
    let history = proptest::collection::vec((0..8_u8, 0..3_usize, 0..4_usize), 1..60);
    runner
        .run(&(history, 0..3_usize, 0..4_usize), |(history, cart, n)| {
            let history: Vec<_> = history.into_iter().map(|one| event(&carts, one)).collect();
            runtime.block_on(async {
                sqlx::query("TRUNCATE event").execute(log.store.pool()).await.unwrap();
                log.append(history.clone()).await;
            });
            let history: Vec<_> = (1..).map(Position).zip(history).collect();
            let (cart_id, item_id, product_id) = (carts[cart].cart_id, carts[cart].item(n), carts[cart].product(n));
            macro_rules! same {
                ($state:expr) => {
                    let in_sql = runtime.block_on(store.read($state)).unwrap().0;
                    prop_assert_eq!(in_sql, fold_history($state, &history).unwrap());
                };
            }
            let seen: Vec<i64> = vec![];
            same!(OfCart { cart_id, seen: seen.clone() });
            same!(OfItem { cart_id, item_id, seen: seen.clone() });
            same!(OfItemAnywhere { item_id, seen: seen.clone() });
            same!(OfProduct { product_id, seen: seen.clone() });
            same!(OfAll { cart_id, item_id, product_id, seen: seen.clone() });
            same!(OfTypes { seen: seen.clone() });
            same!(LastOfCart { cart_id, seen: seen.clone() });
            same!(LastOfItem { item_id, seen: seen.clone() });
            same!(LastOfProduct { product_id, seen: seen.clone() });
            same!(LastOfTypes { seen: seen.clone() });
            Ok(())
        })
        .unwrap();
}
