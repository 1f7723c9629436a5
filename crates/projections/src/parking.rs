//! Parked keys. An event that cannot be applied parks its key: that event and the key's later ones queue, and all other keys continue. When
//! an operator asks for a retry, the queue is applied in order.
//!
//! Only the owner of a key's segment parks the key, extends its queue and applies it. It does so in a transaction that locks or moves the
//! segment's checkpoint. So every event up to the checkpoint is either applied or in a queue. Operators ask for retries, and remove events
//! from queues that shall be skipped.

use event_store::{
    Metadata, Position, StoreError,
    connection::{PooledConnection, with_timeout, with_timeout_of},
};
use opentelemetry::KeyValue;
use sqlx::{Connection, PgConnection, types::Json};
use uuid::Uuid;

use crate::{
    batch::{Row, Unreadable, decoded, describe, took_too_long},
    lease::{Leases, OwnedSegments},
    metrics::METRICS,
    projection::Projection,
    running::Running,
    segment::segment_of,
    settings::BATCH_TIMEOUT,
};

/// The most parked keys of a build. With more, the projection is at fault and not the events, so its segments are blocked instead.
const MOST_PARKED: usize = 1_000;

impl Leases<'_> {
    /// Appends events to the queues of parked keys.
    pub(crate) async fn queue(&self, transaction: &mut PgConnection, queue: &[(Uuid, Position)]) -> Result<(), sqlx::Error> {
        if queue.is_empty() {
            return Ok(());
        }
        let (keys, positions): (Vec<_>, Vec<_>) = queue.iter().map(|(key, position)| (*key, position.0)).unzip();
        sqlx::query!(
            "INSERT INTO parked_event (name, build, key, position) SELECT $1, $2, * FROM unnest($3::uuid[], $4::bigint[]) ON CONFLICT DO NOTHING",
            self.name,
            self.build,
            &keys,
            &positions
        )
        .execute(transaction)
        .await?;
        Ok(())
    }

    /// Stores that a segment is blocked before an event, and why. Returns whether an operator decided to skip that event. `None`: another
    /// replica owns the segment.
    pub(crate) async fn block(&self, segment: i32, before: Position, error: &str) -> Result<Option<bool>, StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            let skipped = sqlx::query_scalar!(
                r#"UPDATE checkpoint c
                   SET blocked_at = $5, blocked_error = $6,
                       blocked_attempts = CASE WHEN blocked_at = $5 THEN blocked_attempts ELSE 0 END + 1,
                       blocked_since = CASE WHEN blocked_at = $5 THEN blocked_since ELSE clock_timestamp() END
                   WHERE name = $1 AND build = $2 AND segment = $3 AND owner = $4 AND position < $5
                   RETURNING EXISTS (
                       SELECT FROM skipped_event s JOIN projection p USING (name, build, started_at)
                       WHERE s.name = c.name AND s.build = c.build AND s.position = $5 AND s.key IS NULL
                   ) AS "skipped!""#,
                self.name,
                self.build,
                segment,
                self.replica,
                before.0,
                error
            )
            .fetch_optional(&mut *connection)
            .await?;
            connection.done();
            Ok(skipped)
        })
        .await
    }

    /// Stores why the first event of a parked key's queue failed again, if this replica still owns the segment.
    async fn still_parked(&self, segment: i32, key: Uuid, position: Position, error: &str) -> Result<(), StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            sqlx::query!(
                "WITH fence AS (
                     SELECT FROM checkpoint WHERE name = $1 AND build = $2 AND segment = $6 AND owner = $7 FOR UPDATE
                 )
                 UPDATE parked_key SET attempts = CASE WHEN position = $4 THEN attempts ELSE 0 END + 1, position = $4, error = $5,
                        tried_at = clock_timestamp(), retry_asked_at = NULL
                 WHERE name = $1 AND build = $2 AND key = $3 AND EXISTS (SELECT FROM fence)",
                self.name,
                self.build,
                key,
                position.0,
                error,
                segment,
                self.replica
            )
            .execute(&mut *connection)
            .await?;
            connection.done();
            Ok(())
        })
        .await
    }
}

