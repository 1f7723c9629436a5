//! Registering a projection, and switching to a rebuilt build.

use std::time::Duration;

use event_store::{Pool, Position, StoreError};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use crate::{
    projection::{Kind, Projection},
    rebuild::{lock_builds, rebuild},
    replica::Replica,
    segment::SEGMENTS,
};

/// Registers a projection and this replica. Starts a rebuild if the serving build has an older version.
pub(crate) async fn register<P: Projection>(pool: &Pool, replica: &Replica) -> Result<(), StoreError> {
    let build = match P::KIND {
        Kind::ReadModel => "projection_a",
        Kind::Automation => "automation",
    };
    let tables: Vec<String> = P::TABLES.iter().map(|table| (*table).to_owned()).collect();
    let mut transaction = pool.begin().await?;
    sqlx::query!(
        "INSERT INTO projection (name, build, version, status, tables)
         SELECT $1, $2, $3, 'serving', $4
         WHERE NOT EXISTS (SELECT FROM projection WHERE name = $1 AND status = 'serving')
         ON CONFLICT DO NOTHING",
        P::NAME,
        build,
        P::VERSION,
        &tables
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "INSERT INTO checkpoint (name, build, segment)
         SELECT p.name, p.build, s FROM projection p, generate_series(0, $2::integer - 1) AS s
         WHERE p.name = $1 AND p.status = 'serving'
           AND NOT EXISTS (SELECT FROM checkpoint c WHERE c.name = p.name AND c.build = p.build)
         ON CONFLICT DO NOTHING",
        P::NAME,
        SEGMENTS
    )
    .execute(&mut *transaction)
    .await?;
    // The newer release of an automation continues with its state.
    if P::KIND == Kind::Automation {
        sqlx::query!("UPDATE projection SET version = $2 WHERE name = $1 AND version < $2", P::NAME, P::VERSION)
            .execute(&mut *transaction)
            .await?;
    }
    sqlx::query!(
        "INSERT INTO replica (name, id, version, beats, lease) VALUES ($1, $2, $3, 0, make_interval(secs => $4)) ON CONFLICT DO NOTHING",
        P::NAME,
        replica.id,
        P::VERSION,
        replica.lease.as_secs_f64()
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "UPDATE projection SET tables = $3 WHERE name = $1 AND version = $2 AND tables IS DISTINCT FROM $3",
        P::NAME,
        P::VERSION,
        &tables
    )
    .execute(&mut *transaction)
    .await?;
    let serving = sqlx::query!(
        r#"SELECT version, (SELECT count(*) FROM checkpoint c WHERE c.name = p.name AND c.build = p.build) AS "segments!"
           FROM projection p WHERE name = $1 AND status = 'serving'"#,
        P::NAME
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if let Some(serving) = serving.as_ref().filter(|serving| serving.segments != i64::from(SEGMENTS)) {
        return Err(StoreError::Schema(format!(
            "the projection {} has {} segments, but this release works with {SEGMENTS}. Run the release that created it",
            P::NAME,
            serving.segments
        )));
    }
    transaction.commit().await?;
    let serving = serving.map(|serving| serving.version);
    if let Some(serving) = serving.filter(|version| *version > P::VERSION) {
        // Only replicas of the newer version work its build.
        tracing::warn!(
            projection = P::NAME,
            version = P::VERSION,
            serving,
            help = "start the newer release, or run `cartctl projections switch --back`",
            "a newer version serves"
        );
    }
    if P::KIND == Kind::ReadModel && serving.is_some_and(|version| version < P::VERSION) {
        rebuild::<P>(pool).await?;
    }
    Ok(())
}

/// The outcome of switching to a rebuilt build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switched {
    /// The build serves.
    Done,
    /// There is no such build, or it has not caught up.
    NotYet,
    /// The build has parked keys that the serving one does not have, and no operator accepted that.
    Parked,
}

