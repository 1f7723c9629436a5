//! A batch of events, read from the log for the segments at one position.

use std::collections::HashSet;

use disintegrate::{Event as _, IdentifierValue};
use event_store::{
    EventStore, Metadata, Position, Recorded, StoreError,
    connection::{with_timeout, with_timeout_of},
    decode,
};
use sqlx::{postgres::PgDatabaseError, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    lease::not_current,
    projection::Projection,
    segment::{SEGMENTS, segment_of},
    settings::BATCH_TIMEOUT,
};

/// Returns whether the event, or the projection on that event, is at fault, and not the database, the network, or SQL without its table.
pub(crate) fn is_events_fault(error: &StoreError) -> bool {
    match error {
        StoreError::Rejected(_) | StoreError::Decode { .. } => true,
        StoreError::Database(cause) if cause.as_database_error().is_some() => {
            // Cardinality, external routines, WITH CHECK OPTION, limits such as an index row's size, and exceptions that a function raises.
            ["21", "38", "39", "44", "54", "P0"].contains(&error.sqlstate().as_deref().and_then(|code| code.get(..2)).unwrap_or_default())
        }
        // Errors of the projection itself, such as a value that it cannot encode or decode.
        StoreError::Database(_) => true,
        _ => false,
    }
}

/// Describes an error for operators, with the database's SQLSTATE and detail.
pub(crate) fn describe(error: &StoreError) -> String {
    let (StoreError::Rejected(source) | StoreError::Database(source) | StoreError::Unavailable(source)) = error else {
        return error.to_string();
    };
    let Some(database) = source.as_database_error() else { return source.to_string() };
    let detail = database.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
    let code = database.code().unwrap_or_default();
    let mut text = format!("{} (SQLSTATE {code})", database.message());
    if let Some(detail) = detail {
        text = format!("{text}: {detail}");
    }
    text
}

/// Events in the order of the log.
#[derive(Clone)]
pub(crate) struct Batch<E> {
    pub(crate) events: Vec<Recorded<E>>,
    pub(crate) unreadable: Vec<Unreadable>,
}

/// An event that cannot be decoded.
#[derive(Clone)]
pub(crate) struct Unreadable {
    pub(crate) position: Position,
    /// From the log's column for the id that the projection is keyed by.
    key: Option<Uuid>,
    pub(crate) error: String,
}

impl<E> Default for Batch<E> {
    fn default() -> Self {
        Self { events: vec![], unreadable: vec![] }
    }
}

/// A batch, after the events of parked keys were taken out.
pub(crate) enum Sorted {
    /// The events for the queues. The rest of the batch can be applied.
    Queue(Vec<(Uuid, Position)>),
    /// The first event that cannot be decoded and is not a parked key's.
    Unreadable(Position, StoreError),
}

