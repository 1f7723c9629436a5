//! To-dos: the commands that an automation has to run.
//!
//! A to-do is leased to one worker at a time. If the worker dies, another worker that has seen the lease for its whole length attempts the
//! to-do again, so its command must tolerate running twice. No time is taken from the database's clock, which may step, except the pauses
//! between attempts and the retention. Done to-dos are deleted after a retention time; the automation's checkpoint keeps it from enqueuing
//! them again.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use event_store::{
    Backoff, Metadata, Pool, Position, StoreError,
    connection::{PooledConnection, with_timeout},
    correlation, trace,
};
use opentelemetry::KeyValue;
use serde::{Serialize, Serializer};
use sqlx::{PgConnection, postgres::types::PgInterval, types::Json};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;
use uuid::Uuid;

use crate::{health::Health, metrics::METRICS, watch::Watch};

/// The largest count of to-dos. Counting stops there.
pub(crate) const COUNTED: i32 = 100_000;

/// The to-dos of an automation, each counted up to 100,000.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, utoipa::ToSchema)]
pub struct TodoBacklog {
    /// All that are neither done nor failed.
    pub open: i64,
    /// The open ones that wait for a worker.
    pub due: i64,
    /// The failed ones, kept for an operator.
    pub failed: i64,
    /// The age of the oldest open one, in seconds. In JSON it is 0 if there is none.
    #[serde(rename = "oldest_seconds", serialize_with = "or_zero")]
    #[schema(value_type = f64)]
    pub oldest: Option<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, clippy::ref_option, reason = "serde's form")]
fn or_zero<S: Serializer>(seconds: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(seconds.unwrap_or_default())
}

/// A to-do to enqueue.
#[derive(Debug, Clone)]
pub struct NewTodo {
    /// The key, unique within the automation. An event must always lead to the same key.
    pub key: String,
    /// The position of the event that causes the to-do.
    pub position: Position,
    /// The command, in the automation's own form.
    pub payload: serde_json::Value,
    /// The metadata of that event.
    pub metadata: Metadata,
}

/// A to-do, leased to this worker.
#[derive(Debug, Clone)]
pub struct Todo {
    /// The key.
    pub key: String,
    /// The position of the event that caused the to-do.
    pub position: Position,
    /// The command as JSON.
    payload: String,
    /// The metadata of that event.
    pub metadata: Metadata,
    /// The number of attempts, with this one.
    pub attempts: u32,
    /// The length of all earlier attempts and of the pauses after them, as their workers counted it.
    pub trying_for: Duration,
    lease: Uuid,
    /// The epoch of the connection that it was read on.
    pub(crate) epoch: u64,
}

impl Todo {
    /// Decodes the command. Decimal numbers stay exact.
    ///
    /// # Errors
    /// The stored JSON does not have this form.
    pub fn payload<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.payload)
    }
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command ran, now or earlier.
    Done,
    /// The command failed for now. The to-do is attempted again.
    Retry {
        /// Why.
        error: String,
    },
    /// The command failed for good. The to-do is kept until an operator retries it.
    Failed {
        /// Why.
        error: String,
    },
}

/// How a worker attempts to-dos.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a to-do is leased. A worker that sees the same lease for this long attempts the to-do too.
    pub lease: Duration,
    /// The most attempts at once.
    pub concurrency: usize,
    /// The pause before the second attempt. Each further pause is twice as long.
    pub first_backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// The pause between two polls for to-dos of other processes and for expired leases.
    pub poll_interval: Duration,
    /// How long done to-dos are kept.
    pub retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            concurrency: 16,
            first_backoff: Duration::from_millis(125),
            max_backoff: Duration::from_secs(60),
            poll_interval: Duration::from_secs(1),
            retention: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}

