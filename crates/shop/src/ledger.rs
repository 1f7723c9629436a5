//! What the shoppers were told, to be compared with the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::client::Answer;

/// Shared by all shoppers.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

/// The ledger's content.
#[derive(Debug, Default, Clone)]
pub struct Entries {
    pub carts: BTreeSet<Uuid>,
    pub added: u64,
    pub removed: u64,
    pub cleared: u64,
    pub submitted: u64,
    /// Removals and clearings that may have been carried out before an answer was lost.
    pub perhaps_removed: u64,
    pub perhaps_cleared: u64,
    pub refusals: BTreeMap<String, u64>,
    pub surprises: Vec<String>,
}

impl Ledger {
    pub fn cart(&self, cart: Uuid) {
        self.lock().carts.insert(cart);
    }

    pub fn added(&self, answer: Answer) -> bool {
        // Only what was in the cart can be gone from it.
        let answer = if answer == Answer::RefusedAfterAll("item_gone".to_owned()) { Answer::Accepted } else { answer };
        self.count(answer, |entries| &mut entries.added)
    }

    pub fn removed(&self, answer: Answer) -> bool {
        if let Answer::RefusedAfterAll(_) = answer {
            self.lock().perhaps_removed += 1;
        }
        self.count(answer, |entries| &mut entries.removed)
    }

    pub fn cleared(&self, answer: Answer) -> bool {
        if let Answer::RefusedAfterAll(_) = answer {
            self.lock().perhaps_cleared += 1;
        }
        self.count(answer, |entries| &mut entries.cleared)
    }

    pub fn submitted(&self, answer: Answer) -> bool {
        // A cart has one shopper.
        let answer = if answer == Answer::RefusedAfterAll("cart_submitted".to_owned()) { Answer::Accepted } else { answer };
        self.count(answer, |entries| &mut entries.submitted)
    }

    /// Notes what must not have happened.
    pub fn expect(&self, held: bool, surprise: impl FnOnce() -> String) {
        if !held {
            self.lock().surprises.push(surprise());
        }
    }

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
