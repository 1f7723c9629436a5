//! An append on its way to the log.

use std::time::Instant;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{error::StoreError, position::Position, query::append_condition::AppendCondition, read::answer::Answer};

/// An event to be written.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) event_type: &'static str,
    pub(crate) payload: Vec<u8>,
    pub(crate) ids: Vec<Option<Uuid>>,
}

/// One append: it is written where none of its items finds anything, and not otherwise.
pub(crate) struct Append {
    pub(crate) id: Uuid,
    pub(crate) condition: AppendCondition,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) metadata: String,
    /// The log that it was decided on.
    pub(crate) epoch: u64,
    /// When it was queued.
    pub(crate) queued: Instant,
    pub(crate) reply: oneshot::Sender<Result<AppendOutcome, StoreError>>,
}

/// What became of an append.
pub(crate) enum AppendOutcome {
    /// Its events were written, the last one here.
    Written { last: Position },
    /// Something its condition forbids has come: nothing was written. The answer's items are numbered as the append's.
    Conflict(Answer),
}
