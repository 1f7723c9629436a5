//! To-dos: counted, listed, retried.

use event_store::{Pool, Position, StoreError};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;

use crate::ask::ask;

/// The numbers of an automation's to-dos.
#[derive(Debug, Clone, Serialize)]
pub struct TodoCounts {
    /// The automation.
    pub automation: String,
    /// To-dos that are neither done nor failed.
    pub open: i64,
    /// Failed to-dos, kept for an operator.
    pub failed: i64,
    /// The age of the oldest open one, in seconds.
    pub oldest_open_seconds: Option<f64>,
    /// The age of the oldest failed one, in seconds.
    pub oldest_failed_seconds: Option<f64>,
}

/// Counts the open and failed to-dos of each automation.
///
/// # Errors
/// As [`crate::builds`].
pub async fn todo_counts(pool: &Pool) -> Result<Vec<TodoCounts>, StoreError> {
    // Each status has its own index.
    let counted = sqlx::query_as!(
        TodoCounts,
        r#"WITH open AS (
               SELECT automation, count(*) AS todos, min(created_at) AS oldest FROM todo WHERE status = 'open' GROUP BY automation
           ), failed AS (
               SELECT automation, count(*) AS todos, min(created_at) AS oldest FROM todo WHERE status = 'failed' GROUP BY automation
           ), known AS (
               SELECT automation FROM open UNION SELECT automation FROM failed UNION SELECT name FROM projection WHERE build = 'automation'
           )
           SELECT k.automation AS "automation!", coalesce(o.todos, 0) AS "open!", coalesce(f.todos, 0) AS "failed!",
                  extract(epoch FROM clock_timestamp() - o.oldest)::float8 AS oldest_open_seconds,
                  extract(epoch FROM clock_timestamp() - f.oldest)::float8 AS oldest_failed_seconds
           FROM known k LEFT JOIN open o USING (automation) LEFT JOIN failed f USING (automation)
           ORDER BY 1"#
    );
    ask(pool, async |connection| counted.fetch_all(connection).await).await
}

/// A to-do.
#[derive(Debug, Serialize)]
pub struct TodoEntry {
    /// The automation.
    pub automation: String,
    /// The key.
    pub key: String,
    /// The position of the event that caused it.
    pub position: Position,
    /// `open`, `done` or `failed`.
    pub status: String,
    /// The number of attempts.
    pub attempts: i32,
    /// The age, in seconds.
    pub age_seconds: f64,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// The command, in the automation's own form.
    pub payload: Box<RawValue>,
}

/// Lists to-dos in the order of their events: of one automation or of all, of one status or of each, `count` at most.
///
/// # Errors
/// As [`crate::builds`].
pub async fn todos(pool: &Pool, automation: Option<&str>, status: Option<&str>, count: i64) -> Result<Vec<TodoEntry>, StoreError> {
    let listed = sqlx::query_as!(
        Row,
        r#"SELECT automation, key, position, status, attempts, last_error, payload AS "payload: Json<Box<RawValue>>",
                  extract(epoch FROM clock_timestamp() - created_at)::float8 AS "age_seconds!"
           FROM todo WHERE ($1::text IS NULL OR automation = $1) AND ($2::text IS NULL OR status = $2)
           ORDER BY automation, position, key LIMIT $3"#,
        automation,
        status,
        count
    );
    let rows = ask(pool, async |connection| listed.fetch_all(connection).await).await?;
    Ok(rows.into_iter().map(TodoEntry::from).collect())
}

/// Lists the to-dos with these keys, of every automation.
///
/// # Errors
/// As [`crate::builds`].
pub async fn todos_of(pool: &Pool, keys: &[String]) -> Result<Vec<TodoEntry>, StoreError> {
    // The primary key serves it: an automation, and the key.
    let listed = sqlx::query_as!(
        Row,
        r#"SELECT automation, key, position, t.status, attempts, last_error, payload AS "payload: Json<Box<RawValue>>",
                  extract(epoch FROM clock_timestamp() - created_at)::float8 AS "age_seconds!"
           FROM projection p JOIN todo t ON t.automation = p.name AND t.key = ANY ($1)
           WHERE p.build = 'automation' ORDER BY automation, position, key"#,
        keys
    );
    let rows = ask(pool, async |connection| listed.fetch_all(connection).await).await?;
    Ok(rows.into_iter().map(TodoEntry::from).collect())
}

struct Row {
    automation: String,
    key: String,
    position: i64,
    status: String,
    attempts: i32,
    last_error: Option<String>,
    payload: Json<Box<RawValue>>,
    age_seconds: f64,
}

impl From<Row> for TodoEntry {
    fn from(row: Row) -> Self {
        Self {
            automation: row.automation,
            key: row.key,
            position: Position(row.position),
            status: row.status,
            attempts: row.attempts,
            age_seconds: row.age_seconds,
            last_error: row.last_error,
            payload: row.payload.0,
        }
    }
}

/// Reopens failed to-dos of an automation as if they were new: these keys, or all. Returns the keys that were failed.
///
/// # Errors
/// As [`crate::builds`].
pub async fn retry_todos(pool: &Pool, automation: &str, keys: Option<&[String]>) -> Result<Vec<String>, StoreError> {
    let opened = sqlx::query_scalar!(
        "UPDATE todo SET status = 'open', attempts = 0, tried_for = '0', next_attempt_at = clock_timestamp(), finished_at = NULL
         WHERE automation = $1 AND status = 'failed' AND ($2::text[] IS NULL OR key = ANY ($2)) RETURNING key",
        automation,
        keys
    );
    let mut keys = ask(pool, async |connection| opened.fetch_all(connection).await).await?;
    keys.sort_unstable();
    Ok(keys)
}
