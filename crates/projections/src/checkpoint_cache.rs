//! Knowledge about serving builds that the callers of a process share.

use std::sync::{Arc, atomic::AtomicBool};

use event_store::Position;
use tokio::{sync::Mutex, time::Instant};

/// The serving build of a projection, as this process last read it.
#[derive(Default)]
pub(crate) struct CheckpointCache {
    /// How far its segments are, and when that was read. Callers that wait poll the table together, not each.
    pub(crate) segments: Mutex<Option<(Instant, Arc<[Complete]>)>>,
    /// Whether it is projection_b. Each statement that reads it finds out whether that still holds.
    pub(crate) serves_b: AtomicBool,
}

/// How far a segment is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Complete {
    /// Its checkpoint.
    pub(crate) stored: Position,
    /// The position up to which nothing is left to apply: at least `stored`.
    pub(crate) up_to: Position,
}
