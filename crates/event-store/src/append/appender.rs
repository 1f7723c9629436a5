//! The appender: groups the appends that wait into calls of one SQL function.
//!
//! Each process has one appender with two connections. If a connection is free, its next call carries the appends that wait, each with its
//! own condition and outcome. An append alone is sent at once; under load, batches grow by themselves. Two calls may be in flight: the
//! database starts the second when it has finished the first, without waiting for this process.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    append::{
        pending::{Append, AppendOutcome},
        queue::AppendQueue,
        recovery::look_up,
        session::Session,
    },
    backoff::Backoff,
    connection::with_timeout_of,
    error::{StoreError, ends_the_connection},
    metrics::METRICS,
    position::Position,
    query::query_item::{QueryColumns, placeholders},
    read::{
        answer::{Answer, Found},
        head_watcher::HeadWatcher,
    },
    settings::StoreSettings,
};

/// What the appender needs to connect and to build its calls.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) options: PgConnectOptions,
    pub(crate) ids: Vec<&'static str>,
    pub(crate) settings: StoreSettings,
}

/// How long a call may take. After this the connection counts as lost, and the call's outcome is looked up on another one.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The pauses between retries of a batch whose connection is lost again and again.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_millis(500);

/// One of the appender's two workers, each with a connection.
struct Worker {
    settings: Settings,
    sql: Arc<str>,
    head_watcher: HeadWatcher,
    session: Option<Session>,
}

/// Appends what is queued, until the store is closed and nothing waits.
pub(crate) async fn run(settings: Settings, queue: mpsc::Receiver<Append>, head_watcher: HeadWatcher, closed: CancellationToken) {
    let ids = settings.ids.len();
    let sql: Arc<str> =
        format!("SELECT query_item, event_id, event_type, payload, more FROM append_events({})", placeholders(1, 1 + 3 + ids + 4 + ids))
            .into();
    let in_flight = Arc::<AtomicUsize>::default();
    let queue = Mutex::new(AppendQueue::new(queue, closed, in_flight.clone(), settings.settings.max_batch));
    let worker = || Worker { settings: settings.clone(), sql: sql.clone(), head_watcher: head_watcher.clone(), session: None };
    tokio::join!(worker().work(&queue, &in_flight), worker().work(&queue, &in_flight));
}

impl Worker {
    async fn work(mut self, queue: &Mutex<AppendQueue>, in_flight: &AtomicUsize) {
        loop {
            let Some(batch) = queue.lock().await.next().await else { return };
            let carried = batch.len();
            self.append(batch).await;
            in_flight.fetch_sub(carried, Ordering::Relaxed);
        }
    }

