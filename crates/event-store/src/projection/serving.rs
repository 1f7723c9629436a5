//! Reading the build that is in service, and waiting until it has come far enough.

use std::{collections::BTreeMap, time::Duration};

use sqlx::PgConnection;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::segment::{hash, segment_of};
use crate::{EventStore, LogEvent, Position, StoreError, lease::Held, metrics::METRICS, store::in_time};

/// Reads the build of a projection that is in service: its tables are found without a schema.
///
/// # Errors
/// Where the database is away, busy or does not answer, or the projection was never run.
pub async fn serving<E: LogEvent, T>(
    store: &EventStore<E>,
    name: &str,
    read: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, StoreError> {
    let turn = store.turn().await?;
    let answer = in_time(async {
        let mut connection = store.lend().await?;
        // For the session: who reads another build next says so first, and nobody else looks for tables without a schema outside public
        // but in a transaction that has set its own path.
        sqlx::query_scalar!(
            "SELECT set_config('search_path', build || ', public', false) FROM projection WHERE name = $1 AND status = 'serving'",
            name
        )
        .fetch_optional(&mut *connection)
        .await?
        .ok_or_else(|| sqlx::Error::Protocol(format!("the projection {name} was never run")))?;
        let answer = read(&mut connection).await?;
        connection.done();
        Ok(answer)
    });
    let answer = answer.await;
    drop(turn);
    answer
}

/// What waiting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for is there to read.
    There,
    /// The time is up, and the projection only so far.
    Behind(Position),
}

/// Waits until the build of a projection that is in service has applied the log up to a position: for a key, or where there is none for
/// every key, whichever replicas have them in hand.
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
    loop {
        let known = held.as_mut().and_then(|held| in_hand(&held.borrow_and_update(), key));
        let at = match known {
            Some(at) => at,
            None => stored(store, name, key).await?,
        };
        if at >= position {
            return Ok(Waited::There);
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
