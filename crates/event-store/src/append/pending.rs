//! An append on its way to the log.

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    append::send_state::SendState, error::StoreError, position::Position, query::append_condition::AppendCondition, read::answer::Answer,
};

/// An event to be written.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) event_type: &'static str,
    pub(crate) payload: Vec<u8>,
    /// In the schema's order.
    pub(crate) ids: Vec<Option<Uuid>>,
}

/// An append that waits for its outcome.
pub(crate) struct Append {
    pub(crate) id: Uuid,
    pub(crate) condition: AppendCondition,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) metadata: String,
    /// The epoch of the log that was decided on.
    pub(crate) epoch: u64,
    pub(crate) queued: Instant,
    pub(crate) send_state: Arc<SendState>,
    pub(crate) reply: oneshot::Sender<Result<AppendOutcome, StoreError>>,
}

impl Append {
    /// Tells the caller the outcome. A caller that is gone needs none.
    pub(crate) fn answer(self, outcome: Result<AppendOutcome, StoreError>) {
        if !matches!(outcome, Ok(AppendOutcome::Written { .. }) | Err(StoreError::OutcomeUnknown)) {
            self.send_state.not_written();
        }
        let _ = self.reply.send(outcome);
    }
}

/// The outcome of an append.
#[derive(Debug)]
pub(crate) enum AppendOutcome {
    /// The events were written, the last one at this position.
    Written { last: Position },
    /// The condition failed, and nothing was written. The answer holds the missed events; its items are numbered as the condition's.
    Conflict(Answer),
}
