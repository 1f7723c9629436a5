//! Parked keys and blocked segments: listed, retried, skipped.

use std::time::Duration;

use event_store::{EventStore, LogEvent, Pool, Position, StoreError, connection::with_timeout};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    ask::ask,
    log::{COLUMNS, Entry, entries},
};

/// A parked key, or segments that are blocked before an event.
#[derive(Debug, Clone, Serialize)]
pub struct Parked {
    /// The projection.
    pub projection: String,
    /// The build.
    pub build: String,
    /// The status of the build: `serving` or `building`.
    pub status: String,
    /// The parked key. `None`: segments are blocked.
    pub key: Option<Uuid>,
    /// The blocked segments.
    pub segments: Option<Vec<i32>>,
    /// The event that failed.
    pub position: Position,
    /// Why it failed.
    pub error: String,
    /// The number of attempts.
    pub attempts: i32,
    /// The time since the first one, in seconds.
    pub since_seconds: f64,
    /// The number of events in the key's queue, with that one.
    pub queued: i64,
    /// Whether an operator asked for a retry that has not run yet.
    pub retry_asked: bool,
}

/// Reads the parked keys and blocked segments of one projection or of all. Blocked segments retry by themselves.
///
/// # Errors
/// As [`crate::builds`].
pub async fn parked(pool: &Pool, projection: Option<&str>) -> Result<Vec<Parked>, StoreError> {
    let listed = sqlx::query_as!(
        Parked,
        r#"SELECT name AS "projection!", build AS "build!", status AS "status!", key, segments, position AS "position!: Position",
                  error AS "error!", attempts AS "attempts!",
                  extract(epoch FROM clock_timestamp() - since)::float8 AS "since_seconds!", queued AS "queued!", retry_asked AS "retry_asked!"
           FROM (
               SELECT k.name, k.build, p.status, k.key, NULL::integer[] AS segments, k.position, k.error, k.attempts, k.parked_at AS since,
                      (SELECT count(*) FROM parked_event q WHERE q.name = k.name AND q.build = k.build AND q.key = k.key) AS queued,
                      k.retry_asked_at IS NOT NULL AS retry_asked
               FROM parked_key k JOIN projection p USING (name, build)
               UNION ALL
               SELECT c.name, c.build, p.status, NULL, array_agg(c.segment ORDER BY c.segment), c.blocked_at, min(c.blocked_error),
                      max(c.blocked_attempts), min(c.blocked_since), 0, false
               FROM checkpoint c JOIN projection p USING (name, build)
               WHERE c.position < c.blocked_at
               GROUP BY c.name, c.build, p.status, c.blocked_at
           ) failing
           WHERE status <> 'retired' AND ($1::text IS NULL OR name = $1)
           ORDER BY name, status DESC, since, key"#,
        projection
    );
    ask(pool, async |connection| listed.fetch_all(connection).await).await
}

/// Asks the owners of their segments to retry parked keys: of one projection or of all, these keys or all. Returns the keys that were parked,
/// as they were before.
///
/// # Errors
/// As [`crate::builds`].
pub async fn retry_parked(pool: &Pool, projection: Option<&str>, keys: Option<&[Uuid]>) -> Result<Vec<Parked>, StoreError> {
    let asked = sqlx::query!(
        "UPDATE parked_key SET retry_asked_at = clock_timestamp()
         WHERE ($1::text IS NULL OR name = $1) AND ($2::uuid[] IS NULL OR key = ANY ($2)) RETURNING name, build, key",
        projection,
        keys
    );
    let before = parked(pool, projection).await?;
    let asked = ask(pool, async |connection| asked.fetch_all(connection).await).await?;
    let is_asked =
        |parked: &Parked| asked.iter().any(|row| row.name == parked.projection && row.build == parked.build && Some(row.key) == parked.key);
    Ok(before.into_iter().filter(is_asked).collect())
}

/// The outcome of a retry.
#[derive(Debug)]
pub struct Retried {
    /// The number of keys that are no longer parked.
    pub applied: usize,
    /// The keys that failed again.
    pub failed: Vec<Parked>,
    /// The keys that no owner has retried yet.
    pub waiting: Vec<Parked>,
}