    /// Appends a batch and answers each of its appends.
    async fn append(&mut self, mut batch: Vec<Append>) {
        let mut backoff = None;
        loop {
            match self.call(&mut batch).await {
                Ok(answer) => return self.answer(batch, answer),
                Err(error) if self.session.is_some() && may_be_committed(&error) => {
                    batch = self.resolve(batch, &error).await;
                    if batch.is_empty() {
                        return;
                    }
                    // The first retry comes at once. If connections are lost again and again, retries slow down.
                    match &mut backoff {
                        Some(backoff) => Backoff::wait(backoff).await,
                        None => backoff = Some(Backoff::new(FIRST_RETRY, LONGEST_RETRY)),
                    }
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::NoAnswer(_) | StoreError::Closed)) => {
                    // A server that takes no writes may have been the primary. The next connection may find the new one.
                    self.session = None;
                    return refuse(batch, &error);
                }
                // Each append alone, so that one bad row fails only its own append.
                Err(_) if batch.len() > 1 => {
                    for append in batch {
                        Box::pin(self.append(vec![append])).await;
                    }
                    return;
                }
                Err(error) => return refuse(batch, &error),
            }
        }
    }

    /// Sends a batch, without the appends whose callers have given up. If it returns an error and there is no session, nothing was sent.
    async fn call(&mut self, batch: &mut Vec<Append>) -> Result<Answer, StoreError> {
        if self.session.is_none() {
            let session = self.connect().await?;
            self.session = Some(session);
        }
        // Connecting may have shown that the log is another one, so the epochs are compared after it.
        if batch.iter().any(|append| append.epoch != self.head_watcher.epoch()) {
            return Err(StoreError::Reset("what was decided on was read from the log before".to_owned()));
        }
        // Everything that this process has seen lies below what the call writes. Recovery searches from there.
        let seen = self.head_watcher.newest().0;
        let Some(session) = &mut self.session else { return Err(StoreError::Closed) };
        session.head = session.head.max(seen);
        batch.retain(|append| append.send_state.send());
        if batch.is_empty() {
            return Ok(Answer { head: session.head, found: vec![] });
        }
        let ids = self.settings.ids.len();
        let mut item_append = vec![];
        let mut items = QueryColumns::new(ids);
        let (mut e_append, mut e_type, mut e_payload, mut e_metadata, mut e_ids) =
            (vec![], vec![], vec![], vec![], vec![Vec::<Option<Uuid>>::new(); ids]);
        for (n, append) in (0_i32..).zip(batch.iter()) {
            for (item, after) in append.condition.items() {
                item_append.push(n);
                items.push(item, after.0);
            }
            for event in &append.events {
                e_append.push(n);
                e_type.push(event.event_type);
                e_payload.push(event.payload.as_slice());
                e_metadata.push(append.metadata.as_str());
                for (column, id) in e_ids.iter_mut().zip(&event.ids) {
                    column.push(*id);
                }
            }
        }
        let query = items.bind(sqlx::query(&self.sql).bind(item_append)).bind(e_append).bind(e_type).bind(e_payload).bind(e_metadata);
        let query = e_ids.into_iter().fold(query, sqlx::query::Query::bind);
        let started = Instant::now();
        let rows = with_timeout_of(CALL_TIMEOUT, query.fetch_all(&mut session.connection)).await;
        METRICS.append_duration.record(started.elapsed().as_secs_f64(), &[]);
        METRICS.append_batch.record(batch.len() as u64, &[]);
        let answer = match rows.and_then(|rows| Ok(Answer::from_rows(&rows)?)) {
            Err(StoreError::Reset(reason)) => {
                tracing::warn!(%reason, "the log was reset or restored: forgetting the cached states");
                self.head_watcher.reset(Position::START);
                return Err(StoreError::Reset(reason));
            }
            answer => answer?,
        };
        session.head = answer.head;
        Ok(answer)
    }

    /// Tells each append of a batch its outcome.
    fn answer(&mut self, batch: Vec<Append>, answer: Answer) {
        let mut found: HashMap<usize, Vec<_>> = HashMap::new();
        for event in answer.found {
            found.entry(event.item).or_default().push(event);
        }
        let (mut item, mut head) = (0, answer.head);
        for append in batch {
            let mut missed = vec![];
            for own in 0..append.condition.items().count() {
                missed.extend(found.remove(&item).into_iter().flatten().map(|event| Found { item: own, ..event }));
                item += 1;
            }
            let outcome = if missed.is_empty() {
                head += i64::try_from(append.events.len()).unwrap_or_default();
                METRICS.appends.add(1, &[]);
                AppendOutcome::Written { last: Position(head) }
            } else {
                METRICS.conflicts.add(1, &[]);
                AppendOutcome::Conflict(Answer { head: answer.head, found: missed })
            };
            append.answer(Ok(outcome));
        }
        if let Some(session) = &mut self.session {
            session.head = head;
        }
        if head > answer.head {
            self.head_watcher.committed(Position(head));
        } else {
            self.head_watcher.seen(Position(head));
        }
    }

    /// Looks up what became of a batch whose connection was lost, before anyone decides again. Answers the appends that were written, and
    /// returns those to send again: nothing of them is in the log, and nothing of them can be committed any more.
    async fn resolve(&mut self, batch: Vec<Append>, lost: &StoreError) -> Vec<Append> {
        METRICS.unknown_outcomes.add(1, &[]);
        tracing::warn!(
            error = lost as &dyn std::error::Error,
            appends = batch.len(),
            "the connection was lost during an append: looking up its outcome"
        );
        let Some(session) = self.session.take() else { return batch };
        let (backend, known) = (session.backend.clone(), session.head);
        let appends: Vec<_> = batch.iter().map(|append| append.id).collect();
        drop(session);
        let deadline = Instant::now() + self.settings.settings.command_timeout;
        let mut backoff = Backoff::new(Duration::from_millis(20), LONGEST_RETRY);
        let written = loop {
            let looked_up = match self.connect().await {
                Ok(mut session) => {
                    let written = look_up(&mut session, &backend, &appends, known).await;
                    if written.is_ok() {
                        self.session = Some(session);
                    }
                    written
                }
                Err(error) => Err(error),
            };
            match looked_up {
                Ok(written) => break written,
                Err(error) if Instant::now() >= deadline => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the outcome of an append could not be looked up");
                    refuse(batch, &StoreError::OutcomeUnknown);
                    return vec![];
                }
                Err(StoreError::Reset(_)) => {
                    refuse(batch, &StoreError::OutcomeUnknown);
                    return vec![];
                }
                Err(_) => backoff.wait().await,
            }
        };
        let mut unwritten = vec![];
        for append in batch {
            match written.get(&append.id) {
                Some(last) => {
                    METRICS.appends.add(1, &[]);
                    self.head_watcher.committed(*last);
                    append.answer(Ok(AppendOutcome::Written { last: *last }));
                }
                // Its caller was told that the outcome is unknown. Now it is known, and must not change.
                None if append.reply.is_closed() => {}
                // Recovery searched another log than the one that the append was sent to.
                None if append.epoch != self.head_watcher.epoch() => refuse(vec![append], &StoreError::OutcomeUnknown),
                None => unwritten.push(append),
            }
        }
        unwritten
    }

    async fn connect(&self) -> Result<Session, StoreError> {
        Session::connect(&self.settings.options, self.settings.settings.connect_timeout, &self.head_watcher).await
    }
}

/// Returns whether a call that failed so may have been committed.
///
/// It was not if the server answered with an error and keeps serving the connection. If the server ended the connection, it may have done
/// so after the commit.
fn may_be_committed(error: &StoreError) -> bool {
    match error {
        StoreError::NoAnswer(_) => true,
        StoreError::Unavailable(error) => error.as_database_error().is_none_or(ends_the_connection),
        _ => false,
    }
}

/// Answers a whole batch with an error.
fn refuse(batch: Vec<Append>, error: &StoreError) {
    for append in batch {
        append.answer(Err(error.clone()));
    }
}
