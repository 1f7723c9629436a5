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
    /// The event as it is stored: JSON, written by any release.
    pub payload: Vec<u8>,
    /// Its metadata, with the id of its append.
    pub metadata: Box<RawValue>,
    /// When it was appended, by the database's clock.
    pub recorded_at: OffsetDateTime,
}

/// Which events to read: those that meet every condition.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which<'a> {
    /// A domain id: its name in the log's schema, and its value.
    pub id: Option<(&'a str, Uuid)>,
    /// The types; all if empty.
    pub types: &'a [String],
    /// The position before the first of them.
    pub after: Position,
}

impl Which<'_> {
    /// Returns the SQL condition: $1 is the id's value, $2 the types, $3 the position before.
    fn condition<E: LogEvent>(&self, store: &EventStore<E>) -> Result<String, StoreError> {
        let id = match self.id {
            None => "$1::uuid IS NULL".to_owned(),
            Some((id, _)) => match store.domain_ids().iter().find(|known| **known == id) {
                Some(column) => format!("{column} = $1"),
                None => return Err(StoreError::Schema(format!("it has no domain id {id}"))),
            },
        };
        let types = if self.types.is_empty() { "$2::text[] IS NOT NULL" } else { "event_type = ANY ($2)" };
        // `+ 0` keeps PostgreSQL from reading by position: that range may be most of the log. The id has an index.
        let after = if self.id.is_some() { "event_id + 0 > $3" } else { "event_id > $3" };
        Ok(format!("{id} AND {types} AND {after}"))
    }
}

pub(crate) const COLUMNS: &str = "event_id, event_type, payload, metadata, inserted_at";

/// Reads the newest `count` of these events, in the order of the log.
///
/// # Errors
/// The log cannot be read, or has no such domain id.
pub async fn newest<E: LogEvent>(store: &EventStore<E>, which: Which<'_>, count: i64) -> Result<Vec<Entry<E>>, StoreError> {
    let condition = which.condition(store)?;
    let sql = if which.id.is_some() {
        // Forces the index of the id. Reading the log backwards could take all of it.
        format!(
            "WITH found AS MATERIALIZED (SELECT event_id FROM event WHERE {condition}),
                  newest AS MATERIALIZED (SELECT event_id FROM found ORDER BY event_id DESC LIMIT $4)
             SELECT {COLUMNS} FROM newest JOIN event USING (event_id) ORDER BY event_id DESC"
        )
    } else {
        format!("SELECT {COLUMNS} FROM event WHERE {condition} ORDER BY event_id DESC LIMIT $4")
    };
    let mut found = entries(store, query(&sql, &which, count)).await?;
    found.reverse();
    Ok(found)
}

/// Reads the first `count` of these events up to a position, in the order of the log.
///
/// # Errors
/// As [`newest`].
pub async fn up_to<E: LogEvent>(
    store: &EventStore<E>,
    which: Which<'_>,
    position: Position,
    count: i64,
) -> Result<Vec<Entry<E>>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM event WHERE {} AND event_id <= $5 ORDER BY event_id LIMIT $4", which.condition(store)?);
    entries(store, query(&sql, &which, count).bind(position)).await
}

fn query<'q>(sql: &'q str, which: &Which<'q>, count: i64) -> Query<'q> {
    sqlx::query_as(sql).bind(which.id.map(|(_, value)| value)).bind(which.types).bind(which.after).bind(count)
}

/// Returns the position before the first event that was recorded at a time or later, by the database's clock.
///
/// # Errors
/// The log cannot be read.
pub async fn before<E: LogEvent>(store: &EventStore<E>, time: OffsetDateTime) -> Result<Position, StoreError> {
    let head = store.head().await?;
    with_timeout(async {
        let mut connection = store.connection().await?;
        // The log has no index of times. Positions have no gaps, so it is searched by halves.
        let (mut before, mut until) = (Position::START.0, head.0);
        while before < until {
            let middle = before + (until - before + 1) / 2;
            let recorded_at = sqlx::query_scalar("SELECT inserted_at FROM event WHERE event_id = $1").bind(middle);
            let recorded_at: Option<OffsetDateTime> = recorded_at.fetch_optional(&mut *connection).await?;
            if recorded_at.is_some_and(|recorded_at| recorded_at < time) { before = middle } else { until = middle - 1 }
        }
        connection.done();
        Ok(Position(before))
    })
    .await
}

type Query<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, Columns, sqlx::postgres::PgArguments>;
pub(crate) type Columns = (i64, String, Vec<u8>, Json<Box<RawValue>>, OffsetDateTime);

pub(crate) async fn entries<E: LogEvent>(store: &EventStore<E>, query: Query<'_>) -> Result<Vec<Entry<E>>, StoreError> {
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
        payload,
        metadata: metadata.0,
        recorded_at,
    };
    Ok(rows.into_iter().map(entry).collect())
}
