//! What cannot be applied: an event parks its key, what is the key's queues behind it, and all of it is applied in order when an operator
//! has asked for that.
//!
//! Only the replica that holds a key's segment parks the key, adds to its queue and takes it out again, each in a transaction that the
//! segment's checkpoint fences; so where a checkpoint stands says of its parked keys that all up to there is applied or in their queues.
//! Operators ask, and take out of a queue what is to be skipped.

use event_store::{
    Metadata, Position, StoreError,
    connection::{PooledConnection, with_timeout, with_timeout_of},
};
use opentelemetry::KeyValue;
use sqlx::{Connection, PgConnection, types::Json};
use uuid::Uuid;

use crate::{
    batch::{Row, Unreadable, decoded, took_too_long, words},
    lease::{Held, Leases},
    metrics::METRICS,
    projection::Projection,
    running::Running,
    segment::segment_of,
    settings::BATCH_TIMEOUT,
};

/// Keys that are parked in a build at the most. Where there are more, it is the projection that is at fault and not the events, and it
/// stands still as a whole.
const MOST: usize = 1_000;

impl Leases<'_> {
    /// Adds to the queues of parked keys.
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

    /// Says of a segment that it stands before an event, and why. Answers whether an operator has decided that the event be skipped;
    /// `None` where the segment is another's.
    pub(crate) async fn stop(&self, held: &Held, segment: i32, before: Position, error: &str) -> Result<Option<bool>, StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            let skipped = sqlx::query_scalar!(
                r#"UPDATE checkpoint c
                   SET stopped_at = $6, stopped_error = $7,
                       stopped_attempts = CASE WHEN stopped_at = $6 THEN stopped_attempts ELSE 0 END + 1,
                       stopped_since = CASE WHEN stopped_at = $6 THEN stopped_since ELSE clock_timestamp() END
                   WHERE name = $1 AND build = $2 AND segments = $3 AND segment = $4 AND owner = $5 AND position < $6
                   RETURNING EXISTS (
                       SELECT FROM skipped_event s JOIN projection p USING (name, build, started_at)
                       WHERE s.name = c.name AND s.build = c.build AND s.position = $6 AND s.key IS NULL
                   ) AS "skipped!""#,
                self.name,
                self.build,
                held.segments,
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

    /// Says of a parked key that its queue's first event still cannot be applied, and why: where its segment is still this replica's.
    async fn still_parked(&self, held: &Held, segment: i32, key: Uuid, position: Position, error: &str) -> Result<(), StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            sqlx::query!(
                "WITH fence AS (
                     SELECT FROM checkpoint WHERE name = $1 AND build = $2 AND segments = $6 AND segment = $7 AND owner = $8 FOR UPDATE
                 )
                 UPDATE parked SET attempts = CASE WHEN position = $4 THEN attempts ELSE 0 END + 1, position = $4, error = $5,
                        tried_at = clock_timestamp(), retry_asked_at = NULL
                 WHERE name = $1 AND build = $2 AND key = $3 AND EXISTS (SELECT FROM fence)",
                self.name,
                self.build,
                key,
                position.0,
                error,
                held.segments,
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

/// What parking a key came to.
pub(crate) enum Parked {
    /// It is parked, and the checkpoints are moved.
    Whole,
    /// A segment is another's now.
    Lost,
    /// So many keys are parked that one more would not help.
    TooMany,
}

/// What trying a part of a queue came to.
enum Retried {
    /// The key's segment is another's now.
    Lost,
    /// The key is parked no more.
    Unparked,
    /// There is more in the queue.
    Further,
    /// So many events could not be applied, of which this is the first.
    Refused(StoreError, usize, Position),
}

/// Parks keys, and tries them again, for the segments of a build that are held here.
pub(crate) struct Parking<'a, P: Projection> {
    pub(crate) running: &'a Running<P>,
    pub(crate) leases: Leases<'a>,
    pub(crate) held: &'a Held,
}

