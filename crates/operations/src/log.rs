//! Events as they are stored.

use event_store::{EventStore, LogEvent, Position, StoreError, connection::with_timeout, decode};
use serde_json::value::RawValue;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event as it is stored.
#[derive(Debug)]
pub struct Entry<E> {
    /// Its position.
    pub position: Position,
    /// Its type.
    pub event_type: String,
    /// The decoded event, or why it cannot be decoded.
    pub event: Result<E, StoreError>,
    /// Its metadata, with the id of its append.
    pub metadata: Box<RawValue>,
    /// When it was appended, by the database's clock.
    pub recorded_at: OffsetDateTime,
}

/// Which events to read.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// All events.
    All,
    /// The event at a position.
    At(Position),
    /// The events with a domain id.
    Of {
        /// The name of the id in the log's schema.
        id: &'a str,
        /// Its value.
        value: Uuid,
    },
}

pub(crate) const COLUMNS: &str = "event_id, event_type, payload, metadata, inserted_at";

/// Reads the newest `count` of these events, in the order of the log.
///
/// # Errors
/// The log cannot be read, or has no such domain id.
pub async fn newest<E: LogEvent>(store: &EventStore<E>, which: Which<'_>, count: i64) -> Result<Vec<Entry<E>>, StoreError> {
    let sql = match which {
        Which::All => format!("SELECT {COLUMNS} FROM event WHERE $1::bigint IS NULL AND $2::uuid IS NULL ORDER BY event_id DESC LIMIT $3"),
        Which::At(_) => format!("SELECT {COLUMNS} FROM event WHERE event_id = $1 AND $2::uuid IS NULL LIMIT $3"),
        // Forces the index of the id. Reading the log backwards could take all of it.
        Which::Of { id, .. } => match store.domain_ids().iter().find(|known| **known == id) {
            Some(column) => format!(
                "WITH found AS MATERIALIZED (SELECT event_id FROM event WHERE {column} = $2 AND $1::bigint IS NULL),
                      newest AS MATERIALIZED (SELECT event_id FROM found ORDER BY event_id DESC LIMIT $3)
                 SELECT {COLUMNS} FROM newest JOIN event USING (event_id) ORDER BY event_id DESC"
            ),
            None => return Err(StoreError::Schema(format!("it has no domain id {id}"))),
        },
    };
    let (position, value) = match which {
        Which::All => (None, None),
        Which::At(position) => (Some(position), None),
        Which::Of { value, .. } => (None, Some(value)),
    };
    let mut found = entries(store, sqlx::query_as(&sql).bind(position).bind(value).bind(count)).await?;
    found.reverse();
    Ok(found)
}

/// Reads up to `count` events after a position, in the order of the log.
///
/// # Errors
/// The log cannot be read.
pub async fn after<E: LogEvent>(store: &EventStore<E>, position: Position, count: i64) -> Result<Vec<Entry<E>>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM event WHERE event_id > $1 ORDER BY event_id LIMIT $2");
    entries(store, sqlx::query_as(&sql).bind(position).bind(count)).await
}

pub(crate) type Columns = (i64, String, Vec<u8>, Json<Box<RawValue>>, OffsetDateTime);

pub(crate) async fn entries<E: LogEvent>(
    store: &EventStore<E>,
    query: sqlx::query::QueryAs<'_, sqlx::Postgres, Columns, sqlx::postgres::PgArguments>,
) -> Result<Vec<Entry<E>>, StoreError> {
    let rows = with_timeout(async {
        let mut connection = store.connection().await?;
        let rows = query.fetch_all(&mut *connection).await?;
        connection.done();
        Ok(rows)
    })
    .await?;
    let entry = |(position, event_type, payload, metadata, recorded_at): Columns| Entry {
        position: Position(position),
        event_type,
        event: decode(position, &payload),
        metadata: metadata.0,
        recorded_at,
    };
    Ok(rows.into_iter().map(entry).collect())
}
