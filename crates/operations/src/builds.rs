//! Pauses, revives, drops and compares builds of a projection, whether replicas run it or not.
//!
//! Replicas read these requests from the table `projection` with every heartbeat.

use std::time::Duration;

use event_store::{
    Pool, Position, StoreError,
    connection::{PooledConnection, with_timeout, with_timeout_of},
};
use projections::{Switch, build_tables, lock_builds};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use tokio::time::{Instant, sleep, timeout};

/// Pauses or resumes all builds of a projection. While paused, its replicas keep their segments and apply nothing, and an automation attempts
/// no to-do. A batch or attempt in progress is finished. Returns whether this changed anything.
///
/// # Errors
/// The database failed, or a migration is missing.
pub async fn pause(pool: &Pool, name: &str, paused: bool) -> Result<bool, StoreError> {
    let changed = sqlx::query!("UPDATE projection SET paused = $2 WHERE name = $1 AND paused <> $2", name, paused).execute(pool).await?;
    Ok(changed.rows_affected() > 0)
}

/// Revives the retired build of a projection: the replicas of its version let it catch up from its last position, and then it may serve like a
/// new build. Returns whether there is a retired build.
///
/// # Errors
/// The database failed, or a migration is missing.
pub async fn revive(pool: &Pool, name: &str, switch: Switch) -> Result<bool, StoreError> {
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

/// Retires a revived build that shall not serve.
///
/// # Errors
/// The database failed, or a migration is missing.
pub async fn retire(pool: &Pool, name: &str, build: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE projection SET status = 'retired' WHERE name = $1 AND build = $2 AND status = 'building' AND NOT switch_when_ready",
        name,
        build
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// How long work that locks tables may take. A session of `cartctl` waits 5 seconds for each lock.
const LOCKING_TIMEOUT: Duration = Duration::from_secs(60);

/// Drops a build that does not serve, with its rows. Its replicas lose their segments. Returns whether there was such a build.
///
/// # Errors
/// The database failed, a migration is missing, or a query reads the tables for longer than this session may wait.
pub async fn drop_build(pool: &Pool, name: &str, build: &str) -> Result<bool, StoreError> {
    with_timeout_of(LOCKING_TIMEOUT, drop_now(pool, name, build)).await
}

async fn drop_now(pool: &Pool, name: &str, build: &str) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    lock_builds(&mut transaction, name).await?;
    // The checkpoints before the row is deleted, in the order of a batch. The other order could deadlock with a batch.
    sqlx::query_scalar!("SELECT position FROM checkpoint WHERE name = $1 AND build = $2 ORDER BY segment FOR UPDATE", name, build)
        .fetch_all(&mut *transaction)
        .await?;
    // Deletes the checkpoints too. A batch in progress has ended, and none can write a row after this.
    let dropped = sqlx::query_scalar!(
        "DELETE FROM projection WHERE name = $1 AND build = $2 AND status <> 'serving' AND build <> 'automation' RETURNING tables",
        name,
        build
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(tables) = dropped else { return Ok(false) };
    // Waits for queries that began while this build served.
    if let Some(tables) = build_tables(&mut transaction, build, &tables).await? {
        sqlx::query(&format!("TRUNCATE {tables}")).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// The differences between two builds of a projection at one position of the log.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// The projection.
    pub name: String,
    /// The position of every segment of both.
    pub position: Position,
    /// The serving build.
    pub serving: String,
    /// The other build.
    pub other: String,
    /// The differences by table.
    pub tables: Vec<TableDifference>,
}

impl Difference {
    /// Returns whether both builds are equal.
    pub fn is_none(&self) -> bool {
        self.tables.iter().all(|table| table.only_serving == 0 && table.only_other == 0)
    }
}

/// The differences of a table.
#[derive(Debug, Serialize)]
pub struct TableDifference {
    /// The name, without schema.
    pub table: String,
    /// The number of rows in the serving build.
    pub rows_serving: i64,
    /// The number of rows in the other build.
    pub rows_other: i64,
    /// The rows that only the serving build has. A changed row counts here and in `only_other`.
    pub only_serving: i64,
    /// The rows that only the other build has.
    pub only_other: i64,
    /// Some of these rows, ordered by their columns, so that both forms of a changed row are next to each other.
    pub samples: Vec<Row>,
}

/// A row that only one build has.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Whether it is the serving build.
    pub serving: bool,
    /// How many times more often it has the row than the other build.
    pub times: i64,
    /// The row.
    pub row: Box<RawValue>,
}

/// Why two builds were not compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The projection has no second build that replicas run.
    #[error("the projection has no second build that replicas run")]
    NoOther,
    /// Another comparison holds the builds.
    #[error("another comparison runs, and ends within {0:.0} seconds")]
    Running(f64),
    /// The segments did not reach one position in time.
    #[error("the segments of both builds did not reach one position within {0:.0} seconds")]
    Apart(f64),
    /// A table has different columns in both builds.
    #[error("the table {0} has different columns in both builds")]
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

/// The pause between two polls of the segments' positions.
const POLL: Duration = Duration::from_millis(50);
/// The longest time to compare a table. The server ends a comparison after it, also one that nobody waits for any more.
const TABLE_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Compares the serving build of a projection with the other one, row by row, at one position of the log. Returns up to `samples` differing rows
/// per table.
///
/// The replicas hold both builds at the position of the furthest segment until all segments are there, for `patience` at most by the
/// database's clock. Then one snapshot of all tables is taken, and the builds continue while it is compared. The same snapshot proves that
/// all segments are at one position, so a replica that ignores the hold does no harm.
///
/// # Errors
/// The builds cannot be held at one position, or the database failed.
pub async fn compare(pool: &Pool, name: &str, samples: i64, patience: Duration) -> Result<Difference, CompareError> {
    hold(pool, name, patience).await?;
    let compared = wait_for_snapshot(pool, name, patience).await;
    // Also after an error. If the release fails too, the hold expires.
    let released = release_hold(pool, name).await;
    let Snapshot { mut connection, position, serving, other, tables } = compared?;
    released?;
    let mut differences = vec![];
    for table in tables {
        let comparing = pool.while_alive(&mut connection, async |connection| differ(connection, &serving, &other, table, samples).await);
        differences.push(comparing.await?);
    }
    // A snapshot only reads, so its connection can be closed instead of rolled back.
    drop(connection);
    Ok(Difference { name: name.to_owned(), position, serving, other, tables: differences })
}

/// Holds both builds at the position of the furthest segment.
async fn hold(pool: &Pool, name: &str, patience: Duration) -> Result<(), CompareError> {
    let hold = sqlx::query!(
        r#"WITH builds AS (
               SELECT build, hold_until FROM projection WHERE name = $1 AND status IN ('serving', 'building') ORDER BY build FOR UPDATE
           ), running AS (
               SELECT extract(epoch FROM max(hold_until) - clock_timestamp())::float8 AS seconds FROM builds
               WHERE is_held(hold_until)
           ), held AS (
               UPDATE projection p
               SET hold_at = (SELECT max(c.position) FROM checkpoint c JOIN builds USING (build) WHERE c.name = $1),
                   hold_until = clock_timestamp() + make_interval(secs => $2)
               FROM builds b WHERE p.name = $1 AND p.build = b.build AND (SELECT count(*) FROM builds) = 2
                  AND (SELECT seconds FROM running) IS NULL
               RETURNING p.build
           )
           SELECT (SELECT seconds FROM running) AS seconds, (SELECT count(*) FROM held) AS "held!""#,
        name,
        patience.as_secs_f64()
    )
    .fetch_one(pool)
    .await?;
    match (hold.held, hold.seconds) {
        (2, _) => Ok(()),
        (_, Some(seconds)) => Err(CompareError::Running(seconds)),
        _ => Err(CompareError::NoOther),
    }
}

/// Releases the builds of a projection that a comparison holds.
///
/// # Errors
/// The database failed, or a migration is missing.
pub async fn release_hold(pool: &Pool, name: &str) -> Result<(), StoreError> {
    with_timeout(async {
        sqlx::query!("UPDATE projection SET hold_at = NULL, hold_until = NULL WHERE name = $1 AND hold_at IS NOT NULL", name)
            .execute(pool)
            .await?;
        Ok(())
    })
    .await
}

/// A transaction that sees both builds at one position.
struct Snapshot {
    connection: PooledConnection,
    position: Position,
    serving: String,
    other: String,
    tables: Vec<String>,
}

/// Waits until every segment of both builds is at one position, and takes a snapshot.
async fn wait_for_snapshot(pool: &Pool, name: &str, patience: Duration) -> Result<Snapshot, CompareError> {
    let until = Instant::now() + patience;
    loop {
        // A replica that did not know of the hold may have passed it. Then the hold moves there: all replicas know of it after one heartbeat.
        let apart = sqlx::query_scalar!(
            r#"WITH positions AS (
                   SELECT max(c.position) AS furthest, min(c.position) AS nearest
                   FROM checkpoint c JOIN projection p USING (name, build) WHERE name = $1 AND p.status IN ('serving', 'building')
               ), raised AS (
                   UPDATE projection p SET hold_at = s.furthest FROM positions s WHERE p.name = $1 AND p.hold_at < s.furthest
               )
               SELECT nearest <> furthest AS "apart!" FROM positions"#,
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
        sleep(POLL).await;
    }
}

/// Begins a transaction that sees both builds. `None` if their segments are not at one position in it.
async fn snapshot(pool: &Pool, name: &str) -> Result<Option<Snapshot>, CompareError> {
    timeout(LOCKING_TIMEOUT, snapshot_now(pool, name)).await.unwrap_or(Err(StoreError::NoAnswer(LOCKING_TIMEOUT).into()))
}

async fn snapshot_now(pool: &Pool, name: &str) -> Result<Option<Snapshot>, CompareError> {
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
    // Locks before the snapshot is taken, because it would see a later TRUNCATE.
    for build in [&serving.build, &other.build] {
        if let Some(tables) = build_tables(&mut connection, build, &tables).await? {
            sqlx::query(&format!("LOCK TABLE {tables} IN ACCESS SHARE MODE")).execute(&mut *connection).await?;
        }
    }
    let positions = sqlx::query!(
        r#"SELECT p.build, p.status, min(c.position) AS "lowest!", max(c.position) AS "highest!"
           FROM projection p JOIN checkpoint c USING (name, build)
           WHERE name = $1 AND p.status IN ('serving', 'building') GROUP BY p.build, p.status ORDER BY p.status = 'serving' DESC"#,
        name
    )
    .fetch_all(&mut *connection)
    .await?;
    let position = positions.first().map(|first| first.lowest).unwrap_or_default();
    let same = positions.iter().map(|build| build.build.as_str()).eq([serving.build.as_str(), other.build.as_str()]);
    if !same || positions.iter().any(|build| build.lowest != position || build.highest != position) {
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
    let [serving, other] = [serving, other].map(|build| format!("{build}.\"{}\"", table.replace('"', "\"\"")));
    let same: bool = sqlx::query_scalar(
        "SELECT (SELECT array_agg(ROW(attname, atttypid, atttypmod, attcollation)::text ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped)
              IS NOT DISTINCT FROM
                (SELECT array_agg(ROW(attname, atttypid, atttypmod, attcollation)::text ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = $2::regclass AND attnum > 0 AND NOT attisdropped)",
    )
    .bind(&serving)
    .bind(&other)
    .fetch_one(&mut *connection)
    .await?;
    if !same {
        return Err(CompareError::Columns(table));
    }
    // The session may have a short timeout, but a large table takes long.
    sqlx::query("SELECT set_config('statement_timeout', $1, true)")
        .bind(format!("{}s", TABLE_TIMEOUT.as_secs()))
        .execute(&mut *connection)
        .await?;
    // Compares rows as text: so 1.0 differs from 1.00, and types without equality work too. Counts duplicates.
    let sql = format!(
        "WITH difference AS MATERIALIZED (
             SELECT entry, sum(times)::bigint AS times FROM (
                 SELECT to_json(compared.*)::text AS entry, 1 AS times FROM {serving} AS compared
                 UNION ALL
                 SELECT to_json(compared.*)::text, -1 FROM {other} AS compared
             ) AS entries GROUP BY entry HAVING sum(times) <> 0
         ), sample AS (
             SELECT entry, times FROM difference ORDER BY entry COLLATE \"C\", times DESC LIMIT $1
         )
         SELECT (SELECT count(*) FROM {serving}), (SELECT count(*) FROM {other}),
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
