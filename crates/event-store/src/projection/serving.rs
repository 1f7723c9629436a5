//! Reading the build that is in service, and waiting until it has come far enough.

use std::{collections::BTreeMap, time::Duration};

use opentelemetry::KeyValue;
use sqlx::{Executor as _, PgConnection, Row as _};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::segment::{hash, segment_of};
use crate::{
    EventStore, LogEvent, Position, StoreError,
    lease::Held,
    metrics::METRICS,
    store::{Lent, in_time},
};

/// Reads the build of a projection that is in service: its tables are found without a schema, and are not emptied meanwhile. What is read
/// is about a key, or where none is given about any: where that is parked, it is not read.
///
/// # Errors
/// Where the database is away, busy or does not answer, or the projection was never run; where a key is parked.
pub async fn serving<E: LogEvent, T>(
    store: &EventStore<E>,
    name: &'static str,
    key: Option<Uuid>,
    read: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, StoreError> {
    let turn = store.turn().await?;
    let begin = begin(name, key);
    let answer = in_time(async {
        let mut connection = store.lend().await?;
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
        let _ = in_time(end(connection)).await;
        drop(turn);
    });
    answer.map_err(|key| {
        METRICS.parked_queries.add(1, &[KeyValue::new("query", name)]);
        StoreError::Parked { projection: name.to_owned(), key }
    })
}

async fn end(mut connection: Lent) -> Result<(), sqlx::Error> {
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
pub enum Waited {
    /// What was waited for is there to read.
    There,
    /// The time is up, and the projection only so far.
    Behind(Position),
    /// Not before a key that is parked is retried.
    Parked(Uuid),
}

/// Waits until the build of a projection that is in service has applied the log up to a position: for a key, or where there is none for
/// every key, whichever replicas have them in hand. Where a key is parked that this is about, it does not wait; that it is there does not
/// say that none is.
///
/// # Errors
/// Where the database is away or busy.
pub async fn wait<E: LogEvent>(
    store: &EventStore<E>,
    name: &'static str,
    key: Option<Uuid>,
    position: Position,
    timeout: Duration,
) -> Result<Waited, StoreError> {
    let started = Instant::now();
    let outcome = waited(store, name, key, position, timeout).await;
    METRICS.waited(name, started.elapsed(), &outcome);
    outcome
}

async fn waited<E: LogEvent>(
    store: &EventStore<E>,
    name: &str,
    key: Option<Uuid>,
    position: Position,
    timeout: Duration,
) -> Result<Waited, StoreError> {
    let until = Instant::now() + timeout;
    // What this process has in hand it knows without asking.
    let mut held = store.replicas().find(name).map(|replica| replica.held());
    let mut pause = Duration::from_millis(2);
    let mut asked = false;
    loop {
        let known = held.as_mut().and_then(|held| in_hand(&held.borrow_and_update(), key));
        let at = match known {
            Some(at) => at,
            None => stored(store, name, key).await?,
        };
        if at >= position {
            return Ok(Waited::There);
        }
        if !std::mem::replace(&mut asked, true)
            && let Some(key) = parked(store, name, key).await?
        {
            return Ok(Waited::Parked(key));
        }
        if Instant::now() >= until {
            return Ok(Waited::Behind(at));
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

async fn stored<E: LogEvent>(store: &EventStore<E>, name: &str, key: Option<Uuid>) -> Result<Position, StoreError> {
    let turn = store.turn().await?;
    let position = in_time(async {
        let mut connection = store.lend().await?;
        let position = sqlx::query_scalar!(
            "SELECT min(c.position) FROM checkpoint c JOIN projection p USING (name, build)
         WHERE p.name = $1 AND p.status = 'serving' AND ($2::bigint IS NULL OR c.segment = $2 % c.segments)",
            name,
            key.map(|key| i64::from(hash(key)))
        )
        .fetch_one(&mut *connection)
        .await?;
        connection.done();
        Ok(position)
    })
    .await?;
    drop(turn);
    Ok(position.map_or(Position::START, Position))
}

/// A key that is parked in the build in service: this one, or where none is given any.
async fn parked<E: LogEvent>(store: &EventStore<E>, name: &str, key: Option<Uuid>) -> Result<Option<Uuid>, StoreError> {
    let turn = store.turn().await?;
    let parked = in_time(async {
        let mut connection = store.lend().await?;
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
    drop(turn);
    parked
}
