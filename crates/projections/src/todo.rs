//! To-dos: the commands that an automation has to run.
//!
//! A to-do is leased to one worker at a time. If the worker dies, the lease expires and another worker attempts the to-do again, so its
//! command must tolerate running twice. Done to-dos are deleted after a retention time; the automation's checkpoint keeps it from enqueuing
//! them again.

use std::{sync::Arc, time::Duration};

use event_store::{
    Backoff, Metadata, Pool, Position, StoreError,
    connection::{PooledConnection, with_timeout},
    trace,
};
use opentelemetry::KeyValue;
use sqlx::{PgConnection, postgres::types::PgInterval, types::Json};
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;
use uuid::Uuid;

use crate::metrics::METRICS;

/// The largest count of to-dos. Counting stops there.
pub(crate) const COUNTED: i32 = 100_000;

/// The to-dos of an automation, each counted up to 100,000.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TodoBacklog {
    /// All that are neither done nor failed.
    pub open: i64,
    /// The open ones that wait for a worker.
    pub due: i64,
    /// The failed ones, kept for an operator.
    pub failed: i64,
    /// The age of the oldest open one, in seconds.
    pub oldest: Option<f64>,
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
    /// The time since the first attempt.
    pub trying_for: Duration,
    lease: Uuid,
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
    /// How long a to-do is leased. After that, another worker attempts it too.
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
    mut wake: watch::Receiver<Position>,
    shutdown: CancellationToken,
    attempt: F,
) where
    F: Fn(Todo) -> W,
    W: Future<Output = Outcome> + Send + 'static,
{
    let todos = Arc::new(Todos { pool, automation, settings });
    // Each attempt is a task of its own: it proceeds while this loop waits for a connection.
    let mut working = JoinSet::new();
    let measuring = AbortOnDropHandle::new(tokio::spawn(measure(todos.clone())));
    let deleting = AbortOnDropHandle::new(tokio::spawn(delete_done(todos.clone())));
    let mut warned = false;
    while !shutdown.is_cancelled() {
        let room = todos.settings.concurrency.saturating_sub(working.len());
        let claimed = if room == 0 { Ok(vec![]) } else { todos.claim(room).await };
        let found = match claimed {
            Ok(claimed) => {
                warned = false;
                let found = claimed.len();
                for todo in claimed {
                    let span = tracing::info_span!("todo", otel.name = automation, key = todo.key, attempt = todo.attempts);
                    trace::set_parent(&span, todo.metadata.traceparent.as_deref());
                    let (todos, outcome) = (todos.clone(), attempt(todo.clone()));
                    working.spawn(async move { todos.settle(&todo, outcome.await).await }.instrument(span));
                }
                found
            }
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(automation, error = &error as &dyn std::error::Error, "cannot read to-dos, waiting for the database");
                }
                0
            }
        };
        // A full claim: there may be more.
        if found > 0 && found == room {
            continue;
        }
        tokio::select! {
            Some(ended) = working.join_next(), if !working.is_empty() => report_panic(automation, ended),
            _ = wake.changed() => {}
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(todos.settings.poll_interval) => {}
        }
        while let Some(ended) = working.try_join_next() {
            report_panic(automation, ended);
        }
    }
    while let Some(ended) = working.join_next().await {
        report_panic(automation, ended);
    }
    drop((measuring, deleting));
}

/// The pause between two counts of to-dos.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);
/// The pause between two deletions of done to-dos.
const DELETE_INTERVAL: Duration = Duration::from_secs(60);
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
                Ok(deleted) if deleted >= DELETE_BATCH.unsigned_abs() => {}
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
    async fn delete_done(&self) -> Result<u64, StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            let deleted = sqlx::query!(
                "DELETE FROM todo WHERE automation = $1 AND key = ANY (ARRAY(
                     SELECT key FROM todo WHERE automation = $1 AND status = 'done' AND finished_at < clock_timestamp() - $2::interval
                     ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED))",
                self.automation,
                interval(self.settings.retention),
                DELETE_BATCH
            )
            .execute(&mut *connection)
            .await?;
            connection.done();
            Ok(deleted.rows_affected())
        })
        .await
    }

    /// Leases open to-dos that are due.
    async fn claim(&self, limit: usize) -> Result<Vec<Todo>, StoreError> {
        let lease = Uuid::now_v7();
        let rows = with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            let rows = sqlx::query!(
                r#"WITH due AS (
                   SELECT automation, key FROM todo
                   WHERE automation = $1 AND status = 'open' AND next_attempt_at <= clock_timestamp()
                     AND (lease_until IS NULL OR lease_until < clock_timestamp())
                     AND NOT EXISTS (SELECT FROM projection p WHERE p.name = $1 AND p.paused)
                   ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
               )
               UPDATE todo t
               SET lease = $3, lease_until = clock_timestamp() + $4, attempts = t.attempts + 1,
                   first_attempt_at = coalesce(t.first_attempt_at, clock_timestamp())
               FROM due WHERE t.automation = due.automation AND t.key = due.key
               RETURNING t.key, t.position, t.payload::text AS "payload!", t.metadata AS "metadata: Json<Metadata>", t.attempts,
                         extract(epoch FROM clock_timestamp() - t.first_attempt_at)::float8 AS "trying_for!""#,
                self.automation,
                i64::try_from(limit).unwrap_or(i64::MAX),
                lease,
                interval(self.settings.lease)
            )
            .fetch_all(&mut *connection)
            .await?;
            connection.done();
            Ok(rows)
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
            })
            .collect())
    }

    /// Stores the outcome of an attempt, unless the lease expired and another worker has the to-do.
    async fn settle(&self, todo: &Todo, outcome: Outcome) {
        let (label, status, error, pause) = match outcome {
            Outcome::Done => ("done", "done", None, Duration::ZERO),
            Outcome::Retry { error } => ("retry", "open", Some(error), self.settings.pause(todo.attempts)),
            Outcome::Failed { error } => ("failed", "failed", Some(error), Duration::ZERO),
        };
        METRICS.todos.add(1, &[KeyValue::new("automation", self.automation), KeyValue::new("outcome", label)]);
        if let Some(error) = &error {
            tracing::warn!(automation = self.automation, key = todo.key, attempts = todo.attempts, %error, outcome = label, "attempt at a to-do failed");
        }
        let settled = with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            sqlx::query!(
                "UPDATE todo SET status = $4, last_error = $5, next_attempt_at = clock_timestamp() + $6, lease = NULL, lease_until = NULL,
                    finished_at = CASE WHEN $4 = 'open' THEN NULL ELSE clock_timestamp() END
             WHERE automation = $1 AND key = $2 AND lease = $3",
                self.automation,
                todo.key,
                todo.lease,
                status,
                error,
                interval(pause)
            )
            .execute(&mut *connection)
            .await?;
            connection.done();
            Ok(())
        });
        if let Err(error) = settled.await {
            // The to-do is attempted again when its lease expires.
            tracing::warn!(automation = self.automation, key = todo.key, %error, "cannot store the outcome of a to-do");
        }
    }
}