impl<P: Projection> Parking<'_, P> {
    /// Parks a key with the event that cannot be applied, in the transaction that moves the checkpoints past it.
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
            let mut lent = PooledConnection::from(leases.pool).await?;
            let mut transaction = lent.begin().await?;
            let advanced = leases.advance(&mut transaction, self.held, active, from, at).await?;
            let parked = match () {
                () if !advanced.moved => Parked::Lost,
                () if advanced.parked.len() >= MOST => Parked::TooMany,
                () => {
                    sqlx::query!(
                        "INSERT INTO parked (name, build, key, position, error) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
                        leases.name,
                        leases.build,
                        key,
                        at.0,
                        words(error)
                    )
                    .execute(&mut *transaction)
                    .await?;
                    leases.queue(&mut transaction, &[(key, at)]).await?;
                    Parked::Whole
                }
            };
            match parked {
                Parked::Whole => transaction.commit().await?,
                Parked::Lost | Parked::TooMany => transaction.rollback().await?,
            }
            lent.done();
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
                "the event cannot be applied: its key is parked, and the rest goes on; `cartctl parked` shows and retries it"
            ),
            Parked::TooMany => tracing::error!(projection, build, parked = MOST, "so many keys are parked that no more are"),
            Parked::Lost => {}
        }
        Ok(parked)
    }

    /// Tries those parked keys again for which an operator has asked, where their segments are in hand. `false`: one of those is another's
    /// now.
    pub(crate) async fn retry_parked(&self) -> Result<bool, StoreError> {
        let leases = self.leases;
        let asked = with_timeout(async {
            let mut connection = PooledConnection::from(leases.pool).await?;
            let asked = sqlx::query_scalar!(
                "SELECT key FROM parked WHERE name = $1 AND build = $2 AND retry_asked_at IS NOT NULL ORDER BY retry_asked_at, position",
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
            let segment = segment_of(key, self.held.segments);
            if self.held.positions.contains_key(&segment) && !self.retry(key, segment).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tries a parked key's queue, as far as it goes. `false`: its segment is another's now.
    async fn retry(&self, key: Uuid, segment: i32) -> Result<bool, StoreError> {
        let (projection, build) = (P::NAME, self.leases.build);
        let mut window = usize::try_from(self.running.settings.batch).unwrap_or(1).max(1);
        loop {
            match self.retry_some(key, segment, window).await? {
                Retried::Lost => return Ok(false),
                Retried::Unparked => {
                    tracing::info!(projection, build, %key, "the parked key is as far as the others");
                    return Ok(true);
                }
                Retried::Further => {}
                Retried::Refused(error, events, _) if events > 1 && took_too_long(&error) => window = events / 2,
                Retried::Refused(error, events, _) if events > 1 && !error.is_unavailable() => window = (events / 10).max(1),
                Retried::Refused(error, _, position) if took_too_long(&error) || !error.is_unavailable() => {
                    METRICS.projection_faults.add(1, &[KeyValue::new("projection", P::NAME)]);
                    self.leases.still_parked(self.held, segment, key, position, &words(&error)).await?;
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(projection, build, %key, %position, error, "the event still cannot be applied: its key stays parked");
                    return Ok(true);
                }
                Retried::Refused(error, ..) => return Err(error),
            }
        }
    }

    /// Tries the first events of a parked key's queue, so many at the most, in one transaction.
    async fn retry_some(&self, key: Uuid, segment: i32, window: usize) -> Result<Retried, StoreError> {
        let leases = self.leases;
        with_timeout_of(BATCH_TIMEOUT, async {
            let mut lent = PooledConnection::from(leases.pool).await?;
            let mut transaction = lent.begin().await?;
            if !leases.hold(&mut transaction, self.held, segment, key).await? {
                transaction.rollback().await?;
                lent.done();
                return Ok(Retried::Lost);
            }
            // An operator who takes something out of the queue does so before this, or after.
            sqlx::query!("SELECT FROM parked WHERE name = $1 AND build = $2 AND key = $3 FOR UPDATE", leases.name, leases.build, key)
                .execute(&mut *transaction)
                .await?;
            // An array: as a join, which it becomes where the log was last analysed when it was empty, it would begin at the log's first event.
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
            let refused = match (batch.events.first(), unreadable) {
                (Some(first), _) => {
                    let connection: &mut PgConnection = &mut transaction;
                    let applied = self.running.projection.apply(connection, &batch.events).await;
                    applied.err().map(|error| Retried::Refused(error.into(), batch.events.len(), first.position))
                }
                (None, Some(Unreadable { position, error, .. })) => {
                    Some(Retried::Refused(StoreError::Decode { position, error }, 1, position))
                }
                (None, None) => None,
            };
            match refused {
                // The connection is of no use any more, and its error says why.
                Some(Retried::Refused(error, events, position)) if error.is_unavailable() => {
                    return Ok(Retried::Refused(error, events, position));
                }
                Some(refused) => {
                    transaction.rollback().await?;
                    lent.done();
                    return Ok(refused);
                }
                None => {}
            }
            sqlx::query!(
                "DELETE FROM parked_event WHERE name = $1 AND build = $2 AND key = $3 AND position <= $4",
                leases.name,
                leases.build,
                key,
                last
            )
            .execute(&mut *transaction)
            .await?;
            sqlx::query!(
                "DELETE FROM parked k WHERE name = $1 AND build = $2 AND key = $3 AND NOT EXISTS (
                     SELECT FROM parked_event q WHERE q.name = k.name AND q.build = k.build AND q.key = k.key)",
                leases.name,
                leases.build,
                key
            )
            .execute(&mut *transaction)
            .await?;
            let next = sqlx::query_scalar!(
                r#"SELECT min(position) AS "next!" FROM parked_event WHERE name = $1 AND build = $2 AND key = $3 HAVING count(*) > 0"#,
                leases.name,
                leases.build,
                key
            )
            .fetch_optional(&mut *transaction)
            .await?;
            if let Err(error) = transaction.commit().await {
                // A constraint may be checked as late as here.
                let first = batch.events.first().map(|event| event.position);
                return Ok(Retried::Refused(error.into(), batch.events.len().max(1), first.unwrap_or_default()));
            }
            lent.done();
            self.running.count(leases.build, batch.events.len());
            Ok(match (next, last) {
                (None, _) => Retried::Unparked,
                (Some(_), Some(_)) => Retried::Further,
                (Some(next), None) => {
                    Retried::Refused(StoreError::Reset(format!("the event at {next} is parked and not there any more")), 1, Position(next))
                }
            })
        })
        .await
    }
}
