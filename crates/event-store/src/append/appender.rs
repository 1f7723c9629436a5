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

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    append::{
        pending::{Append, AppendOutcome},
        queue::AppendQueue,
        recovery::look_up,
    },
    backoff::Backoff,
    connection::{
        log_connection::{Connector, LogConnection},
        with_timeout_of,
    },
    error::{StoreError, ends_the_connection},
    metrics::METRICS,
    position::Position,
    query::query_item::{QueryColumns, QueryItem, placeholders},
    read::answer::{Answer, Found},
    settings::StoreSettings,
};

/// How long a call may take. After this the connection counts as lost, and the call's outcome is looked up on another one.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The pauses between retries of a batch whose connection is lost again and again.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_millis(500);

/// The pauses between attempts to connect while the other worker has a connection.
const FIRST_CONNECT: Duration = Duration::from_millis(100);
const LONGEST_CONNECT: Duration = Duration::from_secs(5);

/// State that the appender's two workers share.
struct Shared {
    connector: Connector,
    queue: Mutex<AppendQueue>,
    in_flight: Arc<AtomicUsize>,
    /// Locked while a worker connects.
    connecting: Mutex<()>,
    /// The workers with a connection.
    connected: AtomicUsize,
    /// The number of the log's domain ids.
    ids: usize,
    sql: String,
    command_timeout: Duration,
}

/// One of the appender's two workers.
struct Worker {
    shared: Arc<Shared>,
    session: Option<Session>,
}

