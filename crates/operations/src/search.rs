//! Events found by id, type, correlation id, cause or position. Each question uses an index, and reads a bounded number of events.

use std::collections::HashMap;

use event_store::{
    EventStore, LogEvent, Metadata, Pool, Position, StoreError,
    connection::{PooledConnection, with_timeout},
};
use uuid::Uuid;

use crate::{
    ask::ask,
    log::{COLUMNS, Entry, entries},
};

/// The most events of the log that one search without an id looks through.
pub const SEARCHED: i64 = 100_000;
/// The most events of a flow.
const FLOW: i64 = 1_000;
/// The most causes that are followed up.
const DEPTH: usize = 32;

/// Which events to find: those that meet every condition.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// A domain id: its name in the log's schema, and its value.
    pub id: Option<(&'a str, Uuid)>,
    /// The types; all if empty.
    pub types: &'a [String],
    /// The correlation id.
    pub correlation_id: Option<&'a str>,
    /// The position before the first of them.
    pub after: Position,
    /// The position of the last of them, if it is there.
    pub until: Position,
}

impl Default for Search<'_> {
    fn default() -> Self {
        Self { id: None, types: &[], correlation_id: None, after: Position::START, until: Position(i64::MAX) }
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Found<E> {
    /// The newest of the events, the newest first.
    pub events: Vec<Entry<E>>,
    /// If there may be more: the position up to which the search continues.
    pub continue_at: Option<Position>,
    /// The index that served the search.
    pub index: String,
}

/// Finds the newest `count` of these events. With an id, the id's index serves it. Otherwise it looks through the newest [`SEARCHED`] events of
/// the range, by position.
///
/// # Errors
/// The log cannot be read, or has no such domain id.
pub async fn search<E: LogEvent>(store: &EventStore<E>, search: Search<'_>, count: i64) -> Result<Found<E>, StoreError> {
    let until = search.until.min(store.head().await?);
    let (sql, after, index) = match search.id {
        None => (by_position(), search.after.max(Position(until.0 - SEARCHED)), "event_pkey".to_owned()),
        Some((id, _)) => {
            let id = *store
                .domain_ids()
                .iter()
                .find(|known| **known == id)
                .ok_or_else(|| StoreError::Schema(format!("it has no domain id {id}")))?;
            let by_type = ask(store.pool(), async |connection| {
                sqlx::query_scalar(
                    "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                                    JOIN pg_attribute b ON b.attrelid = i.indrelid AND b.attnum = i.indkey[1]
                                    WHERE i.indrelid = 'public.event'::regclass AND a.attname = $1 AND b.attname = 'event_type')",
                )
                .bind(id)
                .fetch_one(connection)
                .await
            })
            .await?;
            (if by_type { by_id_and_type(id) } else { by_id(id) }, search.after, format!("event_{id}"))
        }
    };
    // An index by type is probed for each type.
    let types = match search.types {
        [] => E::SCHEMA.events.iter().map(ToString::to_string).collect(),
        some => some.to_vec(),
    };
    let query = sqlx::query_as(&sql)
        .bind(after)
        .bind(until)
        .bind(types)
        .bind(search.types.is_empty())
        .bind(search.correlation_id)
        .bind(count)
        .bind(search.id.map(|(_, value)| value));
    let events = entries(store, query).await?;
    let is_full = i64::try_from(events.len()).is_ok_and(|found| found >= count);
    let continue_at = match events.last() {
        Some(last) if is_full => Some(Position(last.position.0 - 1)),
        _ => Some(after),
    };
    Ok(Found { events, continue_at: continue_at.filter(|at| *at > search.after), index })
}

/// The conditions on an event that no index serves. $4: whether every type is meant. Unknown ones are then found, too.
const OTHERS: &str = "($5::text IS NULL OR metadata ->> 'correlation_id' = $5)";

