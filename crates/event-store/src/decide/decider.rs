//! The way to run a decision.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    append::{
        pending::{Append, AppendOutcome, NewEvent},
        send_state::SendState,
    },
    backoff::Backoff,
    decide::{
        catch_up::{Opened, catch_up, keep, open_stages, parts, read, read_unknown, schema, stage_not_open},
        command_locks::{CommandLock, CommandLocks},
        decision::{DecideError, Decided, Decision},
        fold::{WithIds, fold, fold_written, with_ids},
        stages::{Stages, States},
        state_cache::StateCache,
    },
    error::StoreError,
    event::{LogEvent, Metadata, encode},
    metrics::METRICS,
    position::Position,
    query::append_condition::AppendCondition,
    read::{head_watcher::HeadWatcher, reader::Reader},
    settings::StoreSettings,
};

/// Conflicts of one command that it retries without a pause. Later retries pause, so that two commands do not meet again.
const CONFLICTS_WITHOUT_PAUSE: u32 = 2;

/// The pause before a command decides anew because the log has another server or was restored.
const AFTER_RESET: Duration = Duration::from_millis(20);

/// Runs decisions.
pub(crate) struct Decider {
    reader: Reader,
    head_watcher: HeadWatcher,
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
        head_watcher: HeadWatcher,
        ids: Vec<&'static str>,
        appends: mpsc::Sender<Append>,
        cache: StateCache,
    ) -> Self {
        Self {
            reader,
            head_watcher,
            ids,
            appends,
            cache,
            locks: CommandLocks::default(),
            in_flight: Semaphore::new(settings.max_batch),
            command_timeout: settings.command_timeout,
        }
    }

    /// See [`EventStore::read`](crate::EventStore::read).
    pub(crate) async fn read<E: LogEvent, S: States<E>>(&self, states: S) -> Result<(S::View, Position), StoreError> {
        read(&self.reader, states, &self.cache).await
    }

    /// See [`EventStore::decide`](crate::EventStore::decide).
    pub(crate) async fn decide<D: Decision>(&self, decision: &D, metadata: &Metadata) -> Result<Position, DecideError<D::Error>> {
        let deadline = Instant::now() + self.command_timeout;
        let send_state = Arc::new(SendState::default());
        let deciding = async {
            loop {
                match self.decide_until_written(decision, metadata, &send_state).await {
                    // Nothing was written, and what was decided on is forgotten.
                    Err(DecideError::Store(StoreError::Reset(_))) => tokio::time::sleep(AFTER_RESET).await,
                    outcome => return outcome,
                }
            }
        };
        match tokio::time::timeout_at(deadline.into(), deciding).await {
            Ok(outcome) => outcome,
            Err(_) => {
                METRICS.command_timeouts.add(1, &[]);
                Err(if send_state.give_up() { StoreError::OutcomeUnknown } else { StoreError::Busy }.into())
            }
        }
    }

    async fn decide_until_written<D: Decision>(
        &self,
        decision: &D,
        metadata: &Metadata,
        send_state: &Arc<SendState>,
    ) -> Result<Position, DecideError<D::Error>> {
        let cache = &self.cache;
        let epoch = self.head_watcher.epoch();
        // Decides on the cached states at once. The condition names the position of each state, and the log checks it.
        let mut stages = decision.state_query().start(cache).map_err(schema)?;
        while stages.open_next(cache).map_err(schema)? {}
        // The position up to which the states were read for this command, in one snapshot.
        let mut read = if cache.is_enabled() || parts(&mut stages).is_empty() {
            None
        } else {
            Some(catch_up(&self.reader, &mut stages, cache, epoch, None).await?)
        };
        let mut lock_and_permit = None;
        let mut conflicts = 0;
        let mut backoff = Backoff::new(Duration::from_micros(400), Duration::from_micros(1_600));
        loop {
            let state = stages.view().ok_or_else(stage_not_open)?;
            let events = match (decision.process(&state), read) {
                (Ok(Decided::Events(events)), _) if !events.is_empty() => events,
                // A refusal, or a success without events, must rest on a read made for this command.
                (_, None) => {
                    // Other commands need not wait for the read.
                    lock_and_permit = None;
                    read = read_unknown(&self.reader, &mut stages, cache, epoch).await?;
                    continue;
                }
                (outcome, Some(at)) => {
                    keep(&mut stages, cache, epoch);
                    return match outcome.map_err(DecideError::Refused)? {
                        Decided::AlreadyDone(position) => Ok(position),
                        Decided::Nothing | Decided::Events(_) => Ok(at),
                    };
                }
            };
            let events = with_ids(events, &self.ids)?;
            let condition = parts(&mut stages).iter().map(|part| (part.query().clone(), part.position())).collect();
            if lock_and_permit.is_none() {
                let (lock, was_locked) = self.lock(&condition).await;
                let (permit, was_full) = self.acquire_in_flight().await?;
                lock_and_permit = Some((lock, permit));
                // Meanwhile other commands have left newer states in the cache.
                if (was_locked || was_full) && refresh(&mut stages, cache) {
                    while stages.open_next(cache).map_err(schema)? {}
                    read = None;
                    continue;
                }
            }
            match self.append(condition, &events, metadata, epoch, send_state).await? {
                AppendOutcome::Written { last } => {
                    fold_written(&mut parts(&mut stages), &events, last);
                    keep(&mut stages, cache, epoch);
                    return Ok(last);
                }
                AppendOutcome::Conflict(answer) => {
                    let complete = fold(&mut parts(&mut stages), &answer)?;
                    keep(&mut stages, cache, epoch);
                    let opened = if complete { open_stages(&mut stages, cache)? } else { Opened::Unknown };
                    read = match opened {
                        Opened::Nothing => Some(Position(answer.head)),
                        Opened::Cached => None,
                        Opened::Unknown => read_unknown(&self.reader, &mut stages, cache, epoch).await?,
                    };
                }
            }
            conflicts += 1;
            if conflicts > CONFLICTS_WITHOUT_PAUSE {
                backoff.wait().await;
            }
        }
    }

    /// Locks the condition's first id, if it names one. Returns also whether another command held the lock.
    async fn lock(&self, condition: &AppendCondition) -> (Option<CommandLock<'_>>, bool) {
        match condition.first_id() {
            Some(id) => {
                let (lock, was_locked) = self.locks.lock(id).await;
                (Some(lock), was_locked)
            }
            None => (None, false),
        }
    }

    /// Acquires a permit to append. Returns also whether the command had to wait for it.
    async fn acquire_in_flight(&self) -> Result<(SemaphorePermit<'_>, bool), StoreError> {
        match self.in_flight.try_acquire() {
            Ok(permit) => Ok((permit, false)),
            Err(_) => Ok((self.in_flight.acquire().await.map_err(|_| StoreError::Closed)?, true)),
        }
    }

    async fn append<E: LogEvent>(
        &self,
        condition: AppendCondition,
        events: &[WithIds<E>],
        metadata: &Metadata,
        epoch: u64,
        send_state: &Arc<SendState>,
    ) -> Result<AppendOutcome, StoreError> {
        let id = Uuid::now_v7();
        let events = events
            .iter()
            .map(|(event, ids)| Ok(NewEvent { event_type: event.name(), payload: encode(event)?, ids: ids.clone() }))
            .collect::<Result<_, StoreError>>()?;
        let (reply, outcome) = oneshot::channel();
        let (metadata, queued, send_state) = (metadata.stored(id), Instant::now(), send_state.clone());
        let append = Append { id, condition, events, metadata, epoch, queued, send_state, reply };
        // From the queue to the answer. The appender's task sends it, together with the appends of other commands.
        let span = tracing::debug_span!(
            "append",
            otel.kind = "client",
            db.system.name = "postgresql",
            db.operation.name = "append_events",
            events = append.events.len(),
            conflict = tracing::field::Empty,
        );
        let appending = async {
            self.appends.send(append).await.map_err(|_| StoreError::Closed)?;
            let outcome = outcome.await.map_err(|_| StoreError::Closed)?;
            tracing::Span::current().record("conflict", matches!(outcome, Ok(AppendOutcome::Conflict(_))));
            outcome
        };
        appending.instrument(span).await
    }
}

/// Takes newer states from the cache. Returns whether there was one.
fn refresh<E, V>(stages: &mut impl Stages<E, V>, cache: &StateCache) -> bool {
    parts(stages).into_iter().fold(false, |refreshed, part| part.refresh(cache) | refreshed)
}
