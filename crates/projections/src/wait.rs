//! Waiting until a projection has applied the log up to a position.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use event_store::{EventStore, LogEvent, Position, StoreError, connection::with_timeout, record_query_wait};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use crate::{checkpoint_cache::Complete, lease::OwnedSegments, replica::Replicas, segment::segment_of};

/// The outcome of waiting for a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The serving build has reached the position.
    Reached,
    /// The time is up; the serving build has only reached this position.
    TimedOut(Position),
    /// This key is parked, so the position is not reached before a retry.
    Parked(Uuid),
}

/// Waits as [`Projections::wait`](crate::Projections::wait) does. Returns also the checkpoint on which the outcome rests: a server whose
/// checkpoint is lower is behind.
pub(crate) async fn wait<E: LogEvent>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &'static str,
    key: Option<Uuid>,
    position: Position,
    timeout: Duration,
) -> Result<(Wait, Position), StoreError> {
    let started = Instant::now();
    let outcome = poll(store, replicas, name, key, position, timeout).await;
    let label = match &outcome {
        Ok((Wait::Reached, _)) => "reached",
        Ok((Wait::TimedOut(_), _)) => "timed_out",
        Ok((Wait::Parked(_), _)) => "parked",
        Err(_) => "fault",
    };
    record_query_wait(name, started.elapsed(), label);
    outcome
}

async fn poll<E: LogEvent>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &str,
    key: Option<Uuid>,
    position: Position,
    timeout: Duration,
) -> Result<(Wait, Position), StoreError> {
    let until = Instant::now() + timeout;
    // This process knows the positions of its own segments without the database.
    let mut replica = replicas.find(name);
    let mut owned = replica.as_ref().map(|replica| replica.owned());
    let mut pause = Duration::from_millis(2);
    let mut asked = false;
    loop {
        let known = owned.as_mut().and_then(|owned| in_process(&owned.borrow_and_update(), key));
        let at = match known {
            Some(at) => at,
            None => stored(store, replicas, name, key, if asked { pause / 2 } else { Duration::ZERO }).await?,
        };
        if at.up_to >= position {
            return Ok((Wait::Reached, at.stored));
        }
        if !std::mem::replace(&mut asked, true) {
            if let Some(replica) = replica.take() {
                replica.begin_wait();
            }
            if let Some(key) = parked(store, name, key).await? {
                return Ok((Wait::Parked(key), at.stored));
            }
        }
        if Instant::now() >= until {
            return Ok((Wait::TimedOut(at.up_to), at.stored));
        }
        match &mut owned {
            Some(owned) if known.is_some() => {
                // Closed if the replica ended. Then another one owns the segment.
                if let Ok(Err(_)) = timeout_at(until, owned.changed()).await {
                    sleep(pause).await;
                }
            }
            _ => {
                sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        }
    }
}

/// Returns the position of the serving build for a key, or for all keys, if this process owns the segments concerned.
fn in_process(owned: &BTreeMap<&'static str, OwnedSegments>, key: Option<Uuid>) -> Option<Complete> {
    let owned = owned.values().find(|owned| owned.serving)?;
    match key {
        Some(key) => owned.positions.get(&segment_of(key)).map(|at| Complete { stored: at.stored, up_to: at.applied }),
        None if owned.is_all() => lowest(owned.positions.values().map(|at| Complete { stored: at.stored, up_to: at.applied })),
        None => None,
    }
}

/// Returns how far all of these segments are.
fn lowest(segments: impl Iterator<Item = Complete>) -> Option<Complete> {
    segments.reduce(|one, other| Complete { stored: one.stored.min(other.stored), up_to: one.up_to.min(other.up_to) })
}

/// How many positions to search for the next event that the projection takes: about as many as are appended between two heartbeats.
const SEARCHED: i64 = 1_000;

/// Returns the position of the serving build by the table, at most `age` old.
async fn stored<E: LogEvent>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &str,
    key: Option<Uuid>,
    age: Duration,
) -> Result<Complete, StoreError> {
    let cache = replicas.checkpoint_cache(name);
    let asked = Instant::now();
    let reading = async {
        let mut cached = cache.segments.lock().await;
        if let Some((at, positions)) = cached.as_ref()
            && *at + age >= asked
        {
            return Ok(positions.clone());
        }
        let permit = store.read_permit().await?;
        let at = Instant::now();
        let positions: Arc<[Complete]> = read_positions(store, replicas, name).await?.into();
        drop(permit);
        *cached = Some((at, positions.clone()));
        Ok(positions)
    };
    let positions = timeout(store.settings().command_timeout, reading).await.unwrap_or(Err(StoreError::Busy))?;
    let position = match key {
        Some(key) => usize::try_from(segment_of(key)).ok().and_then(|segment| positions.get(segment)).copied(),
        None => lowest(positions.iter().copied()),
    };
    Ok(position.unwrap_or(Complete { stored: Position::START, up_to: Position::START }))
}

/// Reads the position of each segment of the serving build. Events that are not the projection's move a checkpoint only with the heartbeat,
/// so the query skips them. It knows the projection's events only if this process runs the serving version.
async fn read_positions<E: LogEvent>(store: &EventStore<E>, replicas: &Replicas, name: &str) -> Result<Vec<Complete>, StoreError> {
    let replica = replicas.find(name);
    with_timeout(async {
        let mut connection = store.connection().await?;
        let positions = sqlx::query_as!(
            Complete,
            r#"WITH stored AS (
                   -- A build that is ahead of the log has reached nothing.
                   SELECT c.segment, CASE WHEN p.ahead_of IS NULL THEN c.position ELSE 0 END AS position,
                          CASE WHEN p.ahead_of IS NULL THEN p.version END AS version
                   FROM checkpoint c JOIN projection p USING (name, build) WHERE p.name = $1 AND p.status = 'serving'
               ), complete AS (
                   SELECT s.position, coalesce(
                              (SELECT min(e.event_id) - 1 FROM event e
                               WHERE e.event_id > s.position AND e.event_id <= s.position + $4 AND e.event_type = ANY ($3)),
                              least(s.position + $4, (SELECT max(event_id) FROM event))) AS up_to
                   FROM (SELECT DISTINCT position FROM stored WHERE version = $2) s
               )
               SELECT s.position AS "stored!: Position", greatest(s.position, c.up_to) AS "up_to!: Position" FROM stored s LEFT JOIN complete c USING (position)
               ORDER BY s.segment"#,
            name,
            replica.as_ref().map(|replica| replica.version),
            replica.as_ref().map(|replica| &*replica.types),
            SEARCHED
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        Ok(positions)
    })
    .await
}

/// Returns a parked key of the serving build: this key, or any if `key` is `None`.
async fn parked<E: LogEvent>(store: &EventStore<E>, name: &str, key: Option<Uuid>) -> Result<Option<Uuid>, StoreError> {
    let permit = store.read_permit().await?;
    let parked = with_timeout(async {
        let mut connection = store.connection().await?;
        let parked = sqlx::query_scalar!(
            "SELECT k.key FROM parked_key k JOIN projection p USING (name, build)
             WHERE p.name = $1 AND p.status = 'serving' AND ($2::uuid IS NULL OR k.key = $2) ORDER BY k.parked_at LIMIT 1",
            name,
            key
        )
        .fetch_optional(&mut *connection)
        .await?;
        connection.done();
        Ok(parked)
    })
    .await;
    drop(permit);
    parked
}