fn by_position() -> String {
    format!(
        "SELECT {COLUMNS} FROM public.event
         WHERE event_id > $1 AND event_id <= $2 AND ($4 OR event_type = ANY ($3)) AND {OTHERS}
         ORDER BY event_id DESC LIMIT $6"
    )
}

/// Rows are compared, because PostgreSQL would otherwise read the log by position if the statistics are wrong.
fn by_id(id: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM public.event
         WHERE {id} IS NOT NULL AND ({id}, event_id) > ($7::uuid, $1) AND ({id}, event_id) <= ($7::uuid, $2)
           AND ($4 OR event_type = ANY ($3)) AND {OTHERS}
         ORDER BY {id} DESC, event_id DESC LIMIT $6"
    )
}

fn by_id_and_type(id: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM unnest($3::text[]) AS t (type) CROSS JOIN LATERAL (
             SELECT {COLUMNS} FROM public.event
             WHERE {id} IS NOT NULL AND ({id}, event_type, event_id) > ($7::uuid, t.type, $1)
               AND ({id}, event_type, event_id) <= ($7::uuid, t.type, $2) AND {OTHERS}
             ORDER BY {id} DESC, event_type DESC, event_id DESC LIMIT $6
         ) e ORDER BY event_id DESC LIMIT $6"
    )
}

/// Counts the events of each type after a position, of at most `count` events. Returns also the position up to which it counted.
///
/// # Errors
/// The log cannot be read.
pub async fn count_types(pool: &Pool, after: Position, count: i64) -> Result<(HashMap<String, i64>, Position), StoreError> {
    let counted = sqlx::query!(
        r#"SELECT event_type, count(*) AS "events!", max(event_id) AS "last!" FROM event
           WHERE event_id > $1 AND event_id <= $1 + $2 GROUP BY event_type"#,
        after.0,
        count
    );
    let rows = ask(pool, async |connection| counted.fetch_all(connection).await).await?;
    let up_to = rows.iter().map(|row| Position(row.last)).max().unwrap_or(after);
    Ok((rows.into_iter().map(|row| (row.event_type, row.events)).collect(), up_to))
}

/// An event, what it led to, and how deep it is in the tree.
#[derive(Debug)]
pub struct Step<E> {
    /// 0 for an event whose cause is no event.
    pub depth: usize,
    /// What caused it: a position, or a message's topic, partition and offset.
    pub cause: Option<String>,
    /// The event.
    pub event: Entry<E>,
}

/// The tree of causes and effects around an event.
#[derive(Debug)]
pub struct Flow<E> {
    /// The correlation id that its events share.
    pub correlation_id: Option<String>,
    /// The events: each is followed by its effects.
    pub steps: Vec<Step<E>>,
    /// The log was searched for effects up to here.
    pub searched_to: Position,
}

/// Follows an event to its first cause, and finds all effects of that: the events with the same correlation id, in the [`SEARCHED`] events after
/// it. Returns `None` if there is no event at the position.
///
/// # Errors
/// The log cannot be read.
pub async fn flow<E: LogEvent>(store: &EventStore<E>, position: Position) -> Result<Option<Flow<E>>, StoreError> {
    let head = store.head().await?;
    let Some(mut first) = at(store, position).await? else { return Ok(None) };
    for _ in 0..DEPTH {
        let cause = metadata(&first).causation_id.and_then(|cause| cause.parse().ok()).map(Position);
        // A cause is older than its effect. Anything else was written by hand.
        let Some(cause) = cause.filter(|cause| *cause < first.position) else { break };
        let Some(earlier) = at(store, cause).await? else { break };
        first = earlier;
    }
    let correlation_id = metadata(&first).correlation_id;
    let searched_to = Position(first.position.0.saturating_add(SEARCHED).min(head.0));
    let sql = format!(
        "SELECT {COLUMNS} FROM public.event
         WHERE event_id > $1 AND event_id <= $2 AND (metadata ->> 'correlation_id' = $3 OR $3 IS NULL AND metadata ->> 'causation_id' = $1::text)
         ORDER BY event_id LIMIT $4"
    );
    // The events of one append come together: the first of them may be before this one.
    let before = Position(first.position.0.saturating_sub(DEPTH as i64).max(0));
    let after = if correlation_id.is_some() { before } else { first.position };
    let query = sqlx::query_as(&sql).bind(after).bind(searched_to).bind(&correlation_id).bind(FLOW);
    let mut found = entries(store, query).await?;
    if correlation_id.is_none() {
        found.insert(0, first);
    }
    Ok(Some(Flow { correlation_id, steps: tree(found), searched_to }))
}

