//! Settings of a store.

use std::time::Duration;

/// Settings of a store.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Connections for reading and projecting: at least 4. The appender opens two more, and the listener one.
    pub max_connections: u32,
    /// How long a command may take, retries included. Then it fails with [`Busy`](crate::StoreError::Busy) or
    /// [`OutcomeUnknown`](crate::StoreError::OutcomeUnknown).
    pub command_timeout: Duration,
    /// Bytes that cached states may take, estimated from their content. With 0 nothing is cached, and every decision reads first; answers
    /// are the same.
    pub state_cache_bytes: usize,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// Appends in one call at most, and commands on their way to the log at most.
    pub max_batch: usize,
    /// The shortest time between two announcements of the head.
    pub announce_interval: Duration,
    /// How often the head is polled, in case an announcement is lost.
    pub poll_interval: Duration,
    /// The timeouts that the server keeps for each session.
    pub timeouts: SessionTimeouts,
}

/// Timeouts that the server keeps for a session, whatever becomes of this process. `None` means no timeout.
#[derive(Debug, Clone)]
pub struct SessionTimeouts {
    /// How long a transaction may wait for its next statement. A frozen process holds the append lock or a checkpoint's row for as long.
    pub idle_in_transaction: Duration,
    /// How long a transaction may take.
    pub transaction: Option<Duration>,
    /// How long a statement may take.
    pub statement: Option<Duration>,
    /// How long a statement may wait for a lock.
    pub lock: Option<Duration>,
}

impl Default for SessionTimeouts {
    fn default() -> Self {
        Self { idle_in_transaction: Duration::from_secs(3), transaction: Some(Duration::from_secs(5)), statement: None, lock: None }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            max_connections: 10,
            command_timeout: Duration::from_secs(10),
            state_cache_bytes: 32_000_000,
            connect_timeout: Duration::from_secs(2),
            max_batch: 256,
            announce_interval: Duration::from_millis(5),
            poll_interval: Duration::from_secs(1),
            timeouts: SessionTimeouts::default(),
        }
    }
}
