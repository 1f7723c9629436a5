//! Reading the build that is in service, and waiting until it has come far enough.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use event_store::{
    EventStore, LogEvent, Position, StoreError,
    connection::{PooledConnection, with_timeout},
    record_query_wait,
};
use opentelemetry::KeyValue;
use sqlx::{Executor as _, PgConnection, Row as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use crate::{error::ProjectionError, lease::Held, metrics::METRICS, replica::Replicas, segment::segment_of};

/// Reads the build of a projection that is in service: its tables are found without a schema, and are not emptied meanwhile. What is read
/// is about a key, or where none is given about any: where that is parked, it is not read.
///
/// # Errors
/// Where the database is away, busy or does not answer, or the projection was never run; where a key is parked.
pub(crate) async fn read<E: LogEvent, T>(
    store: &EventStore<E>,
    name: &'static str,
    key: Option<Uuid>,
    read: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, ProjectionError> {
    let permit = store.read_permit().await?;
    let begin = begin(name, key);
    let answer = with_timeout(async {
        let mut connection = store.connection().await?;
        let row = sqlx::raw_sql(&begin).fetch_one(&mut *connection).await?;
        let (build, parked): (Option<String>, Option<Uuid>) = (row.try_get(0)?, row.try_get(1)?);
        let answer = match (build, parked) {
            (None, _) => return Err(sqlx::Error::Protocol(format!("the projection {name} was never run"))),
            (Some(_), Some(key)) => Err(key),
            (Some(_), None) => Ok(read(&mut connection).await?),
        };
        Ok((answer, connection))
    });
    let (answer, connection) = answer.await?;
    // Nobody need wait for it. Where it fails, the connection is closed.
    tokio::spawn(async move {
        let _ = with_timeout(end(connection)).await;
        drop(permit);
    });
    answer.map_err(|key| {
        METRICS.parked_queries.add(1, &[KeyValue::new("query", name)]);
        ProjectionError::Parked { projection: name.to_owned(), key }
    })
}

async fn end(mut connection: PooledConnection) -> Result<(), sqlx::Error> {
    connection.execute("COMMIT").await?;
    connection.done();
    Ok(())
}

/// Two statements in one round trip, so without parameters: the name is a projection's constant.
fn begin(name: &str, key: Option<Uuid>) -> String {
    let name = name.replace('\'', "''");
    let key = key.map_or_else(|| "NULL".to_owned(), |key| format!("'{key}'"));
    format!("BEGIN READ ONLY; SELECT serving, parked_key FROM public.projection_read('{name}', {key})")
}

/// What waiting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// What was waited for is there to read.
    Reached,
    /// The time is up, and the projection only so far.
    TimedOut(Position),
    /// Not before a key that is parked is retried.
    Parked(Uuid),
}

/// Waits until the build of a projection that is in service has applied the log up to a position: for a key, or where there is none for
/// every key, whichever replicas have them in hand. Where a key is parked that this is about, it does not wait; that it is there does not
/// say that none is.
///
/// # Errors
/// Where the database is away or busy.
pub(crate) async fn wait<E: LogEvent>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &'static str,
    key: Option<Uuid>,
    position: Position,
    timeout: Duration,
) -> Result<Wait, StoreError> {
    let started = Instant::now();
    let outcome = waited(store, replicas, name, key, position, timeout).await;
    let word = match outcome {
        Ok(Wait::Reached) => "there",
        Ok(Wait::TimedOut(_)) => "behind",
        Ok(Wait::Parked(_)) => "parked",
        Err(_) => "fault",
    };
    record_query_wait(name, started.elapsed(), word);
    outcome
}

