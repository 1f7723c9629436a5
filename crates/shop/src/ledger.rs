//! The answers that the shoppers got, for the comparison with the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::client::Answer;

/// Counts the answers of all shoppers.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

/// The counts.
#[derive(Debug, Default, Clone)]
pub struct Entries {
    /// The shoppers' carts.
    pub carts: BTreeSet<Uuid>,
    /// Items added.
    pub added: u64,
    /// Items removed.
    pub removed: u64,
    /// Carts cleared.
    pub cleared: u64,
    /// Carts submitted.
    pub submitted: u64,
    /// Removals that may have been carried out although their answer was lost.
    pub perhaps_removed: u64,
    /// Clearings that may have been carried out although their answer was lost.
    pub perhaps_cleared: u64,
    /// Refusals by their code.
    pub refusals: BTreeMap<String, u64>,
    /// Answers that must not occur.
    pub surprises: Vec<String>,
}

impl Ledger {
    /// Notes a shopper's cart.
    pub fn cart(&self, cart: Uuid) {
        self.lock().carts.insert(cart);
    }

    /// Notes the answer to an Add Item, and tells whether the item is in the cart.
    pub fn added(&self, answer: Answer) -> bool {
        // The lost attempt had added it: only an item that was in the cart can have left it.
        let answer = if answer == Answer::RefusedAfterAll("item_gone".to_owned()) { Answer::Accepted } else { answer };
        self.count(answer, |entries| &mut entries.added)
    }

    /// Notes the answer to a Remove Item, and tells whether it was accepted.
    pub fn removed(&self, answer: Answer) -> bool {
        if let Answer::RefusedAfterAll(_) = answer {
            self.lock().perhaps_removed += 1;
        }
        self.count(answer, |entries| &mut entries.removed)
    }

    /// Notes the answer to a Clear Cart, and tells whether it was accepted.
    pub fn cleared(&self, answer: Answer) -> bool {
        if let Answer::RefusedAfterAll(_) = answer {
            self.lock().perhaps_cleared += 1;
        }
        self.count(answer, |entries| &mut entries.cleared)
    }

    /// Notes the answer to a Submit Cart, and tells whether the cart is submitted.
    pub fn submitted(&self, answer: Answer) -> bool {
        // A cart has one shopper, so the lost attempt had submitted it.
        let answer = if answer == Answer::RefusedAfterAll("cart_submitted".to_owned()) { Answer::Accepted } else { answer };
        self.count(answer, |entries| &mut entries.submitted)
    }

    /// Notes a surprise unless `held`.
    pub fn expect(&self, held: bool, surprise: impl FnOnce() -> String) {
        if !held {
            self.lock().surprises.push(surprise());
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn entries(&self) -> Entries {
        self.lock().clone()
    }

    fn count(&self, answer: Answer, accepted: fn(&mut Entries) -> &mut u64) -> bool {
        let mut entries = self.lock();
        match answer {
            Answer::Accepted => {
                *accepted(&mut entries) += 1;
                true
            }
            Answer::Refused(code) | Answer::RefusedAfterAll(code) => {
                *entries.refusals.entry(code).or_default() += 1;
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