impl Settings {
    /// Draws the pause after an attempt, by the number of attempts so far.
    fn pause(&self, attempts: u32) -> Duration {
        Backoff::new(self.first_backoff, self.max_backoff).delay(attempts.saturating_sub(1))
    }
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// Enqueues to-dos in the transaction of the automation's projection. Ignores those whose key exists.
///
/// # Errors
/// Database errors.
pub async fn enqueue(transaction: &mut PgConnection, automation: &str, todos: &[NewTodo]) -> Result<(), sqlx::Error> {
    if todos.is_empty() {
        return Ok(());
    }
    let keys: Vec<_> = todos.iter().map(|todo| todo.key.clone()).collect();
    let positions: Vec<_> = todos.iter().map(|todo| todo.position.0).collect();
    let payloads: Vec<_> = todos.iter().map(|todo| todo.payload.clone()).collect();
    let metadata: Vec<_> = todos.iter().map(|todo| serde_json::json!(todo.metadata)).collect();
    sqlx::query!(
        "INSERT INTO todo (automation, key, position, payload, metadata)
         SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::jsonb[], $5::jsonb[]) ON CONFLICT DO NOTHING",
        automation,
        &keys,
        &positions,
        &payloads,
        &metadata
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Attempts an automation's to-dos until shutdown, then finishes the attempts in progress. `wake` notifies of new to-dos.
pub async fn work<F, W>(
    pool: Pool,
    automation: &'static str,
    settings: Settings,
    wake: watch::Receiver<Position>,
    shutdown: CancellationToken,
    attempt: F,
) where
    F: Fn(Todo) -> W,
    W: Future<Output = Outcome> + Send + 'static,
{
    work_with(pool, automation, settings, Arc::default(), wake, shutdown, attempt).await;
}

/// Attempts to-dos as [`work`] does, and says how it is doing.
pub(crate) async fn work_with<F, W>(
    pool: Pool,
    automation: &'static str,
    settings: Settings,
    health: Arc<Health>,
    mut wake: watch::Receiver<Position>,
    shutdown: CancellationToken,
    attempt: F,
) where
    F: Fn(Todo) -> W,
    W: Future<Output = Outcome> + Send + 'static,
{
    let (settling, settled) = mpsc::channel(SETTLED_AT_ONCE);
    let todos = Arc::new(Todos { pool, automation, settings, health, paused: Notify::new() });
    let settler = tokio::spawn(settle(todos.clone(), settled));
    // Each attempt is a task of its own: it proceeds while this loop waits for a connection.
    let mut working = JoinSet::new();
    let measuring = AbortOnDropHandle::new(tokio::spawn(measure(todos.clone())));
    let deleting = AbortOnDropHandle::new(tokio::spawn(delete_done(todos.clone())));
    let mut leases = Leases::default();
    let mut warned = false;
    let mut polls = tokio::time::interval(todos.settings.poll_interval);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut may_be_due, mut claim_at) = (false, Instant::now());
    while !shutdown.is_cancelled() {
        let room = todos.settings.concurrency.saturating_sub(working.len());
        // One statement claims many: it waits until half of the places are free. Attempts that hang must not keep the others' places.
        let claims = may_be_due && room > 0 && (2 * room >= todos.settings.concurrency || Instant::now() >= claim_at);
        let claimed = if claims { todos.claim(room, &mut leases).await } else { Ok(vec![]) };
        let found = match claimed {
            Ok(claimed) => {
                warned = false;
                todos.health.worked(TASK);
                let found = claimed.len();
                for todo in claimed {
                    let span = tracing::info_span!("todo", otel.name = automation, key = todo.key, attempt = todo.attempts);
                    trace::set_parent(&span, todo.metadata.traceparent.as_deref());
                    let outcome = correlation::scope(todo.metadata.correlation_id.clone(), attempt(todo.clone()));
                    let (settling, begun) = (settling.clone(), Instant::now());
                    let attempting = async move {
                        let outcome = outcome.await;
                        // Closed if the settler panicked. Then the lease expires.
                        let _ = settling.send(Attempted { todo, outcome, took: begun.elapsed() }).await;
                    };
                    working.spawn(attempting.instrument(span));
                }
                found
            }
            Err(error) => {
                todos.health.failed(TASK, error.to_string());
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(automation, error = &error as &dyn std::error::Error, "cannot read to-dos, waiting for the database");
                }
                0
            }
        };
        if claims {
            (may_be_due, claim_at) = (found == room, Instant::now() + GATHERING);
        }
        tokio::select! {
            Some(ended) = working.join_next(), if !working.is_empty() => report_panic(automation, ended),
            Ok(()) = wake.changed() => may_be_due = true,
            () = todos.paused.notified() => may_be_due = true,
            _ = polls.tick() => may_be_due = true,
            () = sleep_until(claim_at), if may_be_due && working.len() < todos.settings.concurrency => {}
            () = shutdown.cancelled() => {}
        }
        while let Some(ended) = working.try_join_next() {
            report_panic(automation, ended);
        }
    }
    while let Some(ended) = working.join_next().await {
        report_panic(automation, ended);
    }
    drop((measuring, deleting, settling));
    report_panic(automation, settler.await);
}

