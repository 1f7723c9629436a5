//! Starting a rebuild: of a read model beside its serving build, of an automation in place.

use std::time::Duration;

use event_store::{Pool, StoreError, connection::with_timeout_of};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use crate::{projection::Projection, segment::SEGMENTS, settings::RARE_TIMEOUT};

/// When a new build starts to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// As soon as it has caught up with the serving build.
    WhenReady,
    /// Not before [`switch_when_ready`] is called.
    WhenAsked,
}

/// Starts a rebuild of a read model beside the serving build. The replicas that run it fill the new build, and switch when it has caught up.
/// Does nothing if such a rebuild runs already, or if a living replica of a newer version runs its own.
///
/// # Errors
/// The database failed, a migration is missing, or the projection is an automation.
pub async fn rebuild<P: Projection>(pool: &Pool) -> Result<(), StoreError> {
    let tables: Vec<String> = P::TABLES.iter().map(|table| (*table).to_owned()).collect();
    start(pool, P::NAME, Some((P::VERSION, tables)), Switch::WhenReady).await
}

/// Starts a rebuild as [`rebuild`] does, with the version and tables of the serving build.
///
/// # Errors
/// As [`rebuild`].
pub async fn rebuild_named(pool: &Pool, name: &str, switch: Switch) -> Result<(), StoreError> {
    start(pool, name, None, switch).await
}

async fn start(pool: &Pool, name: &str, release: Option<(i32, Vec<String>)>, switch: Switch) -> Result<(), StoreError> {
    with_timeout_of(RARE_TIMEOUT, start_now(pool, name, release, switch)).await
}

async fn start_now(pool: &Pool, name: &str, release: Option<(i32, Vec<String>)>, switch: Switch) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    lock_builds(&mut transaction, name).await?;
    let Some(serving) = sqlx::query!("SELECT build, version, tables, paused FROM projection WHERE name = $1 AND status = 'serving'", name)
        .fetch_optional(&mut *transaction)
        .await?
    else {
        return Ok(()); // The projection never ran, so its first build has yet to begin.
    };
    if serving.build == "automation" {
        return Err(StoreError::Schema(format!("{name} is an automation, which has one build. Use rebuild_automation")).into());
    }
    let (version, tables) = release.unwrap_or((serving.version, serving.tables));
    let other = if serving.build == "projection_a" { "projection_b" } else { "projection_a" };
    let running = sqlx::query_scalar!(
        r#"SELECT true AS "yes!" FROM projection p
           WHERE name = $1 AND build = $2 AND status = 'building' AND (version = $3 OR version > $3 AND EXISTS (
               SELECT FROM replica r WHERE r.name = p.name AND r.version = p.version AND r.beaten_at + r.lease > clock_timestamp()))"#,
        name,
        other,
        version
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if running.is_some() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO projection (name, build, version, status, tables, switch_when_ready, paused)
         VALUES ($1, $2, $3, 'building', $4, $5, $6)
         ON CONFLICT (name, build) DO UPDATE
         SET version = $3, status = 'building', tables = $4, switch_when_ready = $5, paused = $6,
             switch_with_parked = false, hold_at = NULL, hold_until = NULL, ahead_of = NULL, started_at = clock_timestamp()",
        name,
        other,
        version,
        &tables,
        switch == Switch::WhenReady,
        serving.paused
    )
    .execute(&mut *transaction)
    .await?;
    begin_again(&mut transaction, name, other).await?;
    empty(&mut transaction, other, &tables).await?;
    transaction.commit().await?;
    tracing::info!(projection = name, build = other, version, "started a rebuild");
    Ok(())
}

/// Makes the state and the to-dos of an automation again from the log, in place: the replicas that run it begin at the log's start.
///
/// Pauses the automation until no attempt at its to-dos can run any more. Then deletes all but the failed ones. Those that were done are
/// enqueued and attempted again, and these attempts find in the log what was done.
///
/// If this call is cut off while it waits, the automation stays paused.
///
/// # Errors
/// The database failed, a migration is missing, or the projection is no automation.
pub async fn rebuild_automation(pool: &Pool, name: &str) -> Result<(), StoreError> {
    let before = sqlx::query_scalar!(
        r#"UPDATE projection p SET paused = true FROM (SELECT paused FROM projection WHERE name = $1 AND build = 'automation' FOR UPDATE) before
           WHERE p.name = $1 AND p.build = 'automation' RETURNING before.paused AS "paused!""#,
        name
    )
    .fetch_optional(pool)
    .await?;
    let Some(was_paused) = before else { return Err(StoreError::Schema(format!("{name} is no automation"))) };
    wait_for_attempts(pool, name).await?;
    let mut transaction = pool.begin().await?;
    // Deleting the to-dos of years takes longer than a statement or a transaction may usually take.
    let begun = pool.while_alive(&mut transaction, async |transaction| {
        Ok::<_, StoreError>(begin_automation_again(transaction, name, was_paused).await?)
    });
    begun.await?;
    transaction.commit().await?;
    tracing::info!(projection = name, "started the rebuild of an automation");
    Ok(())
}

