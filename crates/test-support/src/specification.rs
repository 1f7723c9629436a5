//! Given events, when a command, then events: the event model's specifications, in memory. As disintegrate's `TestHarness`, with stages
//! and positions.

use std::fmt::Debug;

use event_store::{Decided, Decision, LogEvent, Position, fold_history};

/// What happened before. The first event stands at position 1.
pub struct Given<E>(Vec<(Position, E)>);

/// What a command came to.
pub struct Then<E, R>(Result<Decided<E>, R>);

/// Starts a specification.
pub fn given<E: LogEvent>(history: impl IntoIterator<Item = E>) -> Given<E> {
    Given((1..).map(Position).zip(history).collect())
}

impl<E: LogEvent> Given<E> {
    /// Runs a command on it.
    pub fn when<D: Decision<Event = E>>(self, command: &D) -> Then<E, D::Error> {
        let state = fold_history(command.state_query(), &self.0).expect("the states fit the schema");
        Then(command.process(&state))
    }
}

impl<E: Debug + PartialEq, R: Debug + PartialEq> Then<E, R> {
    /// These events happen.
    #[track_caller]
    pub fn then(self, events: impl IntoIterator<Item = E>) {
        assert_eq!(self.0, Ok(Decided::Events(events.into_iter().collect())));
    }

    /// It is refused.
    #[track_caller]
    pub fn then_refused(self, refusal: R) {
        assert_eq!(self.0, Err(refusal));
    }

    /// It succeeds without an event, as it had happened already, at this position.
    #[track_caller]
    pub fn then_already(self, position: i64) {
        assert_eq!(self.0, Ok(Decided::AlreadyDone(Position(position))));
    }

    /// It succeeds without an event, as there is nothing to do.
    #[track_caller]
    pub fn then_nothing(self) {
        assert_eq!(self.0, Ok(Decided::Nothing));
    }
}