/// Waits until parked keys were retried, for `limit` at most. `asked` is the answer of [`retry_parked`].
///
/// # Errors
/// As [`builds`](crate::builds).
pub async fn wait_for_retry(pool: &Pool, projection: Option<&str>, asked: &[Parked], limit: Duration) -> Result<Retried, StoreError> {
    let is_asked =
        |parked: &Parked| asked.iter().any(|one| (&one.projection, &one.build, one.key) == (&parked.projection, &parked.build, parked.key));
    let until = Instant::now() + limit;
    loop {
        let mut left = parked(pool, projection).await?;
        left.retain(is_asked);
        if Instant::now() >= until || left.iter().all(|parked| !parked.retry_asked) {
            let (waiting, failed): (Vec<_>, Vec<_>) = left.into_iter().partition(|parked| parked.retry_asked);
            return Ok(Retried { applied: asked.len() - waiting.len() - failed.len(), failed, waiting });
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// An event to skip.
#[derive(Debug, Clone, Copy)]
pub struct Skip<'a> {
    /// The projection.
    pub projection: &'a str,
    /// The parked key. `None` for an event that blocks segments.
    pub key: Option<Uuid>,
    /// The event: the first of the key's queue, or the one that blocks segments.
    pub position: Position,
    /// Why it may be skipped.
    pub reason: &'a str,
    /// The person who decided it.
    pub by: &'a str,
}

/// Skips an event for good: removes it from the queue of a parked key and retries the rest, or lets blocked segments continue after it. The
/// decision is recorded. Returns the builds concerned; none if the event is not the first of the queue and blocks no segment.
///
/// # Errors
/// As [`crate::builds`].
pub async fn skip(pool: &Pool, skip: Skip<'_>) -> Result<Vec<String>, StoreError> {
    let Skip { projection, key, position, reason, by } = skip;
    with_timeout(async {
        let mut transaction = pool.begin().await?;
        if key.is_some() {
            // Waits for a retry in progress.
            sqlx::query!("SELECT FROM parked_key WHERE name = $1 AND key = $2 ORDER BY build FOR UPDATE", projection, key)
                .execute(&mut *transaction)
                .await?;
        }
        let builds = sqlx::query_scalar!(
            r#"WITH failing AS (
                   SELECT k.build, k.error, k.attempts FROM parked_key k
                   WHERE k.name = $1 AND k.key = $2 AND $3 = (
                       SELECT min(q.position) FROM parked_event q WHERE q.name = k.name AND q.build = k.build AND q.key = k.key)
                   UNION ALL
                   SELECT build, min(blocked_error), max(blocked_attempts) FROM checkpoint
                   WHERE $2::uuid IS NULL AND name = $1 AND blocked_at = $3 AND position < blocked_at GROUP BY build
               )
               INSERT INTO skipped_event (name, build, started_at, key, position, error, attempts, reason, skipped_by)
               SELECT $1, build, p.started_at, $2, $3, s.error, s.attempts, $4, $5
               FROM failing s JOIN projection p USING (build) WHERE p.name = $1 AND p.status <> 'retired'
               RETURNING build"#,
            projection,
            key,
            position.0,
            reason,
            by
        )
        .fetch_all(&mut *transaction)
        .await?;
        sqlx::query!(
            "DELETE FROM parked_event WHERE name = $1 AND key = $2 AND position = $3 AND build = ANY ($4)",
            projection,
            key,
            position.0,
            &builds
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "UPDATE parked_key SET retry_asked_at = clock_timestamp() WHERE name = $1 AND key = $2 AND build = ANY ($3)",
            projection,
            key,
            &builds
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(builds)
    })
    .await
}

/// A skipped event.
#[derive(Debug, Clone, Serialize)]
pub struct Skipped {
    /// The projection.
    pub projection: String,
    /// The build.
    pub build: String,
    /// The key for which it was parked.
    pub key: Option<Uuid>,
    /// The event.
    pub position: Position,
    /// Why it failed.
    pub error: String,
    /// The number of attempts.
    pub attempts: i32,
    /// Why it was skipped.
    pub reason: String,
    /// The person who decided it.
    pub skipped_by: String,
    /// The time since then, in seconds.
    pub age_seconds: f64,
}

/// Reads all skipped events of one projection or of all.
///
/// # Errors
/// As [`crate::builds`].
pub async fn skipped(pool: &Pool, projection: Option<&str>) -> Result<Vec<Skipped>, StoreError> {
    let listed = sqlx::query_as!(
        Skipped,
        r#"SELECT name AS projection, build, key, position AS "position: Position", error, attempts, reason, skipped_by,
                  extract(epoch FROM clock_timestamp() - skipped_at)::float8 AS "age_seconds!"
           FROM skipped_event WHERE $1::text IS NULL OR name = $1 ORDER BY id"#,
        projection
    );
    ask(pool, async |connection| listed.fetch_all(connection).await).await
}

/// Reads the first events of a parked key's queue.
///
/// # Errors
/// The log cannot be read.
pub async fn parked_queue<E: LogEvent>(store: &EventStore<E>, of: &Parked, count: i64) -> Result<Vec<Entry<E>>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM event WHERE event_id = ANY (ARRAY(
             SELECT position FROM parked_event WHERE name = $1 AND build = $2 AND key = $3 ORDER BY position LIMIT $4))
         ORDER BY event_id"
    );
    entries(store, sqlx::query_as(&sql).bind(&of.projection).bind(&of.build).bind(of.key).bind(count)).await
}
