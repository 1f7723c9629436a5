//! Making a projection known, making it anew, and putting what was made into service.

use std::time::Duration;

use event_store::{EventStore, LogEvent, Position, StoreError, connection::with_timeout};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use crate::{
    projection::{Kind, Projection},
    replica::Replica,
};

/// Makes a projection known with this replica of it, and asks for it to be made anew where the one in service is of an older version.
pub(crate) async fn register<P: Projection>(pool: &PgPool, replica: &Replica) -> Result<(), StoreError> {
    let build = match P::KIND {
        Kind::ReadModel => "projection_a",
        Kind::Automation => "automation",
    };
    let tables: Vec<String> = P::TABLES.iter().map(|table| (*table).to_owned()).collect();
    let mut transaction = pool.begin().await?;
    sqlx::query!(
        "INSERT INTO projection (name, build, version, status, tables, segments)
         SELECT $1, $2, $3, 'serving', $4, $5
         WHERE NOT EXISTS (SELECT FROM projection WHERE name = $1 AND status = 'serving')
         ON CONFLICT DO NOTHING",
        P::NAME,
        build,
        P::VERSION,
        &tables,
        P::SEGMENTS
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "INSERT INTO checkpoint (name, build, segment, segments)
         SELECT p.name, p.build, s, p.segments FROM projection p, generate_series(0, p.segments - 1) AS s
         WHERE p.name = $1 AND p.status = 'serving'
           AND NOT EXISTS (SELECT FROM checkpoint c WHERE c.name = p.name AND c.build = p.build)
         ON CONFLICT DO NOTHING",
        P::NAME
    )
    .execute(&mut *transaction)
    .await?;
    // An automation is never made anew: a newer release goes on with its state.
    if P::KIND == Kind::Automation {
        sqlx::query!("UPDATE projection SET version = $2 WHERE name = $1 AND version < $2", P::NAME, P::VERSION)
            .execute(&mut *transaction)
            .await?;
    }
    // With the number of segments, who wants it so: what nobody alive wants is not kept to.
    sqlx::query!(
        "INSERT INTO replica (name, id, version, segments, alive_until, parks)
         VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5), true)
         ON CONFLICT (name, id) DO UPDATE SET alive_until = excluded.alive_until",
        P::NAME,
        replica.id,
        P::VERSION,
        P::SEGMENTS,
        replica.lease.as_secs_f64()
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "UPDATE projection SET segments = $3, tables = $4 WHERE name = $1 AND version = $2 AND (segments, tables) IS DISTINCT FROM ($3, $4)",
        P::NAME,
        P::VERSION,
        P::SEGMENTS,
        &tables
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!("DELETE FROM replica WHERE name = $1 AND alive_until < clock_timestamp() - interval '1 hour'", P::NAME)
        .execute(&mut *transaction)
        .await?;
    let serving = sqlx::query_scalar!("SELECT version FROM projection WHERE name = $1 AND status = 'serving'", P::NAME)
        .fetch_optional(&mut *transaction)
        .await?;
    transaction.commit().await?;
    if let Some(serving) = serving.filter(|version| *version > P::VERSION) {
        tracing::warn!(
            projection = P::NAME,
            version = P::VERSION,
            serving,
            "what is in service is a newer release's, which alone works it: start that, or go back with `cartctl projections switch --back`"
        );
    }
    if P::KIND == Kind::ReadModel && serving.is_some_and(|version| version < P::VERSION) {
        rebuild::<P>(pool).await?;
    }
    Ok(())
}

/// Whether a projection is known: it has a build in service, however far that has come.
///
/// # Errors
/// Where the database is away or the migrations are missing.
pub(crate) async fn registered<E: LogEvent>(store: &EventStore<E>, name: &str) -> Result<bool, StoreError> {
    with_timeout(async {
        let mut connection = store.connection().await?;
        let known = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM projection JOIN checkpoint USING (name, build) WHERE name = $1 AND status = 'serving') AS "known!""#,
            name
        )
        .fetch_one(&mut *connection)
        .await?;
        connection.done();
        Ok(known)
    })
    .await
}

/// When a new build goes into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// By itself, when it has come as far as the one that is.
    WhenReady,
    /// Not before [`switch_when_ready`] is called.
    WhenAsked,
}

