//! Decisions: a command's rule, and the one way to run it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    LogEvent, Metadata, Position, StoreError,
    appender::{Append, Appended, NewEvent, jittered},
    event::{encode, ids_of},
    metrics::METRICS,
    read::fold,
    state::{Stages, States},
    store::EventStore,
};

/// A command's rule: disintegrate's `Decision`, extended by stages (see [`Then`](crate::Then)), by positions, and by success without
/// events.
///
/// The states it asks for are its consistency boundary: it is written only where, between what was read and its own position, no event
/// came that one of them folds.
pub trait Decision: Send + Sync {
    /// The log's events.
    type Event: LogEvent;
    /// The states it depends on.
    type StateQuery: States<Self::Event>;
    /// Its own word for no: a refusal is no fault.
    type Error: Send;

    /// The states, with nothing folded yet.
    fn state_query(&self) -> Self::StateQuery;

    /// Decides, from the states as the log made them. Pure: it may be run again, on newer states.
    ///
    /// # Errors
    /// Where the domain says no.
    fn process(&self, state: &View<Self>) -> Result<Decided<Self::Event>, Self::Error>;
}

/// What a decision sees of its states.
pub type View<D> = <<D as Decision>::StateQuery as States<<D as Decision>::Event>>::View;

/// What a decision comes to, where it does not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided<E> {
    /// These happened; at least one.
    Events(Vec<E>),
    /// Nothing happens, as it had happened already, here.
    Already(Position),
    /// Nothing happens, as there is nothing to do.
    Nothing,
}

/// Why a decision came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DecideError<R> {
    /// The domain said no.
    #[error("refused")]
    Refused(R),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<E: LogEvent> EventStore<E> {
    /// Runs a decision: reads what it asks for, lets it decide, appends, and where events came in between, decides again on those, for as
    /// long as the setting `decide_deadline` says. Answers the position of its last event; of what it found already done; or, where there
    /// was nothing to do, up to where that was known.
    ///
    /// # Errors
    /// The decision's own refusal, which rests on a read made for this command; or a store that is away, or busy past the bound.
    pub async fn decide<D: Decision<Event = E>>(&self, decision: &D) -> Result<Position, DecideError<D::Error>> {
        self.decide_with(decision, Metadata::current()).await
    }

    /// As [`EventStore::decide`], with metadata of the caller's.
    ///
    /// # Errors
    /// As [`EventStore::decide`].
    pub async fn decide_with<D: Decision<Event = E>>(&self, decision: &D, metadata: Metadata) -> Result<Position, DecideError<D::Error>> {
        let deadline = Instant::now() + self.shared.settings.decide_deadline;
        let sent = AtomicBool::new(false);
        match tokio::time::timeout_at(deadline.into(), self.deciding(decision, &metadata, &sent)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                METRICS.busy.add(1, &[]);
                // An append that is on its way may still be written.
                Err(if sent.into_inner() { StoreError::OutcomeUnknown } else { StoreError::Busy }.into())
            }
        }
    }

    async fn deciding<D: Decision<Event = E>>(
        &self,
        decision: &D,
        metadata: &Metadata,
        sent: &AtomicBool,
    ) -> Result<Position, DecideError<D::Error>> {
        let schema = |error: crate::CriteriaError| StoreError::Schema(error.to_string());
        // Here is the place for what is known of the states already: each starts as complete up to some position, and an outcome without
        // an append is decided again on what is read now.
        let mut stages = decision.state_query().start().map_err(schema)?;
        let mut read_to = self.catch_up(&mut stages).await?;
        for conflicts in 1.. {
            let state = stages.view().ok_or_else(|| StoreError::Schema("a stage was not opened".into()))?;
            let events = match decision.process(&state).map_err(DecideError::Refused)? {
                Decided::Already(position) => return Ok(position),
                Decided::Nothing => return Ok(read_to),
                Decided::Events(events) if events.is_empty() => return Ok(read_to),
                Decided::Events(events) => events,
            };
            let mut parts = vec![];
            stages.parts(&mut parts);
            let lookups =
                parts.iter().flat_map(|part| part.criteria().lookups.iter().map(|lookup| (lookup.clone(), part.position()))).collect();
            sent.store(true, Ordering::Relaxed);
            let appended = self.append(lookups, &events, metadata).await?;
            sent.store(false, Ordering::Relaxed);
            match appended {
                Appended::Written { last } => return Ok(last),
                Appended::Missed(answer) => {
                    let complete = fold(&mut parts, 0, &answer)?;
                    read_to = Position(answer.head);
                    if !complete || stages.open_next().map_err(schema)? {
                        read_to = self.catch_up(&mut stages).await?;
                    }
                }
            }
            if conflicts > 2 {
                tokio::time::sleep(jittered(conflicts)).await;
            }
        }
        Err(StoreError::Busy.into())
    }

    async fn append(
        &self,
        lookups: Vec<(crate::lookup::Lookup, Position)>,
        events: &[E],
        metadata: &Metadata,
    ) -> Result<Appended, StoreError> {
        let id = Uuid::now_v7();
        let events = events
            .iter()
            .map(|event| Ok(NewEvent { event_type: event.name(), payload: encode(event)?, ids: ids_of(event, &self.shared.ids)? }))
            .collect::<Result<_, StoreError>>()?;
        let (reply, outcome) = oneshot::channel();
        let append = Append { id, lookups, events, metadata: metadata.stored(id), reply };
        self.shared.appends.send(append).await.map_err(|_| StoreError::Closed)?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }
}
