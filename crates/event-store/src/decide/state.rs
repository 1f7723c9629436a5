//! States: what a decision folds.

use std::hash::Hash;

use disintegrate::StateQuery;

use crate::position::Position;

/// A state that a decision folds: disintegrate's `StateQuery` (derive it), and how an event changes it.
///
/// Keep it small: what is folded is what the decision depends on. Its query, with the ids it was made with, is its part of the
/// consistency boundary. `Eq` and `Hash`, as it is kept for the next decision that starts from the same value; what it hashes is also
/// taken for what it holds.
pub trait State: StateQuery + Eq + Hash + 'static {
    /// The newest matching event suffices, as for a product's inventory: only that one is read, however many there are. (The index of a
    /// product has the event's type; a cart's and an item's events of other types are walked over, and with no id the log's from its head.)
    const NEWEST_SUFFICES: bool = false;

    /// Takes an event of the query in. `at` is the event's position.
    fn mutate(&mut self, event: Self::Event, at: Position);
}
