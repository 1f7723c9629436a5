//! Operations on the builds of a projection: pause it, compare two builds, revive a retired build, drop a build.
//!
//! Each operation writes to the table `projection`. The replicas read that table with every heartbeat.

use std::time::Duration;

use event_store::{
    Position, StoreError,
    connection::{PooledConnection, with_timeout},
};
use projections::Switch;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};

/// Pauses or resumes all builds of a projection. While it is paused, the replicas keep its segments and apply nothing, and an automation
/// does no to-dos. Running batches and to-dos finish. Returns whether this changed anything.
///
/// # Errors
/// If the database is unreachable or the migrations are missing.
pub async fn pause(pool: &PgPool, name: &str, paused: bool) -> Result<bool, StoreError> {
    let changed = sqlx::query!("UPDATE projection SET paused = $2 WHERE name = $1 AND paused <> $2", name, paused).execute(pool).await?;
    Ok(changed.rows_affected() > 0)
}

/// Revives the retired build of a projection. The replicas of its version bring it up to date from its checkpoints, and it goes into
/// service like a new build. Returns whether there is a retired build.
///
/// # Errors
/// If the database is unreachable or the migrations are missing.
pub async fn revive(pool: &PgPool, name: &str, switch: Switch) -> Result<bool, StoreError> {
    let revived = sqlx::query!(
        "UPDATE projection SET status = 'building', switch_when_ready = $2, started_at = clock_timestamp()
         WHERE name = $1 AND status = 'retired'",
        name,
        switch == Switch::WhenReady
    )
    .execute(pool)
    .await?;
    Ok(revived.rows_affected() > 0)
}

