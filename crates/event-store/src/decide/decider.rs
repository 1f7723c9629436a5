//! The one way to run a decision.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rand::Rng;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    append::pending::{Append, AppendOutcome, NewEvent},
    decide::{
        catch_up::catch_up,
        command_locks::{CommandLock, CommandLocks},
        decision::{DecideError, Decided, Decision},
        fold::{WithIds, fold, fold_written, with_ids},
        stages::{AnyPart, Stages, States},
        state_cache::StateCache,
    },
    error::StoreError,
    event::{LogEvent, Metadata, encode},
    metrics::METRICS,
    position::Position,
    query::{append_condition::AppendCondition, state_query::QueryError},
    read::{head_watcher::HeadWatcher, reader::Reader},
    settings::StoreSettings,
};

/// Runs decisions.
pub(crate) struct Decider {
    reader: Reader,
    heads: HeadWatcher,
    /// The log's domain ids, in the schema's order.
    ids: Vec<&'static str>,
    appends: mpsc::Sender<Append>,
    cache: StateCache,
    locks: CommandLocks,
    /// Bounds the commands that are on their way to the log. Longer queues make decisions stale and cause more conflicts.
    in_flight: Semaphore,
    command_timeout: Duration,
}

impl Decider {
    pub(crate) fn new(
        settings: &StoreSettings,
        reader: Reader,
        heads: HeadWatcher,
        ids: Vec<&'static str>,
        appends: mpsc::Sender<Append>,
        cache: StateCache,
    ) -> Self {
        Self {
            reader,
            heads,
            ids,
            appends,
            cache,
            locks: CommandLocks::default(),
            in_flight: Semaphore::new(settings.max_batch),
            command_timeout: settings.command_timeout,
        }
    }

