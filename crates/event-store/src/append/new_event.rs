//! An append on its way to the log.

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    error::StoreError,
    position::Position,
    query::{criteria::Criteria, lookup::Lookup},
    read::answer::Answer,
};

/// An event to be written.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) event_type: &'static str,
    pub(crate) payload: Vec<u8>,
    pub(crate) ids: Vec<Option<Uuid>>,
}

/// One append: it is written where none of its lookups finds anything, and not otherwise.
pub(crate) struct Append {
    pub(crate) id: Uuid,
    /// Each with the position up to which its state is complete.
    pub(crate) conditions: Vec<(Arc<Criteria>, Position)>,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) metadata: String,
    /// The log that it was decided on.
    pub(crate) epoch: u64,
    /// When it was queued.
    pub(crate) queued: Instant,
    pub(crate) reply: oneshot::Sender<Result<Appended, StoreError>>,
}

impl Append {
    /// The lookups of its conditions, each with the position after which it must find nothing.
    pub(crate) fn lookups(&self) -> impl Iterator<Item = (&Lookup, Position)> {
        self.conditions.iter().flat_map(|(criteria, after)| criteria.lookups.iter().map(|lookup| (lookup, *after)))
    }
}

/// What became of an append.
pub(crate) enum Appended {
    /// Its events were written, the last one here.
    Written { last: Position },
    /// Something its condition forbids has come: nothing was written. The answer's lookups are numbered as the append's.
    Missed(Answer),
}