async fn begin_automation_again(transaction: &mut PgConnection, name: &str, was_paused: bool) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT set_config('statement_timeout', '0', true)").fetch_one(&mut *transaction).await?;
    let tables = sqlx::query_scalar!(
        "UPDATE projection SET paused = $2, ahead_of = NULL, started_at = clock_timestamp() WHERE name = $1 AND build = 'automation'
         RETURNING tables",
        name,
        was_paused
    )
    .fetch_one(&mut *transaction)
    .await?;
    begin_again(transaction, name, "automation").await?;
    sqlx::query!("DELETE FROM todo WHERE automation = $1 AND status <> 'failed'", name).execute(&mut *transaction).await?;
    empty(transaction, "automation", &tables).await
}

/// Waits until the leases of a paused automation's to-dos are gone, or as old as they may become: then their workers are dead.
async fn wait_for_attempts(pool: &Pool, name: &str) -> Result<(), StoreError> {
    let begun = Instant::now();
    loop {
        let longest = sqlx::query_scalar!(
            r#"SELECT extract(epoch FROM max(lease_for))::float8 FROM todo WHERE automation = $1 AND lease IS NOT NULL"#,
            name
        )
        .fetch_one(pool)
        .await?;
        if longest.is_none_or(|seconds| begun.elapsed().as_secs_f64() >= seconds) {
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Locks the builds of a projection until the transaction ends, so that none of them is created anew, dropped or switched meanwhile. Always in
/// the same order, and before checkpoints: otherwise two of these transactions could deadlock.
///
/// # Errors
/// The database failed, or a migration is missing.
pub async fn lock_builds(transaction: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    // NO KEY: parking a key refers to these rows, while it locks checkpoints that this transaction waits for.
    let lock = sqlx::query!("SELECT build FROM projection WHERE name = $1 ORDER BY build FOR NO KEY UPDATE", name);
    lock.fetch_all(transaction).await.map(drop)
}

/// Empties the tables of a build. Waits for statements that read them.
async fn empty(transaction: &mut PgConnection, build: &str, tables: &[String]) -> Result<(), sqlx::Error> {
    // The names come from the database, so it quotes them.
    if let Some(tables) = build_tables(transaction, build, tables).await? {
        sqlx::query(&format!("TRUNCATE {tables}")).execute(transaction).await?;
    }
    Ok(())
}

/// Returns the tables of a build with their schema, quoted and separated by commas. `None` if it has none.
///
/// # Errors
/// The database failed, or a migration is missing.
pub async fn build_tables(connection: &mut PgConnection, build: &str, tables: &[String]) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT build_tables($1, $2)").bind(build).bind(tables).fetch_one(connection).await
}

/// Sets the checkpoints of a build to the log's start, without owners and parked keys.
async fn begin_again(transaction: &mut PgConnection, name: &str, build: &str) -> Result<(), sqlx::Error> {
    // New rows instead of updated ones: a replica that waits to acquire an old row finds it gone.
    sqlx::query!("SELECT delete_progress($1, $2)", name, build).fetch_one(&mut *transaction).await?;
    sqlx::query!(
        "INSERT INTO checkpoint (name, build, segment) SELECT $1, $2, s FROM generate_series(0, $3::integer - 1) AS s",
        name,
        build,
        SEGMENTS
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Lets a new build serve as soon as it has caught up. Returns whether there is one.
///
/// # Errors
/// The database failed, or a migration is missing.
pub async fn switch_when_ready(pool: &Pool, name: &str) -> Result<bool, StoreError> {
    let asked =
        sqlx::query!("UPDATE projection SET switch_when_ready = true WHERE name = $1 AND status = 'building'", name).execute(pool).await?;
    Ok(asked.rows_affected() > 0)
}

/// Lets a new build serve as [`switch_when_ready`] does, even if it has parked keys that the serving build does not have.
///
/// # Errors
/// As [`switch_when_ready`].
pub async fn switch_with_parked(pool: &Pool, name: &str) -> Result<bool, StoreError> {
    let asked = sqlx::query!(
        "UPDATE projection SET switch_when_ready = true, switch_with_parked = true WHERE name = $1 AND status = 'building'",
        name
    )
    .execute(pool)
    .await?;
    Ok(asked.rows_affected() > 0)
}