async fn waited<E: LogEvent>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &str,
    key: Option<Uuid>,
    position: Position,
    timeout: Duration,
) -> Result<Wait, StoreError> {
    let until = Instant::now() + timeout;
    // What this process has in hand it knows without asking.
    let mut held = replicas.find(name).map(|replica| replica.held());
    let mut pause = Duration::from_millis(2);
    let mut asked = false;
    loop {
        let known = held.as_mut().and_then(|held| in_hand(&held.borrow_and_update(), key));
        let at = match known {
            Some(at) => at,
            None => stored(store, replicas, name, key, if asked { pause / 2 } else { Duration::ZERO }).await?,
        };
        if at >= position {
            return Ok(Wait::Reached);
        }
        if !std::mem::replace(&mut asked, true)
            && let Some(key) = parked(store, name, key).await?
        {
            return Ok(Wait::Parked(key));
        }
        if Instant::now() >= until {
            return Ok(Wait::TimedOut(at));
        }
        match &mut held {
            Some(held) if known.is_some() => {
                // Closed with the replica that held it: another has it then.
                if let Ok(Err(_)) = timeout_at(until, held.changed()).await {
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

/// How far the build in service has come for a key, or for all, where this process holds what it takes to say so.
fn in_hand(held: &BTreeMap<&'static str, Held>, key: Option<Uuid>) -> Option<Position> {
    let held = held.values().find(|held| held.serving)?;
    match key {
        Some(key) => held.positions.get(&segment_of(key, held.segments)).map(|at| at.position),
        None => held.all().then(|| held.lowest()).flatten(),
    }
}

/// So many positions are looked at for the next event that a projection takes. As many as are appended between two heartbeats, but for very
/// many.
const LOOKED_AT: i64 = 1_000;

/// How far the build in service has come by the table, as it was so long ago at the most.
async fn stored<E: LogEvent>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &str,
    key: Option<Uuid>,
    ago: Duration,
) -> Result<Position, StoreError> {
    let lately = replicas.lately(name);
    let asked = Instant::now();
    let looking = async {
        let mut known = lately.0.lock().await;
        if let Some((at, positions)) = known.as_ref()
            && *at + ago >= asked
        {
            return Ok(positions.clone());
        }
        let permit = store.read_permit().await?;
        let at = Instant::now();
        let positions: Arc<[Position]> = look(store, replicas, name).await?.into();
        drop(permit);
        *known = Some((at, positions.clone()));
        Ok(positions)
    };
    let positions = timeout(store.settings().command_timeout, looking).await.unwrap_or(Err(StoreError::Busy))?;
    let position = match key {
        Some(key) => usize::try_from(segment_of(key, positions.len().try_into().unwrap_or(i32::MAX))).ok().and_then(|of| positions.get(of)),
        None => positions.iter().min(),
    };
    Ok(position.copied().unwrap_or(Position::START))
}

/// Up to where there is nothing left to apply in each segment of the build in service. Its holder writes down with its heartbeat only what is
/// none of the projection's; so that is looked for, by the events that this process' replica takes, where it is of the version in service.
async fn look<E: LogEvent>(store: &EventStore<E>, replicas: &Replicas, name: &str) -> Result<Vec<Position>, StoreError> {
    let replica = replicas.find(name);
    with_timeout(async {
        let mut connection = store.connection().await?;
        let positions = sqlx::query_scalar!(
            r#"WITH stands AS (
                   SELECT c.segment, c.position, p.version FROM checkpoint c JOIN projection p USING (name, build)
                   WHERE p.name = $1 AND p.status = 'serving'
               ), complete AS (
                   SELECT s.position, coalesce(
                              (SELECT min(e.event_id) - 1 FROM event e
                               WHERE e.event_id > s.position AND e.event_id <= s.position + $4 AND e.event_type = ANY ($3)),
                              least(s.position + $4, (SELECT max(event_id) FROM event))) AS up_to
                   FROM (SELECT DISTINCT position FROM stands WHERE version = $2) s
               )
               SELECT greatest(s.position, c.up_to) AS "position!: Position" FROM stands s LEFT JOIN complete c USING (position)
               ORDER BY s.segment"#,
            name,
            replica.as_ref().map(|replica| replica.version),
            replica.as_ref().map(|replica| &*replica.types),
            LOOKED_AT
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        Ok(positions)
    })
    .await
}

/// A key that is parked in the build in service: this one, or where none is given any.
async fn parked<E: LogEvent>(store: &EventStore<E>, name: &str, key: Option<Uuid>) -> Result<Option<Uuid>, StoreError> {
    let permit = store.read_permit().await?;
    let parked = with_timeout(async {
        let mut connection = store.connection().await?;
        let parked = sqlx::query_scalar!(
            "SELECT k.key FROM parked k JOIN projection p USING (name, build)
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