async fn at<E: LogEvent>(store: &EventStore<E>, position: Position) -> Result<Option<Entry<E>>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM public.event WHERE event_id = $1");
    Ok(entries(store, sqlx::query_as(&sql).bind(position)).await?.pop())
}

/// Reads an event's metadata. What cannot be read counts as missing.
pub fn metadata<E>(entry: &Entry<E>) -> Metadata {
    serde_json::from_str(entry.metadata.get()).unwrap_or_default()
}

/// Orders events so that each is followed by its effects.
fn tree<E>(events: Vec<Entry<E>>) -> Vec<Step<E>> {
    let positions: Vec<Position> = events.iter().map(|event| event.position).collect();
    let mut effects: HashMap<Option<Position>, Vec<Step<E>>> = HashMap::new();
    for event in events {
        let cause = metadata(&event).causation_id;
        let of = cause.as_ref().and_then(|cause| cause.parse().ok()).map(Position);
        let of = of.filter(|of| *of < event.position && positions.contains(of));
        effects.entry(of).or_default().push(Step { depth: 0, cause, event });
    }
    let mut steps = vec![];
    // The next one to show is the last.
    let mut left = effects.remove(&None).unwrap_or_default();
    left.reverse();
    while let Some(step) = left.pop() {
        let its = effects.remove(&Some(step.event.position)).unwrap_or_default();
        left.extend(its.into_iter().rev().map(|effect| Step { depth: step.depth + 1, ..effect }));
        steps.push(step);
    }
    steps
}

/// The rows of a table of a projection that belong to an id.
#[derive(Debug)]
pub struct RowsOf {
    /// The projection.
    pub projection: String,
    /// The table, with its schema.
    pub table: String,
    /// The rows as JSON, 100 at most.
    pub rows: Vec<String>,
}

/// Reads the rows that the serving builds and automations have of an id. A table takes part if one of its indexes begins with the column.
///
/// # Errors
/// The database failed, or the role lacks a privilege.
pub async fn rows_of(pool: &Pool, column: &str, id: Uuid) -> Result<Vec<RowsOf>, StoreError> {
    with_timeout(async {
        let mut connection = PooledConnection::from(pool).await?;
        let tables: Vec<(String, String)> = sqlx::query_as(
            "SELECT p.name, format('%I.%I', p.build, t.name) FROM projection p CROSS JOIN LATERAL unnest(p.tables) AS t (name)
             WHERE p.status = 'serving' AND EXISTS (
                 SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                 WHERE i.indrelid = to_regclass(format('%I.%I', p.build, t.name)) AND a.attname = $1)
             ORDER BY 1, 2",
        )
        .bind(column)
        .fetch_all(&mut *connection)
        .await?;
        let mut found = vec![];
        for (projection, table) in tables {
            let column = column.replace('"', "\"\"");
            let sql = format!("SELECT to_jsonb(r)::text FROM {table} AS r WHERE r.\"{column}\" = $1 LIMIT 100");
            let rows = sqlx::query_scalar(&sql).bind(id).fetch_all(&mut *connection).await?;
            found.push(RowsOf { projection, table, rows });
        }
        connection.done();
        Ok(found)
    })
    .await
}
