//! What the log holds, as it is stored.

use event_store::{EventStore, LogEvent, Position, StoreError, connection::with_timeout, decode};
use serde_json::value::RawValue;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event as the log has it.
#[derive(Debug)]
pub struct Entry<E> {
    /// Where it stands.
    pub position: Position,
    /// Its type.
    pub event_type: String,
    /// The event; an error where today's shape is another.
    pub event: Result<E, StoreError>,
    /// All that is known besides, the id of its append among it.
    pub metadata: Box<RawValue>,
    /// When it was written, by the database's clock.
    pub recorded_at: OffsetDateTime,
}

/// Which events are meant.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// All.
    All,
    /// The one at a position.
    At(Position),
    /// Those that carry a domain id.
    Of {
        /// The id's name in the log's schema.
        id: &'a str,
        /// Its value.
        value: Uuid,
    },
}

pub(crate) const COLUMNS: &str = "event_id, event_type, payload, metadata, inserted_at";

/// The newest events of those that are meant, so many at the most, in the order of the log.
///
/// # Errors
/// Where the log cannot be read; where its schema has no such id.
pub async fn newest<E: LogEvent>(store: &EventStore<E>, which: Which<'_>, count: i64) -> Result<Vec<Entry<E>>, StoreError> {
    let sql = match which {
        Which::All => format!("SELECT {COLUMNS} FROM event WHERE $1::bigint IS NULL AND $2::uuid IS NULL ORDER BY event_id DESC LIMIT $3"),
        Which::At(_) => format!("SELECT {COLUMNS} FROM event WHERE event_id = $1 AND $2::uuid IS NULL LIMIT $3"),
        // The id's own index first, whatever the planner thinks: walking the log back until enough are found can take all of it.
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

/// The events after a position, so many at the most, in the order of the log.
///
/// # Errors
/// Where the log cannot be read.
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
