//! How a store behaves.

use std::time::Duration;

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Connections for reading, projecting and listening; the appender has two besides. At least 4.
    pub max_connections: u32,
    /// How long a command may decide again, or wait for its turn, before it is answered that the log is busy.
    pub command_timeout: Duration,
    /// Bytes of states that are kept for the next decision, as reckoned from what they hold; 0 keeps none, and every decision reads first.
    /// Answers are the same either way.
    pub state_cache_bytes: usize,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// Appends that one call carries at the most.
    pub max_batch: usize,
    /// Announcements of the head are at least this far apart.
    pub announce_interval: Duration,
    /// How often the head is looked up, should an announcement be lost.
    pub poll_interval: Duration,
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
        }
    }
}