/// Retires a revived build again, if it is not to go into service.
///
/// # Errors
/// If the database is unreachable or the migrations are missing.
pub async fn retire(pool: &PgPool, name: &str, build: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE projection SET status = 'retired' WHERE name = $1 AND build = $2 AND status = 'building' AND NOT switch_when_ready",
        name,
        build
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Drops a build that is not in service, with its rows and checkpoints. A replica that works on it can write nothing more. Returns whether
/// there was such a build.
///
/// # Errors
/// If the database is unreachable, the migrations are missing, or a query reads the build's tables for longer than this session may wait.
pub async fn drop_build(pool: &PgPool, name: &str, build: &str) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    // Lock the checkpoints first, in the order of a batch. Locking the build first could deadlock with a batch.
    sqlx::query_scalar!("SELECT position FROM checkpoint WHERE name = $1 AND build = $2 ORDER BY segment FOR UPDATE", name, build)
        .fetch_all(&mut *transaction)
        .await?;
    // This deletes the checkpoints as well. The running batch has ended before, and no later one can write.
    let dropped = sqlx::query_scalar!(
        "DELETE FROM projection WHERE name = $1 AND build = $2 AND status <> 'serving' AND build <> 'automation' RETURNING tables",
        name,
        build
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(tables) = dropped else { return Ok(false) };
    // Wait for queries that began to read the build while it was in service.
    sqlx::query!(r#"SELECT pg_advisory_xact_lock(build_lock_key($1, $2)) AS "locked!: ()""#, name, build)
        .fetch_one(&mut *transaction)
        .await?;
    for table in tables {
        sqlx::query(&format!("TRUNCATE {build}.{table}")).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Two builds of a projection, compared at one position of the log.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// The projection.
    pub name: String,
    /// The position of every segment of both builds.
    pub position: Position,
    /// The build in service.
    pub serving: String,
    /// The other build.
    pub other: String,
    /// The comparison of each table.
    pub tables: Vec<TableDifference>,
}

impl Difference {
    /// Returns whether both builds have the same rows.
    pub fn is_none(&self) -> bool {
        self.tables.iter().all(|table| table.only_serving == 0 && table.only_other == 0)
    }
}

/// The comparison of a table.
#[derive(Debug, Serialize)]
pub struct TableDifference {
    /// The table's name, without its schema.
    pub table: String,
    /// The rows in the build in service.
    pub rows_serving: i64,
    /// The rows in the other build.
    pub rows_other: i64,
    /// The rows that only the build in service has. A changed row counts in both builds.
    pub only_serving: i64,
    /// The rows that only the other build has.
    pub only_other: i64,
    /// Samples of these rows, in the order of their columns. So both versions of a changed row are neighbours.
    pub samples: Vec<Row>,
}

/// A row that only one of two builds has.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Whether the build in service has the row.
    pub serving: bool,
    /// How many more copies of the row it has than the other build.
    pub times: i64,
    /// The whole row.
    pub row: Box<RawValue>,
}

/// The reason why two builds cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The projection has no second build that replicas work on.
    #[error("there is no second build that a process works on")]
    NoOther,
    /// Another comparison holds the builds.
    #[error("another comparison is running; it ends within {0:.0} seconds")]
    Going(f64),
    /// The segments did not reach one position in time.
    #[error("the segments of the builds did not reach one position within {0:.0} seconds")]
    Apart(f64),
    /// The columns of a table differ between the builds.
    #[error("the table {0} has other columns in one build than in the other")]
    Columns(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CompareError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The pause between two checks whether all segments are at one position.
const LOOK: Duration = Duration::from_millis(50);
/// The longest time for the comparison of one table.
const TABLE_SECONDS: u64 = 3_600;

/// Compares the serving build of a projection with the other build, row by row, at one position of the log. Returns up to `samples`
/// differing rows of each table.
///
/// The replicas hold both builds at the position of the furthest segment until all segments are there. The hold ends after `patience` by
/// the database's clock, even if this process dies. Then one snapshot of all tables is taken, and the builds continue while it is compared.
/// The snapshot itself shows that all segments are at one position, so nothing depends on the replicas' obedience.
///
/// # Errors
/// If the segments do not meet, or the database is unreachable.
pub async fn compare(pool: &PgPool, name: &str, samples: i64, patience: Duration) -> Result<Difference, CompareError> {
    stop(pool, name, patience).await?;
    let compared = together(pool, name, patience).await;
    // Also after a failure. If this fails too, the hold ends by its time.
    let going_on = go_on(pool, name).await;
    let Snapshot { mut connection, position, serving, other, tables } = compared?;
    going_on?;
    let mut differences = vec![];
    for table in tables {
        differences.push(differ(&mut connection, &serving, &other, table, samples).await?);
    }
    sqlx::query("ROLLBACK").execute(&mut *connection).await?;
    connection.done();
    Ok(Difference { name: name.to_owned(), position, serving, other, tables: differences })
}

/// Asks the replicas to hold both builds at the position of the furthest segment.
async fn stop(pool: &PgPool, name: &str, patience: Duration) -> Result<(), CompareError> {
    let going = sqlx::query!(
        r#"WITH builds AS (
               SELECT build, hold_until FROM projection WHERE name = $1 AND status IN ('serving', 'building') FOR UPDATE
           ), going AS (
               SELECT extract(epoch FROM max(hold_until) - clock_timestamp())::float8 AS seconds FROM builds
               WHERE hold_until > clock_timestamp()
           ), stopped AS (
               UPDATE projection p
               SET hold_at = (SELECT max(c.position) FROM checkpoint c JOIN builds USING (build) WHERE c.name = $1),
                   hold_until = clock_timestamp() + make_interval(secs => $2)
               FROM builds b WHERE p.name = $1 AND p.build = b.build AND (SELECT count(*) FROM builds) = 2
                  AND (SELECT seconds FROM going) IS NULL
               RETURNING p.build
           )
           SELECT (SELECT seconds FROM going) AS seconds, (SELECT count(*) FROM stopped) AS "stopped!""#,
        name,
        patience.as_secs_f64()
    )
    .fetch_one(pool)
    .await?;
    match (going.stopped, going.seconds) {
        (2, _) => Ok(()),
        (_, Some(seconds)) => Err(CompareError::Going(seconds)),
        _ => Err(CompareError::NoOther),
    }
}

/// Ends the hold of a comparison before its time.
///
/// # Errors
/// If the database is unreachable or the migrations are missing.
pub async fn go_on(pool: &PgPool, name: &str) -> Result<(), StoreError> {
    with_timeout(async {
        sqlx::query!("UPDATE projection SET hold_at = NULL, hold_until = NULL WHERE name = $1 AND hold_at IS NOT NULL", name)
            .execute(pool)
            .await?;
        Ok(())
    })
    .await
}

/// A snapshot of both builds at one position.
struct Snapshot {
    connection: PooledConnection,
    position: Position,
    serving: String,
    other: String,
    tables: Vec<String>,
}

/// Waits until all segments of both builds are at one position, and takes a snapshot there.
async fn together(pool: &PgPool, name: &str, patience: Duration) -> Result<Snapshot, CompareError> {
    let until = Instant::now() + patience;
    loop {
        // A replica that has not seen the hold yet may have passed it. Then the hold moves to that position. Every replica sees the hold
        // with its next heartbeat.
        let apart = sqlx::query_scalar!(
            r#"WITH stand AS (
                   SELECT max(c.position) AS furthest, min(c.position) AS nearest
                   FROM checkpoint c JOIN projection p USING (name, build) WHERE name = $1 AND p.status IN ('serving', 'building')
               ), raised AS (
                   UPDATE projection p SET hold_at = s.furthest FROM stand s WHERE p.name = $1 AND p.hold_at < s.furthest
               )
               SELECT nearest <> furthest AS "apart!" FROM stand"#,
            name
        )
        .fetch_one(pool)
        .await?;
        if !apart && let Some(snapshot) = snapshot(pool, name).await? {
            return Ok(snapshot);
        }
        if Instant::now() >= until {
            return Err(CompareError::Apart(patience.as_secs_f64()));
        }
        sleep(LOOK).await;
    }
}

/// Opens a transaction that sees both builds, if all their segments are at one position in it.
async fn snapshot(pool: &PgPool, name: &str) -> Result<Option<Snapshot>, CompareError> {
    let builds = sqlx::query!(
        "SELECT build, tables FROM projection WHERE name = $1 AND status IN ('serving', 'building') ORDER BY status = 'serving' DESC",
        name
    )
    .fetch_all(pool)
    .await?;
    let [serving, other] = builds.as_slice() else { return Err(CompareError::NoOther) };
    let mut tables: Vec<_> = serving.tables.iter().chain(&other.tables).cloned().collect();
    tables.sort_unstable();
    tables.dedup();
    let mut connection = PooledConnection::from(pool).await?;
    sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *connection).await?;
    // Lock before the snapshot. Otherwise a TRUNCATE would be visible in it.
    let all: Vec<_> =
        [&serving.build, &other.build].iter().flat_map(|build| tables.iter().map(move |table| format!("{build}.{table}"))).collect();
    if !all.is_empty() {
        sqlx::query(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", all.join(", "))).execute(&mut *connection).await?;
    }
    let stand = sqlx::query!(
        r#"SELECT p.build, p.status, min(c.position) AS "lowest!", max(c.position) AS "highest!"
           FROM projection p JOIN checkpoint c USING (name, build)
           WHERE name = $1 AND p.status IN ('serving', 'building') GROUP BY p.build, p.status ORDER BY p.status = 'serving' DESC"#,
        name
    )
    .fetch_all(&mut *connection)
    .await?;
    let position = stand.first().map(|first| first.lowest).unwrap_or_default();
    let same = stand.iter().map(|stand| stand.build.as_str()).eq([serving.build.as_str(), other.build.as_str()]);
    if !same || stand.iter().any(|stand| stand.lowest != position || stand.highest != position) {
        sqlx::query("ROLLBACK").execute(&mut *connection).await?;
        connection.done();
        return Ok(None);
    }
    let (serving, other) = (serving.build.clone(), other.build.clone());
    Ok(Some(Snapshot { connection, position: Position(position), serving, other, tables }))
}

async fn differ(
    connection: &mut PgConnection,
    serving: &str,
    other: &str,
    table: String,
    samples: i64,
) -> Result<TableDifference, CompareError> {
    let same: bool = sqlx::query_scalar(
        "SELECT (SELECT array_agg(ROW(attname, atttypid, atttypmod, attcollation)::text ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped)
              IS NOT DISTINCT FROM
                (SELECT array_agg(ROW(attname, atttypid, atttypmod, attcollation)::text ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = $2::regclass AND attnum > 0 AND NOT attisdropped)",
    )
    .bind(format!("{serving}.{table}"))
    .bind(format!("{other}.{table}"))
    .fetch_one(&mut *connection)
    .await?;
    if !same {
        return Err(CompareError::Columns(table));
    }
    // The session's timeout may be short, but reading a large table takes long.
    sqlx::query("SELECT set_config('statement_timeout', $1, true)").bind(format!("{TABLE_SECONDS}s")).execute(&mut *connection).await?;
    // Rows are compared as text, with their counts. This tells 1.0 from 1.00, and works for types without equality.
    let sql = format!(
        "WITH difference AS MATERIALIZED (
             SELECT entry, sum(times)::bigint AS times FROM (
                 SELECT to_json(compared.*)::text AS entry, 1 AS times FROM {serving}.{table} AS compared
                 UNION ALL
                 SELECT to_json(compared.*)::text, -1 FROM {other}.{table} AS compared
             ) AS entries GROUP BY entry HAVING sum(times) <> 0
         ), sample AS (
             SELECT entry, times FROM difference ORDER BY entry COLLATE \"C\", times DESC LIMIT $1
         )
         SELECT (SELECT count(*) FROM {serving}.{table}), (SELECT count(*) FROM {other}.{table}),
                (SELECT coalesce(sum(times), 0)::bigint FROM difference WHERE times > 0),
                (SELECT coalesce(-sum(times), 0)::bigint FROM difference WHERE times < 0),
                ARRAY(SELECT entry FROM sample), ARRAY(SELECT times FROM sample)"
    );
    let found: (i64, i64, i64, i64, Vec<String>, Vec<i64>) = sqlx::query_as(&sql).bind(samples).fetch_one(connection).await?;
    let (rows_serving, rows_other, only_serving, only_other, rows, times) = found;
    let samples = rows
        .into_iter()
        .zip(times)
        .map(|(row, times)| RawValue::from_string(row).map(|row| Row { serving: times > 0, times: times.abs(), row }))
        .collect::<Result<_, _>>()
        .map_err(|error| StoreError::Encode(error.to_string()))?;
    Ok(TableDifference { table, rows_serving, rows_other, only_serving, only_other, samples })
}