/// The outcome of parking a key.
pub(crate) enum Parked {
    /// The key is parked, and the checkpoints are moved.
    Whole,
    /// Another replica owns a segment.
    Lost,
    /// The server has another log, or has not come as far.
    NotCurrent,
    /// Too many keys are parked already.
    TooMany,
}

/// The outcome of applying a part of a queue.
enum Retried {
    /// Another replica owns the segment.
    Lost,
    /// The queue is empty, and the key is no longer parked.
    Unparked,
    /// The queue has more events.
    More,
    /// Applying this many events failed; the first is at this position.
    Failed(StoreError, usize, Position),
}

/// Parks keys and retries them, for the segments of a build that this replica owns.
pub(crate) struct Parking<'a, P: Projection> {
    pub(crate) running: &'a Running<P>,
    pub(crate) leases: Leases<'a>,
    pub(crate) owned: &'a OwnedSegments,
}

impl<P: Projection> Parking<'_, P> {
    /// Parks a key with the event that failed, in the transaction that moves the checkpoints past that event.
    pub(crate) async fn park(
        &self,
        key: Uuid,
        error: &StoreError,
        active: &[i32],
        from: Position,
        at: Position,
    ) -> Result<Parked, StoreError> {
        let leases = self.leases;
        let parked = with_timeout(async {
            let mut pooled = PooledConnection::from(leases.pool).await?;
            let mut transaction = pooled.begin().await?;
            let advanced = leases.advance(&mut transaction, self.owned, active, from, at).await?;
            let parked = match () {
                () if !advanced.current => return Ok(Parked::NotCurrent),
                () if !advanced.moved => Parked::Lost,
                () if advanced.parked.len() >= MOST_PARKED => Parked::TooMany,
                () => {
                    sqlx::query!(
                        "INSERT INTO parked_key (name, build, key, position, error) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
                        leases.name,
                        leases.build,
                        key,
                        at.0,
                        describe(error)
                    )
                    .execute(&mut *transaction)
                    .await?;
                    leases.queue(&mut transaction, &[(key, at)]).await?;
                    Parked::Whole
                }
            };
            match parked {
                Parked::Whole => transaction.commit().await?,
                Parked::Lost | Parked::TooMany | Parked::NotCurrent => transaction.rollback().await?,
            }
            pooled.done();
            Ok(parked)
        })
        .await?;
        let (projection, build) = (P::NAME, leases.build);
        match parked {
            Parked::Whole => tracing::error!(
                projection,
                build,
                %key,
                position = %at,
                error = error as &dyn std::error::Error,
                "parked key"
            ),
            Parked::TooMany => tracing::error!(projection, build, parked = MOST_PARKED, "too many parked keys, blocking segments instead"),
            Parked::Lost | Parked::NotCurrent => {}
        }
        Ok(parked)
    }

    /// Retries the keys that an operator asked for, in owned segments. Returns `false` if another replica owns one of these segments.
    pub(crate) async fn retry_parked(&self) -> Result<bool, StoreError> {
        let leases = self.leases;
        let asked = with_timeout(async {
            let mut connection = PooledConnection::from(leases.pool).await?;
            let asked = sqlx::query_scalar!(
                "SELECT key FROM parked_key WHERE name = $1 AND build = $2 AND retry_asked_at IS NOT NULL ORDER BY retry_asked_at, position",
                leases.name,
                leases.build
            )
            .fetch_all(&mut *connection)
            .await?;
            connection.done();
            Ok(asked)
        })
        .await?;
        for key in asked {
            let segment = segment_of(key);
            if self.owned.positions.contains_key(&segment) && !self.retry(key, segment).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Applies a parked key's queue until it is empty or fails. Returns `false` if another replica owns the segment.
    async fn retry(&self, key: Uuid, segment: i32) -> Result<bool, StoreError> {
        let (projection, build) = (P::NAME, self.leases.build);
        let mut window = usize::try_from(self.running.settings.batch).unwrap_or(1).max(1);
        loop {
            match self.retry_some(key, segment, window).await? {
                Retried::Lost => return Ok(false),
                Retried::Unparked => {
                    tracing::info!(projection, build, %key, "unparked key");
                    return Ok(true);
                }
                Retried::More => {}
                Retried::Failed(error, events, _) if events > 1 && took_too_long(&error) => window = events / 2,
                Retried::Failed(error, events, _) if events > 1 && !error.is_unavailable() => window = (events / 10).max(1),
                Retried::Failed(error, _, position) if took_too_long(&error) || !error.is_unavailable() => {
                    METRICS.projection_faults.add(1, &[KeyValue::new("projection", P::NAME)]);
                    self.leases.still_parked(segment, key, position, &describe(&error)).await?;
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(projection, build, %key, %position, error, "retry failed, key stays parked");
                    return Ok(true);
                }
                Retried::Failed(error, ..) => return Err(error),
            }
        }
    }

    /// Applies up to `window` events of a parked key's queue in one transaction.
    async fn retry_some(&self, key: Uuid, segment: i32, window: usize) -> Result<Retried, StoreError> {
        let leases = self.leases;
        with_timeout_of(BATCH_TIMEOUT, async {
            let mut pooled = PooledConnection::from(leases.pool).await?;
            let mut transaction = pooled.begin().await?;
            if !leases.lock(&mut transaction, segment, key).await? {
                transaction.rollback().await?;
                pooled.done();
                return Ok(Retried::Lost);
            }
            // Serialises with an operator who removes an event from the queue.
            sqlx::query!("SELECT FROM parked_key WHERE name = $1 AND build = $2 AND key = $3 FOR UPDATE", leases.name, leases.build, key)
                .execute(&mut *transaction)
                .await?;
            // An array, because a join may read the log from its first event if statistics are old.
            let rows = sqlx::query_as!(
                Row,
                r#"SELECT event_id, payload, inserted_at, metadata AS "metadata?: Json<Metadata>" FROM event
                   WHERE event_id = ANY (ARRAY(
                       SELECT position FROM parked_event WHERE name = $1 AND build = $2 AND key = $3 ORDER BY position LIMIT $4))
                   ORDER BY event_id"#,
                leases.name,
                leases.build,
                key,
                i64::try_from(window).unwrap_or(i64::MAX)
            )
            .fetch_all(&mut *transaction)
            .await?;
            let mut last = rows.last().map(|row| row.event_id);
            let mut batch = decoded::<P>(rows);
            let unreadable = batch.unreadable.first().cloned();
            if let Some(unreadable) = &unreadable {
                batch.events.retain(|event| event.position < unreadable.position);
                last = batch.events.last().map(|event| event.position.0);
            }
            let failed = match (batch.events.first(), unreadable) {
                (Some(first), _) => {
                    let connection: &mut PgConnection = &mut transaction;
                    let applied = self.running.projection.apply(connection, &batch.events).await;
                    applied.err().map(|error| Retried::Failed(error.into(), batch.events.len(), first.position))
                }
                (None, Some(Unreadable { position, error, .. })) => {
                    Some(Retried::Failed(StoreError::Decode { position, error }, 1, position))
                }
                (None, None) => None,
            };
            match failed {
                // The connection is broken. Its error says why, a rollback's would not.
                Some(Retried::Failed(error, events, position)) if error.is_unavailable() => {
                    return Ok(Retried::Failed(error, events, position));
                }
                Some(failed) => {
                    transaction.rollback().await?;
                    pooled.done();
                    return Ok(failed);
                }
                None => {}
            }
            sqlx::query!("SELECT delete_parked($1, $2, $3, $4)", leases.name, leases.build, key, last).fetch_one(&mut *transaction).await?;
            let next = sqlx::query_scalar!(
                r#"SELECT min(position) AS "next!" FROM parked_event WHERE name = $1 AND build = $2 AND key = $3 HAVING count(*) > 0"#,
                leases.name,
                leases.build,
                key
            )
            .fetch_optional(&mut *transaction)
            .await?;
            if let Err(error) = transaction.commit().await {
                // A deferred constraint fails at the commit.
                let first = batch.events.first().map(|event| event.position);
                return Ok(Retried::Failed(error.into(), batch.events.len().max(1), first.unwrap_or_default()));
            }
            pooled.done();
            self.running.count(leases.build, batch.events.len());
            Ok(match (next, last) {
                (None, _) => Retried::Unparked,
                (Some(_), Some(_)) => Retried::More,
                (Some(next), None) => {
                    Retried::Failed(StoreError::Reset(format!("the parked event at {next} is no longer there")), 1, Position(next))
                }
            })
        })
        .await
    }
}
