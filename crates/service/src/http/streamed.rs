//! The exchange between a stream and its query.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use event_store::Position;

/// Carries the questions of a stream to its query, and facts about the answer back. The request's extensions carry it to `MinPosition`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streamed {
    /// The answer includes the log up to here.
    pub(crate) least: Position,
    /// Whether this is the first answer. Only the first one heeds the client's `min_position` and `timeout`.
    pub(crate) is_first: bool,
    complete_to: Arc<AtomicI64>,
    of_every_key: Arc<AtomicBool>,
}

impl Streamed {
    /// Asks for the first answer, which includes the log up to a position and all that the client asks for.
    pub(crate) fn first(least: Position) -> Self {
        Self { least, is_first: true, ..Self::default() }
    }

    /// Asks again, for an answer that includes the log up to a position.
    pub(crate) fn again(least: Position) -> Self {
        Self { least, ..Self::default() }
    }

    /// Notes up to which position the answer is complete, and whether it depends on other keys than the path's ids.
    pub(crate) fn answered(&self, complete_to: Position, of_every_key: bool) {
        self.complete_to.store(complete_to.0, Ordering::Relaxed);
        self.of_every_key.store(of_every_key, Ordering::Relaxed);
    }

    /// The position up to which the answer is complete.
    pub(crate) fn complete_to(&self) -> Position {
        Position(self.complete_to.load(Ordering::Relaxed))
    }

    /// Whether the answer depends on other keys than the path's ids.
    pub(crate) fn is_of_every_key(&self) -> bool {
        self.of_every_key.load(Ordering::Relaxed)
    }
}
