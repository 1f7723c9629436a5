//! Given/when/then specifications of decisions, in memory.
//!
//! Modelled on disintegrate's `TestHarness`, with stages and positions added.

use std::fmt::Debug;

use event_store::{Decided, Decision, LogEvent, Position, fold_history};

/// The history before a command. Its first event is at position 1.
pub struct Given<E>(Vec<(Position, E)>);

/// The outcome of a command.
pub struct Then<E, R>(Result<Decided<E>, R>);

/// Starts a specification with a history.
pub fn given<E: LogEvent>(history: impl IntoIterator<Item = E>) -> Given<E> {
    Given((1..).map(Position).zip(history).collect())
}

impl<E: LogEvent> Given<E> {
    /// Runs a command on the history.
    pub fn when<D: Decision<Event = E>>(self, command: &D) -> Then<E, D::Error> {
        let state = fold_history(command.state_query(), &self.0).expect("the states fit the schema");
        Then(command.process(&state))
    }
}

impl<E: Debug + PartialEq, R: Debug + PartialEq> Then<E, R> {
    /// Asserts that the command returns these events.
    #[track_caller]
    pub fn then(self, events: impl IntoIterator<Item = E>) {
        assert_eq!(self.0, Ok(Decided::Events(events.into_iter().collect())));
    }

    /// Asserts that the command is refused.
    #[track_caller]
    pub fn then_refused(self, refusal: R) {
        assert_eq!(self.0, Err(refusal));
    }

    /// Asserts that the command was done before, at this position: it succeeds without an event.
    #[track_caller]
    pub fn then_already_done(self, position: i64) {
        assert_eq!(self.0, Ok(Decided::AlreadyDone(Position(position))));
    }

    /// Asserts that there is nothing to do: the command succeeds without an event.
    #[track_caller]
    pub fn then_nothing(self) {
        assert_eq!(self.0, Ok(Decided::Nothing));
    }
}
