//! A command's rule.

use crate::{decide::stages::States, error::StoreError, event::LogEvent, position::Position};

/// A command's rule: disintegrate's `Decision` with stages (see [`Dependent`](crate::Dependent)), positions, and success without events.
///
/// The states are the consistency boundary. The events are written only if no event that a state folds was written between reading the
/// states and appending.
///
/// The first state should be the one that the command changes. In one process, commands whose first states name the same first id append
/// one after the other.
pub trait Decision: Send + Sync {
    /// The log's events.
    type Event: LogEvent;
    /// The states that the decision depends on.
    type StateQuery: States<Self::Event>;
    /// The domain's refusal. A refusal is not a fault.
    type Error: Send;

    /// Returns the states in their initial values.
    fn state_query(&self) -> Self::StateQuery;

    /// Decides on the folded states. Must be pure: it runs again on newer states after a conflict.
    ///
    /// # Errors
    /// The domain's refusal.
    fn process(&self, state: &View<Self>) -> Result<Decided<Self::Event>, Self::Error>;
}

/// The view that a decision has of its states.
pub type View<D> = <<D as Decision>::StateQuery as States<<D as Decision>::Event>>::View;

/// The outcome of a decision that does not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided<E> {
    /// These events happen: at least one.
    Events(Vec<E>),
    /// Nothing happens, because it happened before, at this position.
    AlreadyDone(Position),
    /// Nothing happens, because there is nothing to do.
    Nothing,
}

/// Why a decision wrote nothing.
#[derive(Debug, thiserror::Error)]
pub enum DecideError<R> {
    /// The domain refused.
    #[error("refused")]
    Refused(R),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