/// Switches to the rebuilt build in one transaction, if it has caught up with the serving one. Stops the serving build for that, until the
/// other reaches its position, for one second at most.
pub(crate) async fn switch(pool: &Pool, name: &str, version: i32, types: &[String]) -> Result<Switched, StoreError> {
    let mut transaction = pool.begin().await?;
    sqlx::query!("SELECT set_config('lock_timeout', '1s', true)").fetch_one(&mut *transaction).await?;
    lock_builds(&mut transaction, name).await?;
    let builds = sqlx::query!(
        r#"SELECT build, version, status, switch_when_ready, paused OR ahead_of IS NOT NULL AND status = 'building' OR is_held(hold_until) AS "held!",
                  ahead_of, (SELECT coalesce(max(event_id), 0) FROM event) AS "head!"
           FROM projection WHERE name = $1"#,
        name
    )
    .fetch_all(&mut *transaction)
    .await?;
    let serving = builds.iter().find(|build| build.status == "serving");
    let new = builds.iter().find(|build| build.status == "building" && build.version == version && build.switch_when_ready && !build.held);
    let (Some(serving), Some(new)) = (serving, new) else { return Ok(Switched::NotYet) };
    // A first look, before the serving build is stopped. The second one decides.
    if has_newly_parked(&mut transaction, name, &serving.build, &new.build).await? {
        return Ok(Switched::Parked);
    }
    let positions = sqlx::query_scalar!(
        "SELECT position FROM checkpoint WHERE name = $1 AND build = $2 ORDER BY segment FOR UPDATE",
        name,
        serving.build
    )
    .fetch_all(&mut *transaction)
    .await?;
    let reached = match serving.ahead_of {
        Some(_) => Position(serving.head),
        None => Position(positions.into_iter().max().unwrap_or_default()),
    };
    let until = Instant::now() + Duration::from_secs(1);
    while !has_applied(&mut transaction, name, &new.build, reached, types).await? {
        if Instant::now() >= until {
            return Ok(Switched::NotYet);
        }
        // Its replicas are catching up meanwhile.
        sleep(Duration::from_millis(5)).await;
    }
    if has_newly_parked(&mut transaction, name, &serving.build, &new.build).await? {
        return Ok(Switched::Parked);
    }
    // The owners of the old build lose their segments, so they cannot report positions that the new build has not reached.
    sqlx::query!("UPDATE checkpoint SET owner = NULL WHERE name = $1 AND build = $2", name, serving.build)
        .execute(&mut *transaction)
        .await?;
    sqlx::query!("UPDATE projection SET status = 'retired' WHERE name = $1 AND build = $2", name, serving.build)
        .execute(&mut *transaction)
        .await?;
    sqlx::query!("UPDATE projection SET status = 'serving' WHERE name = $1 AND build = $2", name, new.build)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    tracing::info!(projection = name, build = new.build, position = %reached, "switched to the new build");
    Ok(Switched::Done)
}

/// Returns whether every segment of a build has applied the log up to a position.
async fn has_applied(
    transaction: &mut PgConnection,
    name: &str,
    build: &str,
    position: Position,
    types: &[String],
) -> Result<bool, sqlx::Error> {
    // OFFSET 0 keeps the subquery per segment, from its position on. As a join it may read the log from its first event if statistics are old.
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

/// Returns whether a build has parked keys that the serving one does not have, and that no operator accepted.
async fn has_newly_parked(transaction: &mut PgConnection, name: &str, serving: &str, new: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM parked_key k JOIN projection p USING (name, build)
               WHERE k.name = $1 AND k.build = $3 AND NOT p.switch_with_parked
                 AND NOT EXISTS (SELECT FROM parked_key s WHERE s.name = $1 AND s.build = $2 AND s.key = k.key)
           ) AS "yes!""#,
        name,
        serving,
        new
    )
    .fetch_one(transaction)
    .await
}
