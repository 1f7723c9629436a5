//! Whether an append was sent. Its caller and the appender agree on this, so that a caller never claims an unknown outcome for an append
//! that did not leave the process.

use std::sync::atomic::{AtomicU8, Ordering};

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// The state of a command's append.
#[derive(Debug, Default)]
pub(crate) struct SendState(AtomicU8);

impl SendState {
    /// Marks the append as sent. Returns `false` if its caller has given up; then it must not be sent.
    pub(crate) fn send(&self) -> bool {
        match self.0.compare_exchange(QUEUED, SENT, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            // It is sent once more, after a lost connection.
            Err(state) => state == SENT,
        }
    }

    /// Marks the append as not written.
    pub(crate) fn not_written(&self) {
        // If its caller has given up, that stays so.
        let _ = self.0.compare_exchange(SENT, QUEUED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Gives the append up. Returns whether it was sent: then its outcome is unknown.
    pub(crate) fn give_up(&self) -> bool {
        self.0.swap(GIVEN_UP, Ordering::AcqRel) == SENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_append_is_never_sent() {
        let state = SendState::default();
        assert!(!state.give_up(), "it is queued: nothing is written");
        assert!(!state.send());
    }

    #[test]
    fn sent_append_has_an_unknown_outcome_until_answered() {
        let state = SendState::default();
        assert!(state.send());
        assert!(state.send(), "again, after a lost connection");
        assert!(state.give_up());
        let state = SendState::default();
        assert!(state.send());
        state.not_written();
        assert!(!state.give_up());
    }
}
