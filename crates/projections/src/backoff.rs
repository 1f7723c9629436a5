//! Pauses before something is tried again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The pause before something is tried again: doubled each time, and short again after a time that went well.
pub(crate) struct Backoff {
    pause: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) const FIRST: Duration = Duration::from_millis(50);

    pub(crate) fn new(max: Duration) -> Self {
        Self { pause: Self::FIRST, max }
    }

    /// Something was done: what goes wrong after that is not the same trouble any more.
    pub(crate) fn went_well(&mut self) {
        self.pause = Self::FIRST;
    }

    /// `started`: since when it went well.
    pub(crate) async fn pause(&mut self, started: Instant) {
        // What went well for longer than the longest pause is not the same trouble any more.
        if started.elapsed() > self.max {
            self.pause = Self::FIRST;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(self.max);
    }
}