/// The name of the work on to-dos, beside the builds of the projection.
const TASK: &str = "to-dos";
/// The longest time that a claim waits for more places after the one before.
const GATHERING: Duration = Duration::from_millis(20);
/// The most outcomes that one statement stores.
const SETTLED_AT_ONCE: usize = 1_000;

/// An attempt that has ended.
struct Attempted {
    todo: Todo,
    outcome: Outcome,
    took: Duration,
}

/// Stores the outcomes of attempts: all that wait, in one statement. Notifies when the pauses after them end.
async fn settle(todos: Arc<Todos>, mut settled: mpsc::Receiver<Attempted>) {
    let (mut attempted, mut pauses) = (vec![], BinaryHeap::new());
    loop {
        let now = Instant::now();
        let earliest = pauses.peek().map(|Reverse(end)| *end);
        tokio::select! {
            received = settled.recv_many(&mut attempted, SETTLED_AT_ONCE) => {
                if received == 0 {
                    return;
                }
                match todos.settle(std::mem::take(&mut attempted)).await {
                    Ok(set) => pauses.extend(set.into_iter().map(|pause| Reverse(Instant::now() + pause))),
                    // The to-dos are attempted again when their leases expire.
                    Err(error) => {
                        tracing::warn!(automation = todos.automation, error = &error as &dyn std::error::Error, "cannot store outcomes of to-dos");
                    }
                }
            }
            () = sleep_until(earliest.unwrap_or(now)), if earliest.is_some() => {
                while pauses.peek().is_some_and(|Reverse(end)| *end <= Instant::now()) {
                    pauses.pop();
                }
                todos.paused.notify_one();
            }
        }
    }
}

/// The leases of all workers, as this one sees them.
#[derive(Default)]
struct Leases {
    watch: Watch<Uuid>,
    read_at: Option<Instant>,
}

/// The pause between two counts of to-dos.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);
/// The pause between two deletions of done to-dos.
const DELETE_INTERVAL: Duration = Duration::from_secs(60);
/// A pause that is longer than the longest one by this much was made so by a step of the clock.
const SLACK: Duration = Duration::from_secs(1);
/// The most to-dos that one statement deletes.
const DELETE_BATCH: i64 = 1_000;

/// Deletes done to-dos after the retention time.
async fn delete_done(todos: Arc<Todos>) {
    let mut ticks = tokio::time::interval(DELETE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loop {
            match todos.delete_done().await {
                Ok(deleted) if deleted >= DELETE_BATCH => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(automation = todos.automation, error = &error as &dyn std::error::Error, "cannot delete done to-dos");
                    break;
                }
            }
        }
    }
}

