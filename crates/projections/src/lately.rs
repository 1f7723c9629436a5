//! What those who wait for a projection have lately seen.

use std::sync::Arc;

use event_store::Position;
use tokio::{sync::Mutex, time::Instant};

/// How far the segments of the build in service have come by the table. Who waits looks again and again: all of them together look once.
#[derive(Default)]
pub(crate) struct Lately(pub(crate) Mutex<Option<(Instant, Arc<[Position]>)>>);
