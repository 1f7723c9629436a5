//! What cannot be applied: an event parks its key, what is the key's queues behind it, and all of it is applied in order when an operator
//! has asked for that.
//!
//! Only the replica that holds a key's segment parks the key, adds to its queue and takes it out again, each in a transaction that the
//! segment's checkpoint fences; so where a checkpoint stands says of its parked keys that all up to there is applied or in their queues.
//! Operators ask, and take out of a queue what is to be skipped.

use std::collections::HashSet;

use disintegrate::{Event as _, IdentifierValue};
use opentelemetry::KeyValue;
use sqlx::{Connection, PgConnection, postgres::PgDatabaseError, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Projection,
    segment::segment_of,
    worker::{BATCH_TIMEOUT, Worker, took_too_long},
};
use crate::{
    EventStore, Metadata, Position, Recorded, StoreError,
    event::decode,
    lease::{Held, Leases},
    metrics::METRICS,
    store::{Lent, in_time, within},
};

/// Keys that are parked in a build at the most. Where there are more, it is the projection that is at fault and not the events, and it
/// stands still as a whole.
const MOST: usize = 1_000;

/// Whether an event, or the projection on that event, is at fault: not the database, what is between, or SQL that fits no table.
pub(super) fn is_poison(error: &StoreError) -> bool {
    match error {
        StoreError::Rejected(_) | StoreError::Decode { .. } => true,
        StoreError::Database(sqlx::Error::Database(error)) => {
            // More rows than one, limits exceeded (a value too long for its index), raised by a function, a view's check.
            ["21", "38", "39", "44", "54", "P0"].contains(&error.code().as_deref().and_then(|code| code.get(..2)).unwrap_or_default())
        }
        // The projection's own: a value that cannot be had from a row, or be sent.
        StoreError::Database(_) => true,
        _ => false,
    }
}

/// An error as an operator reads it, with what the database said of it.
pub(super) fn words(error: &StoreError) -> String {
    let (StoreError::Rejected(source) | StoreError::Database(source) | StoreError::Unavailable(source)) = error else {
        return error.to_string();
    };
    let sqlx::Error::Database(database) = source else { return source.to_string() };
    let detail = database.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
    let code = database.code().unwrap_or_default();
    let mut words = format!("{} (SQLSTATE {code})", database.message());
    if let Some(detail) = detail {
        words = format!("{words}: {detail}");
    }
    words
}

/// What was read of the log, in its order.
#[derive(Clone)]
pub(super) struct Batch<E> {
    pub(super) events: Vec<Recorded<E>>,
    unreadable: Vec<Unreadable>,
}

/// An event that is not of today's shape.
#[derive(Clone)]
struct Unreadable {
    position: Position,
    /// By the log's own column, as the event does not tell.
    key: Option<Uuid>,
    error: String,
}

impl<E> Default for Batch<E> {
    fn default() -> Self {
        Self { events: vec![], unreadable: vec![] }
    }
}

/// A batch, where keys are parked.
pub(super) enum Sorted {
    /// What queues is taken out of it; the rest is to be applied.
    Queue(Vec<(Uuid, Position)>),
    /// The first event in it that cannot be read, and is no parked key's.
    Unreadable(Position, StoreError),
}

impl<E> Batch<E> {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.unreadable.is_empty()
    }

    /// Leaves what concerns some of the segments.
    pub(super) fn keep<P: Projection<Event = E>>(&mut self, active: &[i32], segments: i32) {
        if usize::try_from(segments).is_ok_and(|all| all == active.len()) {
            return;
        }
        let concerns = |key: Option<Uuid>| key.is_none_or(|key| active.contains(&segment_of(key, segments)));
        self.events.retain(|event| concerns(P::key(event)));
        self.unreadable.retain(|event| concerns(event.key));
    }

    /// The key of a batch of one.
    pub(super) fn key<P: Projection<Event = E>>(&self) -> Option<Uuid> {
        match (self.events.first(), self.unreadable.first()) {
            (Some(event), _) => P::key(event),
            (None, Some(event)) => event.key,
            (None, None) => None,
        }
    }

    /// Takes out what has to queue: what is a parked key's; and what has no key queues behind each parked key of the segments, and is
    /// applied to the others.
    pub(super) fn sort<P: Projection<Event = E>>(&mut self, parked: &[Uuid], active: &[i32], segments: i32) -> Sorted {
        if let Some(event) = self.unreadable.iter().find(|event| event.key.is_none_or(|key| !parked.contains(&key))) {
            return Sorted::Unreadable(event.position, StoreError::Decode { position: event.position, error: event.error.clone() });
        }
        let mut queue: Vec<_> = self.unreadable.drain(..).filter_map(|event| Some((event.key?, event.position))).collect();
        if parked.is_empty() {
            return Sorted::Queue(queue);
        }
        let concerned: HashSet<_> = parked.iter().copied().filter(|key| active.contains(&segment_of(*key, segments))).collect();
        self.events.retain(|event| match P::key(event) {
            Some(key) => {
                let parked = concerned.contains(&key);
                queue.extend(parked.then_some((key, event.position)));
                !parked
            }
            None => {
                queue.extend(concerned.iter().map(|key| (*key, event.position)));
                true
            }
        });
        Sorted::Queue(queue)
    }
}

/// An event's row.
struct Row {
    event_id: i64,
    payload: Vec<u8>,
    inserted_at: OffsetDateTime,
    /// Where the projection makes something of it.
    metadata: Option<Json<Metadata>>,
}

