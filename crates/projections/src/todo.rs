//! To-dos: what an automation has still to do, leased to workers. A dead worker's lease runs out, and another does it; so what a to-do
//! asks for must bear being done twice. Done ones are kept, so that nothing is asked for twice.

use std::{sync::Arc, time::Duration};

use event_store::{
    Metadata, Position, StoreError,
    connection::{PooledConnection, with_timeout},
    trace,
};
use opentelemetry::KeyValue;
use rand::Rng;
use sqlx::{PgConnection, PgPool, postgres::types::PgInterval, types::Json};
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;
use uuid::Uuid;

use crate::metrics::METRICS;

/// To-dos are counted up to so many.
pub(crate) const COUNTED: i32 = 100_000;

/// What an automation has to do, counted up to 100,000 of a kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Waiting {
    /// All that is to be done, what is in hand or waits for its next attempt among it.
    pub open: i64,
    /// What of it waits for a worker.
    pub due: i64,
    /// What was given up.
    pub failed: i64,
    /// How long ago the oldest open one was asked for.
    pub oldest: Option<f64>,
}

/// A to-do that an automation's projection asks for.
#[derive(Debug, Clone)]
pub struct NewTodo {
    /// What it is for: asked for once for each key.
    pub key: String,
    /// The position of the event that asks for it.
    pub position: Position,
    /// What is to be done, in the automation's own words.
    pub payload: serde_json::Value,
    /// That event's metadata.
    pub metadata: Metadata,
}

/// A to-do, leased to this worker.
#[derive(Debug, Clone)]
pub struct Todo {
    /// What it is for.
    pub key: String,
    /// The position of the event that asked for it.
    pub position: Position,
    /// What is to be done, as JSON.
    payload: String,
    /// The event's metadata.
    pub metadata: Metadata,
    /// How often it was tried, this time among them.
    pub attempts: u32,
    /// How long ago it was first tried.
    pub trying_for: Duration,
    lease: Uuid,
}

impl Todo {
    /// What is to be done. Read from the text, so that exact numbers stay exact.
    ///
    /// # Errors
    /// Where it is not of this shape.
    pub fn payload<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.payload)
    }
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, or had been.
    Done,
    /// It could not be done now.
    Retry {
        /// Why.
        error: String,
    },
    /// It is given up; kept for an operator to retry.
    Failed {
        /// Why.
        error: String,
    },
}

/// How to-dos are worked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a worker may take; after that another does it too.
    pub lease: Duration,
    /// How many are worked at once.
    pub concurrency: usize,
    /// The pause before the second attempt; doubled for each further one.
    pub first_backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// How often to look for those that other processes asked for, and those whose lease ran out.
    pub poll_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            concurrency: 16,
            first_backoff: Duration::from_millis(125),
            max_backoff: Duration::from_secs(60),
            poll_interval: Duration::from_secs(1),
        }
    }
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// Asks for to-dos, within the transaction of the automation's projection. One whose key is known, done or not, is not asked for again.
///
/// # Errors
/// The database's.
pub async fn ask(transaction: &mut PgConnection, automation: &str, todos: &[NewTodo]) -> Result<(), sqlx::Error> {
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

/// Works an automation's to-dos until told to stop; then finishes those in hand. `wake` says when there may be new ones.
pub async fn work<F, W>(
    pool: PgPool,
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
    // A task each: an attempt that holds a connection goes on while this loop waits for one.
    let mut working = JoinSet::new();
    let measuring = AbortOnDropHandle::new(tokio::spawn(measure(todos.clone())));
    let mut said = false;
    while !shutdown.is_cancelled() {
        let room = todos.settings.concurrency.saturating_sub(working.len());
        let claimed = if room == 0 { Ok(vec![]) } else { todos.claim(room).await };
        let found = match claimed {
            Ok(claimed) => {
                said = false;
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
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(automation, error = &error as &dyn std::error::Error, "to-dos cannot be read: waiting for the database");
                }
                0
            }
        };
        // Where as many were found as asked for, there may be more at once.
        if found > 0 && found == room {
            continue;
        }
        tokio::select! {
            Some(ended) = working.join_next(), if !working.is_empty() => said_so(automation, ended),
            _ = wake.changed() => {}
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(todos.settings.poll_interval) => {}
        }
        while let Some(ended) = working.try_join_next() {
            said_so(automation, ended);
        }
    }
    while let Some(ended) = working.join_next().await {
        said_so(automation, ended);
    }
    drop(measuring);
}

/// How often to-dos are counted.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts what there is to do, and says it in metrics.
async fn measure(todos: Arc<Todos>) {
    let mut ticks = tokio::time::interval(MEASURE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Where the database is away, that is said by who works them.
        let Ok(waiting) = todos.waiting().await else { continue };
        let of = |status| [KeyValue::new("automation", todos.automation), KeyValue::new("status", status)];
        for (status, count) in [("open", waiting.open), ("due", waiting.due), ("failed", waiting.failed)] {
            METRICS.todo_count.record(count, &of(status));
        }
        METRICS.todo_oldest.record(waiting.oldest.unwrap_or_default(), &[KeyValue::new("automation", todos.automation)]);
    }
}

/// An attempt that panicked is done once more when its lease has run out.
fn said_so(automation: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(automation, %error, "an attempt at a to-do died");
    }
}

struct Todos {
    pool: PgPool,
    automation: &'static str,
    settings: Settings,
}

impl Todos {
    async fn waiting(&self) -> Result<Waiting, StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            let waiting = sqlx::query_as!(
                Waiting,
                r#"SELECT open AS "open!", due AS "due!", failed AS "failed!", oldest FROM todo_waiting($1, $2)"#,
                self.automation,
                COUNTED
            )
            .fetch_one(&mut *connection)
            .await?;
            connection.done();
            Ok(waiting)
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

    /// Writes down what became of an attempt, unless the lease ran out and another has it.
    async fn settle(&self, todo: &Todo, outcome: Outcome) {
        let (word, status, error, pause) = match outcome {
            Outcome::Done => ("done", "done", None, Duration::ZERO),
            Outcome::Retry { error } => ("retry", "open", Some(error), self.backoff(todo.attempts)),
            Outcome::Failed { error } => ("failed", "failed", Some(error), Duration::ZERO),
        };
        METRICS.todos.add(1, &[KeyValue::new("automation", self.automation), KeyValue::new("outcome", word)]);
        if let Some(error) = &error {
            tracing::warn!(automation = self.automation, key = todo.key, attempts = todo.attempts, %error, outcome = word, "a to-do was not done");
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
            // The lease runs out, and it is done once more.
            tracing::warn!(automation = self.automation, key = todo.key, %error, "what became of a to-do could not be written down");
        }
    }

    /// Doubled with every attempt, up to a bound, and drawn from its upper half.
    fn backoff(&self, attempts: u32) -> Duration {
        let pause = self.settings.first_backoff.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(self.settings.max_backoff);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}