/// Records the number of to-dos.
async fn measure(todos: Arc<Todos>) {
    let mut ticks = tokio::time::interval(MEASURE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // If the database is away, the worker reports it.
        let Ok(backlog) = todos.backlog().await else { continue };
        let labels = |status| [KeyValue::new("automation", todos.automation), KeyValue::new("status", status)];
        for (status, count) in [("open", backlog.open), ("due", backlog.due), ("failed", backlog.failed)] {
            METRICS.todo_count.record(count, &labels(status));
        }
        METRICS.todo_oldest.record(backlog.oldest.unwrap_or_default(), &[KeyValue::new("automation", todos.automation)]);
    }
}

/// Logs a panic. The to-do is attempted again when its lease expires.
fn report_panic(automation: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(automation, %error, "attempt at a to-do panicked");
    }
}

struct Todos {
    pool: Pool,
    automation: &'static str,
    settings: Settings,
    health: Arc<Health>,
    /// Notified when a pause that this worker has set ends. The poll finds those that other workers have set.
    paused: Notify,
}

impl Todos {
    async fn backlog(&self) -> Result<TodoBacklog, StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            let backlog = sqlx::query_as!(
                TodoBacklog,
                r#"SELECT open AS "open!", due AS "due!", failed AS "failed!", oldest FROM todo_backlog($1, $2)"#,
                self.automation,
                COUNTED
            )
            .fetch_one(&mut *connection)
            .await?;
            connection.done();
            Ok(backlog)
        })
        .await
    }

    /// Deletes a batch of done to-dos that are older than the retention time. Returns their number.
    async fn delete_done(&self) -> Result<i64, StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            let deleted = sqlx::query_scalar!(
                r#"SELECT delete_done_todos($1, $2, $3) AS "deleted!""#,
                self.automation,
                interval(self.settings.retention),
                DELETE_BATCH
            )
            .fetch_one(&mut *connection)
            .await?;
            connection.done();
            Ok(deleted)
        })
        .await
    }

    /// Reads which leases there are. Makes due what a step of the clock has put off for longer than the longest pause.
    async fn read_leases(&self, leases: &mut Leases) -> Result<(), StoreError> {
        let begun = Instant::now();
        let rows = with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            sqlx::query!(
                "UPDATE todo SET next_attempt_at = statement_timestamp()
                 WHERE automation = $1 AND status = 'open' AND next_attempt_at > statement_timestamp() + $2::interval",
                self.automation,
                interval(self.settings.max_backoff + SLACK)
            )
            .execute(&mut *connection)
            .await?;
            let rows = sqlx::query!(
                r#"SELECT lease AS "lease!", extract(epoch FROM max(lease_for))::float8 AS "seconds!" FROM todo
                   WHERE automation = $1 AND lease IS NOT NULL GROUP BY lease"#,
                self.automation
            )
            .fetch_all(&mut *connection)
            .await?;
            connection.done();
            Ok(rows)
        })
        .await?;
        let length = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(self.settings.lease);
        leases.watch.saw(begun, rows.into_iter().map(|row| (row.lease, length(row.seconds))));
        leases.read_at = Some(begun);
        Ok(())
    }

    /// Leases open to-dos that are due, and those whose worker is dead. Only a log that has come as far as a to-do can say whether its command
    /// was done.
    async fn claim(&self, limit: usize, leases: &mut Leases) -> Result<Vec<Todo>, StoreError> {
        if leases.read_at.is_none_or(|at| at.elapsed() >= self.settings.poll_interval) {
            self.read_leases(leases).await?;
        }
        let expired: Vec<_> = leases.watch.expired(Instant::now()).copied().collect();
        let lease = Uuid::now_v7();
        let (rows, epoch) = with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            // Not flushed: if a crash of the server loses a lease, the to-do is attempted twice, as after the death of its worker.
            let rows = sqlx::query!(
                r#"WITH unflushed AS (
                   SELECT set_config('synchronous_commit', 'off', true)
               ), due AS (
                   SELECT automation, key FROM todo
                   WHERE automation = $1 AND status = 'open' AND next_attempt_at <= statement_timestamp()
                     AND (lease IS NULL OR lease = ANY ($5))
                     AND position <= (SELECT max(event_id) FROM event)
                     AND NOT EXISTS (SELECT FROM projection p WHERE p.name = $1 AND (p.paused OR p.ahead_of IS NOT NULL))
                   ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
               )
               UPDATE todo t SET lease = $3, lease_for = $4, attempts = t.attempts + 1
               FROM unflushed, due WHERE t.automation = due.automation AND t.key = due.key
               RETURNING t.key, t.position, t.payload::text AS "payload!", t.metadata AS "metadata: Json<Metadata>", t.attempts,
                         extract(epoch FROM t.tried_for)::float8 AS "trying_for!""#,
                self.automation,
                i64::try_from(limit).unwrap_or(i64::MAX),
                lease,
                interval(self.settings.lease),
                &expired
            )
            .fetch_all(&mut *connection)
            .await?;
            let epoch = connection.epoch();
            connection.done();
            Ok((rows, epoch))
        })
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Todo {
                key: row.key,
                position: Position(row.position),
                payload: row.payload,
                metadata: row.metadata.0,
                attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
                trying_for: Duration::try_from_secs_f64(row.trying_for).unwrap_or_default(),
                lease,
                epoch,
            })
            .collect())
    }

    /// Stores the outcomes of attempts, except of those whose lease expired and whose to-do another worker has. Returns the pauses that it set.
    async fn settle(&self, attempted: Vec<Attempted>) -> Result<Vec<Duration>, StoreError> {
        let mut set = vec![];
        let (mut keys, mut leases, mut statuses, mut errors, mut lengths, mut pauses) = (vec![], vec![], vec![], vec![], vec![], vec![]);
        for Attempted { todo, outcome, took } in attempted {
            let (label, status, error, pause) = match outcome {
                Outcome::Done => ("done", "done", None, Duration::ZERO),
                Outcome::Retry { error } => {
                    let pause = self.settings.pause(todo.attempts);
                    set.push(pause);
                    ("retry", "open", Some(error), pause)
                }
                Outcome::Failed { error } => ("failed", "failed", Some(error), Duration::ZERO),
            };
            METRICS.todos.add(1, &[KeyValue::new("automation", self.automation), KeyValue::new("outcome", label)]);
            if let Some(error) = &error {
                tracing::warn!(automation = self.automation, key = todo.key, attempts = todo.attempts, %error, outcome = label, "attempt at a to-do failed");
            }
            keys.push(todo.key);
            leases.push(todo.lease);
            statuses.push(status.to_owned());
            errors.push(error);
            lengths.push(interval(took));
            pauses.push(interval(pause));
        }
        with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            // Not flushed: an attempt whose outcome is lost is made again, and finds in the log what was done.
            sqlx::query!(
                "WITH unflushed AS (
                     SELECT set_config('synchronous_commit', 'off', true)
                 )
                 UPDATE todo t
                 SET status = s.status, last_error = s.error, next_attempt_at = clock_timestamp() + s.pause,
                     tried_for = t.tried_for + s.took + s.pause, lease = NULL, lease_for = NULL,
                     finished_at = CASE WHEN s.status = 'open' THEN NULL ELSE clock_timestamp() END
                 FROM unflushed, unnest($2::text[], $3::uuid[], $4::text[], $5::text[], $6::interval[], $7::interval[])
                          AS s(key, lease, status, error, took, pause)
                 WHERE t.automation = $1 AND t.key = s.key AND t.lease = s.lease",
                self.automation,
                &keys,
                &leases,
                &statuses,
                &errors as &[Option<String>],
                &lengths,
                &pauses
            )
            .execute(&mut *connection)
            .await?;
            connection.done();
            Ok(set)
        })
        .await
    }
}