/// Asks for a read model to be made anew beside the one in service; the replicas that run it do so, and switch when the new one has come
/// as far. Where that is already under way, nothing is asked; nor where a newer release that is alive makes its own version: that one will
/// replace what would be made.
///
/// # Errors
/// Where the database is away or the migrations are missing; where it is an automation, which is never made anew.
pub async fn rebuild<P: Projection>(pool: &PgPool) -> Result<(), StoreError> {
    let tables: Vec<String> = P::TABLES.iter().map(|table| (*table).to_owned()).collect();
    make_anew(pool, P::NAME, Some((P::VERSION, P::SEGMENTS, tables)), Switch::WhenReady).await
}

/// As [`rebuild`], of a projection by its name: as the release that runs it made the one in service.
///
/// # Errors
/// As [`rebuild`].
pub async fn rebuild_named(pool: &PgPool, name: &str, switch: Switch) -> Result<(), StoreError> {
    make_anew(pool, name, None, switch).await
}

async fn make_anew(pool: &PgPool, name: &str, of: Option<(i32, i32, Vec<String>)>, switch: Switch) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    let Some(serving) = sqlx::query!(
        "SELECT build, version, segments, tables, paused FROM projection WHERE name = $1 AND status = 'serving' FOR NO KEY UPDATE",
        name
    )
    .fetch_optional(&mut *transaction)
    .await?
    else {
        return Ok(()); // Never made yet, so there is nothing to make anew.
    };
    if serving.build == "automation" {
        return Err(StoreError::Schema(format!("{name} is an automation: made anew, it would do again what it did")));
    }
    let (version, segments, tables) = of.unwrap_or((serving.version, serving.segments, serving.tables));
    let other = if serving.build == "projection_a" { "projection_b" } else { "projection_a" };
    let under_way = sqlx::query_scalar!(
        r#"SELECT true AS "yes!" FROM projection p
           WHERE name = $1 AND build = $2 AND status = 'building' AND (version = $3 OR version > $3 AND EXISTS (
               SELECT FROM replica r WHERE r.name = p.name AND r.version = p.version AND r.alive_until > clock_timestamp()))"#,
        name,
        other,
        version
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if under_way.is_some() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO projection (name, build, version, status, tables, segments, switch_when_ready, paused)
         VALUES ($1, $2, $3, 'building', $4, $5, $6, $7)
         ON CONFLICT (name, build) DO UPDATE
         SET version = $3, status = 'building', tables = $4, segments = $5, switch_when_ready = $6, paused = $7,
             switch_with_parked = false, stop_at = NULL, stop_until = NULL, started_at = clock_timestamp()",
        name,
        other,
        version,
        &tables,
        segments,
        switch == Switch::WhenReady,
        serving.paused
    )
    .execute(&mut *transaction)
    .await?;
    // Whoever began to read it while it was in service reads to the end.
    sqlx::query!(r#"SELECT pg_advisory_xact_lock(projection_lock($1, $2)) AS "locked!: ()""#, name, other)
        .fetch_one(&mut *transaction)
        .await?;
    // New rows, not the old ones: who was about to take one of those finds it gone.
    sqlx::query!("DELETE FROM checkpoint WHERE name = $1 AND build = $2", name, other).execute(&mut *transaction).await?;
    // After those, for who held one of them may have parked a key until then.
    sqlx::query!("DELETE FROM parked WHERE name = $1 AND build = $2", name, other).execute(&mut *transaction).await?;
    sqlx::query!(
        "INSERT INTO checkpoint (name, build, segment, segments) SELECT $1, $2, s, $3 FROM generate_series(0, $3::integer - 1) AS s",
        name,
        other,
        segments
    )
    .execute(&mut *transaction)
    .await?;
    for table in &tables {
        // Both names are this build's own.
        sqlx::query(&format!("TRUNCATE {other}.{table}")).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    tracing::info!(projection = name, build = other, "making the projection anew beside the one in service");
    Ok(())
}

/// Lets the build of a projection that is being made go into service when it has come as far as the one that is. Answers whether there is one.
///
/// # Errors
/// Where the database is away or the migrations are missing.
pub async fn switch_when_ready(pool: &PgPool, name: &str) -> Result<bool, StoreError> {
    let asked =
        sqlx::query!("UPDATE projection SET switch_when_ready = true WHERE name = $1 AND status = 'building'", name).execute(pool).await?;
    Ok(asked.rows_affected() > 0)
}

/// As [`switch_when_ready`], also with keys parked that the one in service has not.
///
/// # Errors
/// As [`switch_when_ready`].
pub async fn switch_with_parked(pool: &PgPool, name: &str) -> Result<bool, StoreError> {
    let asked = sqlx::query!(
        "UPDATE projection SET switch_when_ready = true, switch_with_parked = true WHERE name = $1 AND status = 'building'",
        name
    )
    .execute(pool)
    .await?;
    Ok(asked.rows_affected() > 0)
}

/// What putting a new build into service came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switched {
    /// It is in service.
    Done,
    /// There is none, or it has not come as far.
    NotYet,
    /// It has keys parked that the one in service has not, and no operator has said that it may go into service with them.
    Parked,
}