impl<E> Batch<E> {
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.unreadable.is_empty()
    }

    /// Keeps the events of some segments, and those without a key.
    pub(crate) fn keep<P: Projection<Event = E>>(&mut self, active: &[i32]) {
        if active.len() == SEGMENTS as usize {
            return;
        }
        let concerns = |key: Option<Uuid>| key.is_none_or(|key| active.contains(&segment_of(key)));
        self.events.retain(|event| concerns(P::key(event)));
        self.unreadable.retain(|event| concerns(event.key));
    }

    /// Returns the key of a batch of one event.
    pub(crate) fn key<P: Projection<Event = E>>(&self) -> Option<Uuid> {
        match (self.events.first(), self.unreadable.first()) {
            (Some(event), _) => P::key(event),
            (None, Some(event)) => event.key,
            (None, None) => None,
        }
    }

    /// Takes out the events of parked keys. An event without a key stays, and also queues for each parked key of the segments.
    pub(crate) fn sort<P: Projection<Event = E>>(&mut self, parked: &[Uuid], active: &[i32]) -> Sorted {
        if let Some(event) = self.unreadable.iter().find(|event| event.key.is_none_or(|key| !parked.contains(&key))) {
            return Sorted::Unreadable(event.position, StoreError::Decode { position: event.position, error: event.error.clone() });
        }
        let mut queue: Vec<_> = self.unreadable.drain(..).filter_map(|event| Some((event.key?, event.position))).collect();
        if parked.is_empty() {
            return Sorted::Queue(queue);
        }
        let concerned: HashSet<_> = parked.iter().copied().filter(|key| active.contains(&segment_of(*key))).collect();
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

/// The row of an event.
pub(crate) struct Row {
    pub(crate) event_id: i64,
    pub(crate) payload: Vec<u8>,
    pub(crate) inserted_at: OffsetDateTime,
    /// `None` if the projection does not use it.
    pub(crate) metadata: Option<Json<Metadata>>,
}

/// Metadata is always read for this many positions of a batch, for its trace.
const TRACED: i64 = 100;

/// Reads the events that a projection takes, after one position and up to another.
///
/// # Errors
/// The server has another log than `log`, or has not reached `to`. An event that is missing there is not yet there.
pub(crate) async fn read<P: Projection>(
    store: &EventStore<P::Log>,
    types: &[String],
    log: &str,
    after: Position,
    to: Position,
) -> Result<Batch<P::Event>, StoreError> {
    let (is_current, rows) = with_timeout_of(BATCH_TIMEOUT, async {
        let mut connection = store.connection().await?;
        // The first row says whether the server can answer, as of the same snapshot.
        let rows = sqlx::query!(
            r#"SELECT NULL::bigint AS event_id, NULL::bytea AS payload, NULL::timestamptz AS inserted_at, NULL::jsonb AS "metadata: Json<Metadata>",
                      log_identity() = $5 AND coalesce(max(event_id), 0) >= $2 AS current
               FROM event
               UNION ALL
               (SELECT event_id, payload, inserted_at, CASE WHEN event_id <= $4 THEN metadata END, NULL FROM event
                WHERE event_id > $1 AND event_id <= $2 AND event_type = ANY ($3) ORDER BY event_id)"#,
            after.0,
            to.0,
            types,
            if P::METADATA { to.0 } else { after.0 + TRACED },
            log
        )
        .fetch_all(&mut *connection)
        .await?;
        let is_current = rows.first().is_some_and(|first| first.current == Some(true));
        if is_current {
            connection.done();
        }
        Ok((is_current, rows))
    })
    .await?;
    if !is_current {
        return Err(not_current(to));
    }
    let row = |event_id, payload, inserted_at, metadata| {
        Some(Row { event_id: event_id?, payload: payload?, inserted_at: inserted_at?, metadata })
    };
    let rows = rows.into_iter().filter_map(|found| row(found.event_id, found.payload, found.inserted_at, found.metadata)).collect();
    let mut batch = decoded::<P>(rows);
    if !batch.unreadable.is_empty() {
        find_keys::<P>(store, &mut batch.unreadable).await?;
    }
    Ok(batch)
}

pub(crate) fn decoded<P: Projection>(rows: Vec<Row>) -> Batch<P::Event> {
    let mut batch = Batch { events: Vec::with_capacity(rows.len()), unreadable: vec![] };
    for row in rows {
        let position = Position(row.event_id);
        match decode::<P::Log>(row.event_id, &row.payload).map(TryInto::try_into) {
            Ok(Ok(event)) => {
                debug_assert!(is_keyed_by::<P>(&event), "{}: the key of the event at {position} is not the id it is keyed by", P::NAME);
                let metadata = row.metadata.map(|metadata| metadata.0).unwrap_or_default();
                batch.events.push(Recorded { position, event, metadata, recorded_at: row.inserted_at });
            }
            // An event of another stream.
            Ok(Err(_)) => {}
            Err(error) => {
                let error = if let StoreError::Decode { error, .. } = error { error } else { error.to_string() };
                batch.unreadable.push(Unreadable { position, key: None, error });
            }
        }
    }
    batch
}

/// Returns whether an event's key equals the id that the projection is keyed by.
fn is_keyed_by<P: Projection>(event: &P::Event) -> bool {
    P::KEYED_BY.is_none_or(|id| {
        let ids = event.domain_ids();
        let value = ids.iter().find(|(known, _)| known.into_inner() == id).map(|(_, value)| value);
        P::key(event) == value.and_then(|value| if let IdentifierValue::Uuid(key) = value { Some(*key) } else { None })
    })
}

/// Reads the keys of undecodable events from the column of the id that the projection is keyed by.
async fn find_keys<P: Projection>(store: &EventStore<P::Log>, unreadable: &mut [Unreadable]) -> Result<(), StoreError> {
    let Some(id) = P::KEYED_BY else { return Ok(()) };
    let Some(column) = store.domain_ids().iter().find(|known| **known == id) else {
        return Err(StoreError::Schema(format!("{} is keyed by {id}, but the log has no such domain id", P::NAME)));
    };
    let positions: Vec<i64> = unreadable.iter().map(|event| event.position.0).collect();
    let sql = format!("SELECT event_id, {column} FROM event WHERE event_id = ANY ($1)");
    let keys: Vec<(Position, Option<Uuid>)> = with_timeout(async {
        let mut connection = store.connection().await?;
        let keys = sqlx::query_as(&sql).bind(&positions).fetch_all(&mut *connection).await?;
        connection.done();
        Ok(keys)
    })
    .await?;
    for event in unreadable {
        let (_, key) = keys.iter().find(|(position, _)| *position == event.position).ok_or_else(|| not_current(event.position))?;
        event.key = *key;
    }
    Ok(())
}

/// Returns whether the database ended a transaction or statement because it took too long. A smaller batch may succeed.
pub(crate) fn took_too_long(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_)) && matches!(error.sqlstate().as_deref(), Some("25P04" | "57014"))
}
