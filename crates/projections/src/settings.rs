//! Settings of projections, and the timeouts that follow from them.

use std::time::Duration;

use event_store::Backoff;
use tokio::time::{Instant, sleep_until};

/// Settings of a projection or an automation in this process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The most log positions that one transaction applies.
    pub batch: i64,
    /// How long others wait for a replica's next heartbeat before they take over its segments. It sends three heartbeats in this time.
    pub lease: Duration,
    /// The longest pause before a failed batch is retried.
    pub max_backoff: Duration,
    /// The most events per second that this process applies; 0 for no limit. For tests of scaling.
    pub throttle: u32,
    /// How long an automation's done to-dos are kept.
    pub todo_retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch: 10_000,
            lease: Duration::from_secs(3),
            max_backoff: Duration::from_secs(10),
            throttle: 0,
            todo_retention: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}

impl Settings {
    /// Returns the longest time from the moment a replica dies or freezes until another owns its segments, without the time of the statements.
    /// `idle` is the database's idle_in_transaction_session_timeout: until then, a frozen transaction keeps its rows locked.
    pub fn taken_over_within(&self, idle: Duration) -> Duration {
        // Another replica sees the last heartbeat with its own next one, and waits for the lease. Locked rows are retried sooner.
        (self.lease + heartbeat(self.lease)).max(idle) + LOCKED
    }

    /// Returns the longest time from the moment a replica is registered until it owns its share: the others see it with their next heartbeat
    /// and release segments, and it sees those with its own next heartbeat.
    pub fn shared_within(&self) -> Duration {
        heartbeat(self.lease) * 2
    }

    /// Creates the backoff of a worker, or of a blocked segment.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(Duration::from_millis(50), self.max_backoff)
    }

    /// Limits a throttled batch to half a second's events, so that the pauses between batches stay short.
    pub(crate) fn effective(mut self) -> Self {
        if self.throttle > 0 {
            self.batch = self.batch.min(i64::from(self.throttle / 2));
        }
        self.batch = self.batch.max(1);
        self
    }

    /// Sleeps until a batch that began at `begun` has taken as long as the throttle demands.
    pub(crate) async fn throttle(&self, events: usize, begun: Instant) {
        if self.throttle > 0 {
            sleep_until(begun + Duration::from_secs_f64(events as f64 / f64::from(self.throttle))).await;
        }
    }
}

/// Returns the longest pause between two heartbeats.
pub(crate) fn heartbeat(lease: Duration) -> Duration {
    lease / 3
}

/// Returns how long a heartbeat may take, with its connection. Then it is given up and a new connection is made.
pub(crate) fn heartbeat_timeout(lease: Duration) -> Duration {
    lease.clamp(Duration::from_secs(1), Duration::from_secs(5))
}

/// The pause before segments are acquired again whose rows a dead replica's transaction still locks.
pub(crate) const LOCKED: Duration = Duration::from_millis(200);

/// The timeout of rare work, such as registering.
pub(crate) const RARE_TIMEOUT: Duration = Duration::from_secs(30);

/// The timeout for reading or writing a batch. Longer than the role's transaction_timeout, whose error says why a batch was ended.
pub(crate) const BATCH_TIMEOUT: Duration = Duration::from_secs(40);
