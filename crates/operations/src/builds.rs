//! What an operator does to the builds of a projection, while the replicas that run it are at work or not: lets it rest, compares two
//! builds, takes a retired one into hand again, gives one up.
//!
//! All of it is asked for in the table `projection`, which the replicas look at with every heartbeat.

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

/// Lets a projection rest, or go on, with all its builds. While it rests, the replicas keep its segments and apply nothing; an automation
/// does none of its to-dos either. What is in hand is finished. Answers whether that is news.
///
/// # Errors
/// Where the database is away or the migrations are missing.
pub async fn pause(pool: &PgPool, name: &str, paused: bool) -> Result<bool, StoreError> {
    let changed = sqlx::query!("UPDATE projection SET paused = $2 WHERE name = $1 AND paused <> $2", name, paused).execute(pool).await?;
    Ok(changed.rows_affected() > 0)
}

/// Takes the retired build of a projection into hand again, from where it was left: the replicas of its version bring it up to date, and it
/// goes into service as a new one does. Answers whether there is one.
///
/// # Errors
/// Where the database is away or the migrations are missing.
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

/// Lets go of a build that was revived and is not to go into service.
///
/// # Errors
/// Where the database is away or the migrations are missing.
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

/// Gives up a build of a projection that is not in service: its rows and all that is known of it. Whoever is at work on it is fenced off.
/// Answers whether there was one.
///
/// # Errors
/// Where the database is away, or the migrations are missing; where somebody reads its tables for longer than this session may wait.
pub async fn drop_build(pool: &PgPool, name: &str, build: &str) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    // Its checkpoints first, as a batch has them: who took the build first would wait for a batch that waits for the build.
    sqlx::query_scalar!("SELECT position FROM checkpoint WHERE name = $1 AND build = $2 ORDER BY segment FOR UPDATE", name, build)
        .fetch_all(&mut *transaction)
        .await?;
    // With its checkpoints, for which this has waited until the batch in hand was written: nobody writes a row after that.
    let dropped = sqlx::query_scalar!(
        "DELETE FROM projection WHERE name = $1 AND build = $2 AND status <> 'serving' AND build <> 'automation' RETURNING tables",
        name,
        build
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(tables) = dropped else { return Ok(false) };
    // Whoever began to read it while it was in service reads to the end.
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
    /// The position that every segment of both stood at.
    pub position: Position,
    /// The build in service.
    pub serving: String,
    /// The other one.
    pub other: String,
    /// Each of their tables.
    pub tables: Vec<TableDifference>,
}

impl Difference {
    /// Whether both hold the same.
    pub fn is_none(&self) -> bool {
        self.tables.iter().all(|table| table.only_serving == 0 && table.only_other == 0)
    }
}

/// A table of two builds.
#[derive(Debug, Serialize)]
pub struct TableDifference {
    /// Its name, without schema.
    pub table: String,
    /// How many rows it has in the build in service, and in the other one.
    pub rows_serving: i64,
    /// See above.
    pub rows_other: i64,
    /// How many of them only the one in service has, and how many only the other one: a row that changed is counted in both.
    pub only_serving: i64,
    /// See above.
    pub only_other: i64,
    /// Some of those, in the order of their columns, so that the two of a row that changed stand beside each other.
    pub samples: Vec<Row>,
}

/// A row that only one of two builds has.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Whether it is the one in service.
    pub serving: bool,
    /// How many times it has the row more often than the other.
    pub times: i64,
    /// The row, whole.
    pub row: Box<RawValue>,
}

/// Why two builds could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// There are not two builds that are worked on.
    #[error("there is no other build of it that is worked on")]
    NoOther,
    /// Another comparison holds them still.
    #[error("another comparison of it is going on; it ends within {0:.0} seconds")]
    Going(f64),
    /// They did not come to one position in time.
    #[error("the segments of its builds did not come to one position within {0:.0} seconds")]
    Apart(f64),
    /// The columns of a table are not the same in both.
    #[error("the table {0} has other columns in one build than in the other")]
    Columns(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CompareError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// How often it is looked whether all segments stand at one position.
const LOOK: Duration = Duration::from_millis(50);
/// The time that a table takes to be compared at the most.
const TABLE_SECONDS: u64 = 3_600;

/// Compares the build of a projection that is in service with the one that is being made, row by row, at one position of the log, with so
/// many samples of each table.
///
/// The replicas are asked to go no further than the furthest of the segments, until the others stand there too: for as long as `patience` at
/// the most, by the database's clock, whatever becomes of who asked. As soon as they do, one snapshot is taken of all tables, and
/// everything goes on while that is compared. That all stand at one position is read in the same snapshot, so nothing depends on who kept
/// to it.
///
/// # Errors
/// Where that cannot be brought about, or the database is away.
pub async fn compare(pool: &PgPool, name: &str, samples: i64, patience: Duration) -> Result<Difference, CompareError> {
    stop(pool, name, patience).await?;
    let compared = together(pool, name, patience).await;
    // Also where it failed; and where this fails too, time does it.
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

/// Asks both builds to go no further than the furthest of their segments.
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

/// Lets the builds of a projection go on before the time is up that a comparison holds them still for.
///
/// # Errors
/// Where the database is away or the migrations are missing.
pub async fn go_on(pool: &PgPool, name: &str) -> Result<(), StoreError> {
    with_timeout(async {
        sqlx::query!("UPDATE projection SET hold_at = NULL, hold_until = NULL WHERE name = $1 AND hold_at IS NOT NULL", name)
            .execute(pool)
            .await?;
        Ok(())
    })
    .await
}

/// Both builds as they were at one position.
struct Snapshot {
    connection: PooledConnection,
    position: Position,
    serving: String,
    other: String,
    tables: Vec<String>,
}

/// Waits until every segment of both stands at one position, and takes a snapshot of that.
async fn together(pool: &PgPool, name: &str, patience: Duration) -> Result<Snapshot, CompareError> {
    let until = Instant::now() + patience;
    loop {
        // Who did not know of it yet may have gone beyond where they were to stop: then that is where they meet. All know of it with their
        // next heartbeat, so nobody goes beyond that for long.
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

/// A transaction that sees both builds, where all their segments stand at one position in it.
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
    // Locked before the snapshot is taken: a TRUNCATE would show in it otherwise.
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
    // A session may be bounded to what is quick; to go through a large table is not.
    sqlx::query("SELECT set_config('statement_timeout', $1, true)").bind(format!("{TABLE_SECONDS}s")).execute(&mut *connection).await?;
    // As text, each row once for each time that it is there: so that what merely counts as equal, as 1.0 and 1.00 do, is told apart, and
    // so that no type is left out that has no equality.
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