    /// See [`EventStore::decide`](crate::EventStore::decide).
    pub(crate) async fn decide<D: Decision>(&self, decision: &D, metadata: &Metadata) -> Result<Position, DecideError<D::Error>> {
        let deadline = Instant::now() + self.command_timeout;
        let sent = AtomicBool::new(false);
        match tokio::time::timeout_at(deadline.into(), self.deciding(decision, metadata, &sent)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                METRICS.command_timeouts.add(1, &[]);
                // An append that is on its way may still be written.
                Err(if sent.into_inner() { StoreError::OutcomeUnknown } else { StoreError::Busy }.into())
            }
        }
    }

    async fn deciding<D: Decision>(&self, decision: &D, metadata: &Metadata, sent: &AtomicBool) -> Result<Position, DecideError<D::Error>> {
        let cache = &self.cache;
        let epoch = self.heads.epoch();
        // What is known is decided on at once; the append's condition says up to where that is, and the log has the last word.
        let mut stages = decision.state_query().start(cache).map_err(schema)?;
        while stages.open_next(cache).map_err(schema)? {}
        // Up to where all of it was read for this command, in one snapshot.
        let mut read = if cache.keeps() || parts(&mut stages).is_empty() {
            None
        } else {
            Some(catch_up(&self.reader, &mut stages, cache, epoch, None).await?)
        };
        let mut place = None;
        let mut conflicts = 0;
        loop {
            let state = stages.view().ok_or_else(|| StoreError::Schema("a stage was not opened".into()))?;
            let events = match (decision.process(&state), read) {
                (Ok(Decided::Events(events)), _) if !events.is_empty() => events,
                // An outcome without an append rests on a read made for this command.
                (_, None) => {
                    // Nobody need wait for it.
                    place = None;
                    read = Some(catch_up(&self.reader, &mut stages, cache, epoch, None).await?);
                    continue;
                }
                (outcome, Some(at)) => {
                    self.keep(&mut stages, epoch);
                    return match outcome.map_err(DecideError::Refused)? {
                        Decided::AlreadyDone(position) => Ok(position),
                        Decided::Nothing | Decided::Events(_) => Ok(at),
                    };
                }
            };
            let events = with_ids(events, &self.ids)?;
            let condition = parts(&mut stages).iter().map(|part| (part.query().clone(), part.position())).collect();
            if place.is_none() {
                let (lock, was_locked) = self.lock(&condition).await;
                let (permit, queued) = self.acquire_in_flight().await?;
                place = Some((lock, permit));
                // What others have left meanwhile, or were told that they missed, is known by now.
                if (was_locked || queued) && refresh(&mut stages, cache) {
                    while stages.open_next(cache).map_err(schema)? {}
                    read = None;
                    continue;
                }
            }
            sent.store(true, Ordering::Relaxed);
            let appended = self.append(condition, &events, metadata, epoch).await?;
            sent.store(false, Ordering::Relaxed);
            match appended {
                AppendOutcome::Written { last } => {
                    fold_written(&mut parts(&mut stages), &events, last);
                    self.keep(&mut stages, epoch);
                    return Ok(last);
                }
                AppendOutcome::Conflict(answer) => {
                    let complete = fold(&mut parts(&mut stages), 0, &answer)?;
                    self.keep(&mut stages, epoch);
                    read = Some(Position(answer.head));
                    if !complete || stages.open_next(cache).map_err(schema)? {
                        read = Some(catch_up(&self.reader, &mut stages, cache, epoch, None).await?);
                    }
                }
            }
            conflicts += 1;
            if conflicts > 2 {
                tokio::time::sleep(jittered(conflicts)).await;
            }
        }
    }

    /// Locks the first id of a condition, if it names one. Returns also whether the command waited for it.
    async fn lock(&self, condition: &AppendCondition) -> (Option<CommandLock<'_>>, bool) {
        match condition.first_id() {
            Some(id) => {
                let (lock, waited) = self.locks.lock(id).await;
                (Some(lock), waited)
            }
            None => (None, false),
        }
    }

    /// Returns a permit to append, and whether the command waited for it.
    async fn acquire_in_flight(&self) -> Result<(SemaphorePermit<'_>, bool), StoreError> {
        match self.in_flight.try_acquire() {
            Ok(permit) => Ok((permit, false)),
            Err(_) => Ok((self.in_flight.acquire().await.map_err(|_| StoreError::Closed)?, true)),
        }
    }

    fn keep<E, V>(&self, stages: &mut impl Stages<E, V>, epoch: u64) {
        for part in parts(stages) {
            part.keep(&self.cache, epoch);
        }
    }

    async fn append<E: LogEvent>(
        &self,
        condition: AppendCondition,
        events: &[WithIds<E>],
        metadata: &Metadata,
        epoch: u64,
    ) -> Result<AppendOutcome, StoreError> {
        let id = Uuid::now_v7();
        let events = events
            .iter()
            .map(|(event, ids)| Ok(NewEvent { event_type: event.name(), payload: encode(event)?, ids: ids.clone() }))
            .collect::<Result<_, StoreError>>()?;
        let (reply, outcome) = oneshot::channel();
        let append = Append { id, condition, events, metadata: metadata.stored(id), epoch, queued: Instant::now(), reply };
        // From the queue to the answer: another task sends it, with those of others.
        let span = tracing::debug_span!(
            "append",
            otel.kind = "client",
            db.system.name = "postgresql",
            db.operation.name = "event_append",
            events = append.events.len(),
            conflict = tracing::field::Empty,
        );
        let appending = async {
            self.appends.send(append).await.map_err(|_| StoreError::Closed)?;
            let appended = outcome.await.map_err(|_| StoreError::Closed)?;
            tracing::Span::current().record("conflict", matches!(appended, Ok(AppendOutcome::Conflict(_))));
            appended
        };
        appending.instrument(span).await
    }
}

fn schema(error: QueryError) -> StoreError {
    StoreError::Schema(error.to_string())
}

fn parts<E, V>(stages: &mut impl Stages<E, V>) -> Vec<&mut dyn AnyPart<E>> {
    let mut parts = vec![];
    stages.parts(&mut parts);
    parts
}

fn refresh<E, V>(stages: &mut impl Stages<E, V>, cache: &StateCache) -> bool {
    parts(stages).into_iter().fold(false, |refreshed, part| part.refresh(cache) | refreshed)
}

/// A pause before deciding again, drawn at random so that those who met once do not meet again. Short: what is decided on grows old.
fn jittered(conflicts: u32) -> Duration {
    let most = 1_u64 << conflicts.min(4);
    Duration::from_micros(rand::rng().random_range(0..=most * 100))
}