/// The metadata of events in so many positions is read at any rate: it says what a batch came from.
const TRACED: i64 = 100;

/// Reads what a projection takes of the log between two positions.
pub(super) async fn read<P: Projection>(
    store: &EventStore<P::Log>,
    types: &[String],
    after: Position,
    to: Position,
) -> Result<Batch<P::Event>, StoreError> {
    let rows = within(BATCH_TIMEOUT, async {
        let mut connection = store.lend().await?;
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT event_id, payload, inserted_at, CASE WHEN event_id <= $4 THEN metadata END AS "metadata: Json<Metadata>" FROM event
           WHERE event_id > $1 AND event_id <= $2 AND event_type = ANY ($3) ORDER BY event_id"#,
            after.0,
            to.0,
            types,
            if P::METADATA { to.0 } else { after.0 + TRACED }
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        Ok(rows)
    })
    .await?;
    let mut batch = decoded::<P>(rows);
    if !batch.unreadable.is_empty() {
        find_keys::<P>(store, &mut batch.unreadable).await?;
    }
    Ok(batch)
}

fn decoded<P: Projection>(rows: Vec<Row>) -> Batch<P::Event> {
    let mut batch = Batch { events: Vec::with_capacity(rows.len()), unreadable: vec![] };
    for row in rows {
        let position = Position(row.event_id);
        match decode::<P::Log>(row.event_id, &row.payload).map(TryInto::try_into) {
            Ok(Ok(event)) => {
                debug_assert!(is_keyed_by::<P>(&event), "{}: the key of the event at {position} is not the id it is keyed by", P::NAME);
                let metadata = row.metadata.map(|metadata| metadata.0).unwrap_or_default();
                batch.events.push(Recorded { position, event, metadata, recorded_at: row.inserted_at });
            }
            // Of another stream.
            Ok(Err(_)) => {}
            Err(error) => {
                let error = if let StoreError::Decode { error, .. } = error { error } else { error.to_string() };
                batch.unreadable.push(Unreadable { position, key: None, error });
            }
        }
    }
    batch
}

/// Whether an event's key is what its column would say.
fn is_keyed_by<P: Projection>(event: &P::Event) -> bool {
    P::KEYED_BY.is_none_or(|id| {
        let ids = event.domain_ids();
        let value = ids.iter().find(|(known, _)| known.into_inner() == id).map(|(_, value)| value);
        P::key(event) == value.and_then(|value| if let IdentifierValue::Uuid(key) = value { Some(*key) } else { None })
    })
}

/// The keys of events that cannot be read, by the column of the id that the projection is keyed by.
async fn find_keys<P: Projection>(store: &EventStore<P::Log>, unreadable: &mut [Unreadable]) -> Result<(), StoreError> {
    let Some(id) = P::KEYED_BY else { return Ok(()) };
    let Some(column) = store.shared.ids.iter().find(|known| **known == id) else {
        return Err(StoreError::Schema(format!("{} is keyed by {id}, and there is no such domain id", P::NAME)));
    };
    let positions: Vec<i64> = unreadable.iter().map(|event| event.position.0).collect();
    let sql = format!("SELECT event_id, {column} FROM event WHERE event_id = ANY ($1)");
    let keys: Vec<(Position, Option<Uuid>)> = in_time(async {
        let mut connection = store.lend().await?;
        let keys = sqlx::query_as(&sql).bind(&positions).fetch_all(&mut *connection).await?;
        connection.done();
        Ok(keys)
    })
    .await?;
    for event in unreadable {
        event.key = keys.iter().find(|(position, _)| *position == event.position).and_then(|(_, key)| *key);
    }
    Ok(())
}

impl Leases<'_> {
    /// Adds to the queues of parked keys.
    pub(super) async fn queue(&self, transaction: &mut PgConnection, queue: &[(Uuid, Position)]) -> Result<(), sqlx::Error> {
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
    pub(super) async fn stop(&self, held: &Held, segment: i32, before: Position, error: &str) -> Result<Option<bool>, StoreError> {
        in_time(async {
            let mut connection = Lent::from(self.pool).await?;
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
        in_time(async {
            let mut connection = Lent::from(self.pool).await?;
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
pub(super) enum Parked {
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

impl<P: Projection> Worker<'_, P> {
    /// Parks a key with the event that cannot be applied, in the transaction that moves the checkpoints past it.
    pub(super) async fn park(
        &self,
        key: Uuid,
        error: &StoreError,
        active: &[i32],
        from: Position,
        at: Position,
    ) -> Result<Parked, StoreError> {
        let leases = self.leases;
        let parked = in_time(async {
            let mut lent = Lent::from(leases.pool).await?;
            let mut transaction = lent.begin().await?;
            let advanced = leases.advance(&mut transaction, &self.held, active, from, at).await?;
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

    /// Tries those parked keys again for which an operator has asked, where their segments are in hand.
    pub(super) async fn retry_parked(&mut self) -> Result<(), StoreError> {
        let leases = self.leases;
        let asked = in_time(async {
            let mut connection = Lent::from(leases.pool).await?;
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
                self.lost();
                break;
            }
        }
        Ok(())
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
                    self.leases.still_parked(&self.held, segment, key, position, &words(&error)).await?;
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
        within(BATCH_TIMEOUT, async {
            let mut lent = Lent::from(leases.pool).await?;
            let mut transaction = lent.begin().await?;
            if !leases.hold(&mut transaction, &self.held, segment, key).await? {
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
            self.count(batch.events.len());
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