/// Puts a new build into service where it has come as far as the one that is, in one transaction. That one is held still for it, for as long
/// as the new one takes to come to where it stopped, and for a second at the most.
pub(crate) async fn switch(pool: &PgPool, name: &str, version: i32, types: &[String]) -> Result<Switched, StoreError> {
    let mut transaction = pool.begin().await?;
    sqlx::query!("SELECT set_config('lock_timeout', '1s', true)").fetch_one(&mut *transaction).await?;
    // Not more than is changed: who parks a key refers to these rows, and has checkpoints locked that are waited for here.
    let builds = sqlx::query!(
        r#"SELECT build, version, status, switch_when_ready, paused OR coalesce(stop_until > clock_timestamp(), false) AS "held!"
           FROM projection WHERE name = $1 FOR NO KEY UPDATE"#,
        name
    )
    .fetch_all(&mut *transaction)
    .await?;
    let serving = builds.iter().find(|build| build.status == "serving");
    let made = builds.iter().find(|build| build.status == "building" && build.version == version && build.switch_when_ready && !build.held);
    let (Some(serving), Some(made)) = (serving, made) else { return Ok(Switched::NotYet) };
    // Before anybody is held still for it, and then for sure.
    if parked_anew(&mut transaction, name, &serving.build, &made.build).await? {
        return Ok(Switched::Parked);
    }
    let positions = sqlx::query_scalar!(
        "SELECT position FROM checkpoint WHERE name = $1 AND build = $2 ORDER BY segment FOR UPDATE",
        name,
        serving.build
    )
    .fetch_all(&mut *transaction)
    .await?;
    let reached = Position(positions.into_iter().max().unwrap_or_default());
    let until = Instant::now() + Duration::from_secs(1);
    while !as_far(&mut transaction, name, &made.build, reached, types).await? {
        if Instant::now() >= until {
            return Ok(Switched::NotYet);
        }
        // The replicas are at work on it meanwhile.
        sleep(Duration::from_millis(5)).await;
    }
    if parked_anew(&mut transaction, name, &serving.build, &made.build).await? {
        return Ok(Switched::Parked);
    }
    // And who was at work on it is fenced off, so that nobody knows of it what the new one has not applied yet.
    sqlx::query!("UPDATE checkpoint SET owner = NULL WHERE name = $1 AND build = $2", name, serving.build)
        .execute(&mut *transaction)
        .await?;
    sqlx::query!("UPDATE projection SET status = 'retired' WHERE name = $1 AND build = $2", name, serving.build)
        .execute(&mut *transaction)
        .await?;
    sqlx::query!("UPDATE projection SET status = 'serving' WHERE name = $1 AND build = $2", name, made.build)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    tracing::info!(projection = name, build = made.build, position = %reached, "the new build is in service");
    Ok(Switched::Done)
}

/// Whether each segment of a build has applied all that there is up to a position.
async fn as_far(
    transaction: &mut PgConnection,
    name: &str,
    build: &str,
    position: Position,
    types: &[String],
) -> Result<bool, sqlx::Error> {
    // OFFSET 0: once a segment, from its position on. As a join, which it becomes where the log was last analysed when it was empty, it would
    // begin at the log's first event.
    sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (
               SELECT FROM checkpoint c WHERE c.name = $1 AND c.build = $2 AND c.position < $3
                  AND EXISTS (SELECT FROM event e WHERE e.event_id > c.position AND e.event_id <= $3 AND e.event_type = ANY ($4) OFFSET 0)
           ) AS "yes!""#,
        name,
        build,
        position.0,
        types
    )
    .fetch_one(transaction)
    .await
}

/// Whether a build has keys parked that the one in service has not, and may not go into service with them.
async fn parked_anew(transaction: &mut PgConnection, name: &str, serving: &str, made: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM parked k JOIN projection p USING (name, build)
               WHERE k.name = $1 AND k.build = $3 AND NOT p.switch_with_parked
                 AND NOT EXISTS (SELECT FROM parked s WHERE s.name = $1 AND s.build = $2 AND s.key = k.key)
           ) AS "yes!""#,
        name,
        serving,
        made
    )
    .fetch_one(transaction)
    .await
}
