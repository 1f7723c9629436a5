//! Stored checkpoints that waiting callers share.

use std::sync::Arc;

use event_store::Position;
use tokio::{sync::Mutex, time::Instant};

/// The positions of the serving build's segments, and when they were read. Callers that wait poll the table together, not each.
#[derive(Default)]
pub(crate) struct CheckpointCache(pub(crate) Mutex<Option<(Instant, Arc<[Position]>)>>);
