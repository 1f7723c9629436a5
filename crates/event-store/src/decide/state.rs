//! A state that a decision folds.

use std::hash::Hash;

use disintegrate::StateQuery;

use crate::position::Position;

/// A state that a decision folds: disintegrate's `StateQuery` (derive it), and how an event changes it.
///
/// Keep it small: a decision depends on every event that its states fold. The query, with the ids of the initial value, is the state's
/// part of the consistency boundary. `Eq` and `Hash` are the key of the state cache; the bytes that a state hashes are also the estimate
/// of its size.
pub trait State: StateQuery + Eq + Hash + 'static {
    /// Whether the newest matching event is enough, as for a product's inventory. Then only that event is read.
    ///
    /// This is fast for a query by product, whose index holds the event type. A query by cart or item walks over the events of other
    /// types, and one without an id walks back from the head.
    const NEWEST_SUFFICES: bool = false;

    /// Applies an event of the query. `at` is the event's position.
    fn mutate(&mut self, event: Self::Event, at: Position);
}
