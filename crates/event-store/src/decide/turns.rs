//! Turns: commands of this process that would be in each other's way go one after the other.
//!
//! Commands that write what each other's conditions forbid go first come, first served: each decides on what the one before it left,
//! instead of being refused by the log for it. Two on one cart do; what a cart only reads, as a popular product's inventory, holds nobody
//! up. It is a courtesy: across processes, and for exactness, the log decides.
//!
//! Which commands those are, no slice says: a boundary within which a command writes what its own condition forbids is one that others
//! of its kind contend for, and so is everybody who writes there, whether their own condition asks for it or not. Clear Cart does not care
//! what is in the cart; those who add to it do care that it was cleared.

use std::sync::{PoisonError, RwLock};

use lockable::{LockPool, Lockable};
use uuid::Uuid;

use crate::query::query_item::QueryItem;

/// Ids in the schema's order: those of a item.
type Boundary = Vec<Option<Uuid>>;
/// A command's turn to write within a boundary.
pub(crate) type Turn<'a> = <LockPool<Boundary> as Lockable<Boundary, ()>>::Guard<'a>;

/// What is written within boundaries of these ids, for any value of them, is contended for.
#[derive(Debug)]
struct Contended {
    types: Vec<&'static str>,
    /// In the schema's order.
    ids: Vec<bool>,
}

impl Contended {
    fn boundary(&self, event_type: &str, ids: &[Option<Uuid>]) -> Option<Boundary> {
        let within = self.types.contains(&event_type) && self.ids.iter().zip(ids).all(|(asked, id)| !asked || id.is_some());
        within.then(|| self.ids.iter().zip(ids).map(|(asked, id)| id.filter(|_| *asked)).collect())
    }
}

#[derive(Default)]
pub(crate) struct Turns {
    /// As many as the slices have kinds of boundaries: a handful.
    contended: RwLock<Vec<Contended>>,
    taken: LockPool<Boundary>,
}

impl Turns {
    /// The turns of a command that asks with these items and is about to write these events. Answers also whether it had to wait.
    pub(crate) async fn take<'e, L, W>(&self, items: L, written: W) -> (Vec<Turn<'_>>, bool)
    where
        L: Iterator<Item = &'e QueryItem>,
        W: Iterator<Item = (&'e str, &'e [Option<Uuid>])> + Clone,
    {
        let own = items.filter(|item| written.clone().any(|(event_type, ids)| item.matches(event_type, ids)));
        own.for_each(|item| self.learn(item));
        let mut boundaries: Vec<_> = {
            let contended = self.contended.read().unwrap_or_else(PoisonError::into_inner);
            written.flat_map(|(event_type, ids)| contended.iter().filter_map(move |kind| kind.boundary(event_type, ids))).collect()
        };
        // One order, so that no two wait for each other.
        boundaries.sort_unstable();
        boundaries.dedup();
        let (mut turns, mut waited) = (vec![], false);
        for boundary in boundaries {
            let turn = match self.taken.try_lock(boundary.clone()) {
                Some(turn) => turn,
                None => {
                    waited = true;
                    self.taken.async_lock(boundary).await
                }
            };
            turns.push(turn);
        }
        (turns, waited)
    }

    fn learn(&self, item: &QueryItem) {
        let covers = |kind: &Contended| {
            kind.ids.iter().zip(&item.ids).all(|(asked, id)| *asked == id.is_some())
                && item.types.iter().all(|name| kind.types.contains(name))
        };
        if !self.contended.read().unwrap_or_else(PoisonError::into_inner).iter().any(covers) {
            let kind = Contended { types: item.types.clone(), ids: item.ids.iter().map(Option::is_some).collect() };
            self.contended.write().unwrap_or_else(PoisonError::into_inner).push(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(types: &[&'static str], ids: [Option<Uuid>; 2]) -> QueryItem {
        QueryItem { types: types.to_vec(), ids: ids.to_vec(), newest: false }
    }

    #[tokio::test]
    async fn turns_are_taken_within_what_somebody_both_asks_for_and_writes_and_nowhere_else() {
        let (cart, other, product) = (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(2)), Some(Uuid::from_u128(3)));
        let turns = Turns::default();
        let take = async |asks: &[QueryItem], event_type: &str, ids: [Option<Uuid>; 2]| {
            turns.take(asks.iter(), std::iter::once((event_type, &ids[..]))).await
        };
        // Nobody asks for carts yet.
        assert!(take(&[], "Cleared", [cart, None]).await.0.is_empty());
        // An add asks for its cart, and reads what is left of its product.
        let asks = [item(&["Added", "Cleared"], [cart, None]), item(&["InventoryChanged"], [None, product])];
        let (held, waited) = take(&asks, "Added", [cart, product]).await;
        assert_eq!((held.len(), waited), (1, false));
        let free = async |event_type: &str, ids| futures::poll!(std::pin::pin!(take(&[], event_type, ids))).is_ready();
        assert!(!free("Cleared", [cart, None]).await, "it asks for nothing, and writes what the add forbids");
        assert!(free("Cleared", [other, None]).await, "another cart");
        assert!(free("InventoryChanged", [None, product]).await, "what is only read holds nobody up");
        assert!(free("Renamed", [cart, None]).await, "what nobody forbids");
        drop(held);
        assert!(free("Cleared", [cart, None]).await);
    }
}
