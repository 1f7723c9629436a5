//! A command's rule.

use crate::{decide::stages::States, error::StoreError, event::LogEvent, position::Position};

/// A command's rule: disintegrate's `Decision`, extended by stages (see [`Dependent`](crate::Dependent)), by positions, and by success without
/// events.
///
/// The states it asks for are its consistency boundary: it is written only where, between what was read and its own position, no event
/// came that one of them folds.
pub trait Decision: Send + Sync {
    /// The log's events.
    type Event: LogEvent;
    /// The states it depends on.
    type StateQuery: States<Self::Event>;
    /// Its own word for no: a refusal is no fault.
    type Error: Send;

    /// The states, with nothing folded yet.
    fn state_query(&self) -> Self::StateQuery;

    /// Decides, from the states as the log made them. Pure: it may be run again, on newer states.
    ///
    /// # Errors
    /// Where the domain says no.
    fn process(&self, state: &View<Self>) -> Result<Decided<Self::Event>, Self::Error>;
}

/// What a decision sees of its states.
pub type View<D> = <<D as Decision>::StateQuery as States<<D as Decision>::Event>>::View;

/// What a decision comes to, where it does not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided<E> {
    /// These happened; at least one.
    Events(Vec<E>),
    /// Nothing happens, as it had happened already, here.
    AlreadyDone(Position),
    /// Nothing happens, as there is nothing to do.
    Nothing,
}

/// Why a decision came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DecideError<R> {
    /// The domain said no.
    #[error("refused")]
    Refused(R),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
