//! How projections are run, and the times that this takes.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How projections are run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Positions of the log that one transaction takes at the most.
    pub batch: i64,
    /// How long a process may be silent before others take over. It is heard of three times in it.
    pub lease: Duration,
    /// The longest pause before a batch that failed is tried again.
    pub max_backoff: Duration,
    /// Events of a projection that this process applies in a second at the most; 0 is as many as it can. For tests of what scaling does.
    pub throttle: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { batch: 10_000, lease: Duration::from_secs(3), max_backoff: Duration::from_secs(10), throttle: 0 }
    }
}

impl Settings {
    /// From the moment at which a process is silent until another has what it held, at the worst: killed just after a heartbeat, or frozen, in
    /// the middle of a transaction too, which the database ends after `idle`. What statements take comes to it.
    pub fn taken_over_within(&self, idle: Duration) -> Duration {
        // The lease runs out just after another has looked. Where rows are locked still, they are tried for again, and not only with the next
        // heartbeat.
        (self.lease + heartbeat(self.lease)).max(idle) + LOCKED
    }

    /// From the moment at which a process is known until it has its share: at the worst the others see it with their next heartbeat, and it
    /// sees with its own what they have handed back.
    pub fn shared_within(&self) -> Duration {
        heartbeat(self.lease) * 2
    }

    /// As they are kept to: slowed down, batches are so small that the pauses between them stay short.
    pub(crate) fn kept(mut self) -> Self {
        if self.throttle > 0 {
            self.batch = self.batch.min(i64::from(self.throttle / 2));
        }
        self.batch = self.batch.max(1);
        self
    }

    /// Until so many events have taken as long as they are to take, since they were begun.
    pub(crate) async fn slow_down(&self, events: usize, begun: Instant) {
        if self.throttle > 0 {
            sleep_until(begun + Duration::from_secs_f64(events as f64 / f64::from(self.throttle))).await;
        }
    }
}

/// How long after a heartbeat the next one comes, at the latest.
pub(crate) fn heartbeat(lease: Duration) -> Duration {
    lease / 3
}

/// The pause after which it is tried again to take what somebody who is not alive has locked: the database ends such a transaction.
pub(crate) const LOCKED: Duration = Duration::from_millis(200);

/// How long what is done seldom may take: past it the database does not answer.
pub(crate) const SLOW: Duration = Duration::from_secs(30);

/// How long a batch may take to be read or written. Longer than the role's transaction_timeout, which says why it ends.
pub(crate) const BATCH_TIMEOUT: Duration = Duration::from_secs(40);