/// A worker's connection, and what recovery needs if a call on it gets no answer.
struct Session {
    connection: LogConnection,
    /// The newest position known before the last call.
    head: i64,
    shared: Arc<Shared>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Appends what is queued, until the store is closed and nothing waits.
pub(crate) async fn run(
    connector: Connector,
    ids: usize,
    settings: StoreSettings,
    queue: mpsc::Receiver<Append>,
    closed: CancellationToken,
) {
    let parameters = placeholders(1, 1 + 3 + ids + 4 + ids);
    let sql = format!("SELECT query_item, event_id, event_type, payload, more FROM append_events({parameters})");
    let in_flight = Arc::<AtomicUsize>::default();
    let queue = Mutex::new(AppendQueue::new(queue, closed, in_flight.clone(), settings.max_batch));
    let (connected, command_timeout) = (AtomicUsize::default(), settings.command_timeout);
    let connecting = Mutex::default();
    let shared = Arc::new(Shared { connector, queue, in_flight, connecting, connected, ids, sql, command_timeout });
    let worker = || Worker { shared: shared.clone(), session: None };
    tokio::join!(worker().work(), worker().work());
}

impl Worker {
    async fn work(mut self) {
        let mut backoff = Backoff::new(FIRST_CONNECT, LONGEST_CONNECT);
        loop {
            // Without a connection a worker takes no batch that the other one can send.
            if self.session.is_none() {
                if !self.shared.queue.lock().await.wait().await {
                    return;
                }
                // One after the other: if there is room for one connection only, one of the two gets it.
                let connecting = self.shared.connecting.lock().await;
                let connected = self.connect().await;
                drop(connecting);
                match connected {
                    Ok(session) => self.session = Some(session),
                    Err(error) if self.shared.connected.load(Ordering::Relaxed) > 0 => {
                        tracing::debug!(%error, "an appender has no connection: leaving the appends to the other one");
                        backoff.wait().await;
                    }
                    Err(error) => loop {
                        let batch = self.shared.queue.lock().await.take();
                        if batch.is_empty() {
                            break;
                        }
                        self.shared.in_flight.fetch_sub(batch.len(), Ordering::Relaxed);
                        refuse(batch, &error);
                    },
                }
                continue;
            }
            backoff.reset();
            let Some(batch) = self.shared.queue.lock().await.next().await else { return };
            let carried = batch.len();
            self.append(batch).await;
            self.shared.in_flight.fetch_sub(carried, Ordering::Relaxed);
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
                // Nothing was written. A server that takes no writes may have been the primary; a new connection may find the new one.
                Err(error) if error.is_unavailable() => {
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

    /// Sends a batch, without the appends whose callers have given up or decided on what is forgotten by now. If it returns an error and
    /// there is no session, nothing was sent.
    async fn call(&mut self, batch: &mut Vec<Append>) -> Result<Answer, StoreError> {
        if self.session.as_ref().is_none_or(|session| !session.connection.is_current()) {
            self.session = None;
            self.session = Some(self.connect().await?);
        }
        let Some(session) = &mut self.session else { return Err(StoreError::Closed) };
        let epoch = session.connection.epoch();
        for append in batch.extract_if(.., |append| append.epoch != epoch) {
            append.answer(Err(StoreError::Reset("what was decided on was read before".to_owned())));
        }
        // Everything that this process has seen lies below what the call writes. Recovery searches from there.
        let seen = self.shared.connector.head_watcher().newest();
        session.head = session.head.max(seen.0);
        batch.retain(|append| append.send_state.send());
        if batch.is_empty() {
            return Ok(Answer { head: session.head, found: vec![] });
        }
        let ids = self.shared.ids;
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
        // An item that matches no event and belongs to no append. A server whose log ends before what was seen refuses its position.
        item_append.push(i32::MAX);
        items.push(&QueryItem { types: vec![], ids: vec![Some(Uuid::nil()); ids], newest: false }, seen.0);
        let query =
            items.bind(sqlx::query(&self.shared.sql).bind(item_append)).bind(e_append).bind(e_type).bind(e_payload).bind(e_metadata);
        let query = e_ids.into_iter().fold(query, sqlx::query::Query::bind);
        let started = Instant::now();
        let rows = with_timeout_of(CALL_TIMEOUT, query.fetch_all(&mut *session.connection)).await;
        METRICS.append_duration.record(started.elapsed().as_secs_f64(), &[]);
        METRICS.append_batch.record(batch.len() as u64, &[]);
        let answer = rows.and_then(|rows| Ok(Answer::from_rows(&rows)?))?;
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
        let mut outcomes = Vec::with_capacity(batch.len());
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
            outcomes.push((append, outcome));
        }
        // Before the callers go on: their next read must include what they have written.
        if let Some(session) = &mut self.session {
            session.head = head;
            let (head_watcher, epoch) = (self.shared.connector.head_watcher(), session.connection.epoch());
            if head > answer.head {
                head_watcher.committed(Position(head), epoch);
            } else {
                head_watcher.seen(Position(head), epoch);
            }
        }
        for (append, outcome) in outcomes {
            append.answer(Ok(outcome));
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
        let (lost, known) = (session.connection.session().clone(), session.head);
        let appends: Vec<_> = batch.iter().map(|append| append.id).collect();
        drop(session);
        let deadline = Instant::now() + self.shared.command_timeout;
        let mut backoff = Backoff::new(Duration::from_millis(20), LONGEST_RETRY);
        let (session, written) = loop {
            let looked_up = match self.connect().await {
                Ok(mut session) => look_up(&mut session.connection, &lost.backend, &appends, known).await.map(|written| (session, written)),
                Err(error) => Err(error),
            };
            match looked_up {
                Ok(found) => break found,
                Err(error) if Instant::now() >= deadline => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the outcome of an append could not be looked up");
                    refuse(batch, &StoreError::OutcomeUnknown);
                    return vec![];
                }
                Err(_) => backoff.wait().await,
            }
        };
        let (epoch, is_same_log) = (session.connection.epoch(), session.connection.session().identity.continues(&lost.identity));
        self.session = Some(session);
        let mut unwritten = vec![];
        for append in batch {
            match written.get(&append.id) {
                Some(last) => {
                    METRICS.appends.add(1, &[]);
                    self.shared.connector.head_watcher().committed(*last, epoch);
                    append.answer(Ok(AppendOutcome::Written { last: *last }));
                }
                // Its caller was told that the outcome is unknown. Now it is known, and must not change.
                None if append.reply.is_closed() => {}
                // Recovery searched another log than the one that the append was sent to.
                None if !is_same_log => refuse(vec![append], &StoreError::OutcomeUnknown),
                // It is decided again on what this server has.
                None if append.epoch != epoch => {
                    refuse(vec![append], &StoreError::Reset("the server was replaced or restarted".to_owned()))
                }
                None => unwritten.push(append),
            }
        }
        unwritten
    }

    async fn connect(&self) -> Result<Session, StoreError> {
        let connection = self.shared.connector.connect().await.map_err(|error| match error {
            // Nothing was sent yet, so no error at this point is about an append's data.
            StoreError::Database(error) | StoreError::Rejected(error) => StoreError::Unavailable(error),
            error => error,
        })?;
        self.shared.connected.fetch_add(1, Ordering::Relaxed);
        let head = connection.session().head.0;
        Ok(Session { connection, head, shared: self.shared.clone() })
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
