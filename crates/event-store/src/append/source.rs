//! Appending from another log, each message once: a batch's events and its partition's next offset are written in one call.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sqlx::{Row, types::Json};
use uuid::Uuid;

use crate::{
    connection::{Pool, PooledConnection, with_timeout},
    error::StoreError,
    event::{LogEvent, Metadata, encode, ids_of},
    position::Position,
    query::query_item::placeholders,
};

/// A partition of a topic, read by one consumer group.
#[derive(Debug, Clone, Copy)]
pub struct SourcePartition<'a> {
    /// The consumer group.
    pub consumer: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// The partition's number.
    pub partition: i32,
}

/// A message that was read, as it is recognised again. A topic that was created again has another message at its offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceMessage {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in milliseconds since 1970, if it has one.
    pub timestamp: Option<i64>,
    /// The SHA-256 of its value, in hexadecimal digits.
    pub sha256: String,
}

/// The offset of a partition's next message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextOffset {
    /// The offset.
    pub offset: i64,
    /// The last message before it that was read, if it is known.
    pub last: Option<SourceMessage>,
}

impl From<i64> for NextOffset {
    fn from(offset: i64) -> Self {
        Self { offset, last: None }
    }
}

/// The outcome of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translated {
    /// The events were written, and the stored offset moved.
    Appended {
        /// The position of the newest event.
        head: Position,
    },
    /// The stored offset was another one than expected. Nothing was written; the consumer must continue at the stored offset.
    Moved {
        /// The stored offset; `None` if the partition was never read.
        stored: Option<i64>,
    },
}

/// Appends batches from another log.
pub(crate) struct SourceAppender {
    pool: Pool,
    ids: Vec<&'static str>,
    sql: String,
}

impl SourceAppender {
    pub(crate) fn new(pool: Pool, ids: Vec<&'static str>) -> Self {
        let sql = format!("SELECT moved, stored_offset, head FROM append_events_from_source({})", placeholders(1, 9 + ids.len()));
        Self { pool, ids, sql }
    }

    /// See [`EventStore::stored_offsets`](crate::EventStore::stored_offsets).
    pub(crate) async fn stored_offsets(&self, consumer: &str, topic: &str) -> Result<HashMap<i32, NextOffset>, StoreError> {
        let rows: Vec<(i32, i64, Option<Json<SourceMessage>>)> = with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            let stored = "SELECT partition, next_offset, last_message FROM source_offset WHERE consumer = $1 AND topic = $2";
            let rows = sqlx::query_as(stored).bind(consumer).bind(topic).fetch_all(&mut *connection).await?;
            connection.done();
            Ok(rows)
        })
        .await?;
        let next = |(partition, offset, last): (i32, i64, Option<Json<SourceMessage>>)| {
            (partition, NextOffset { offset, last: last.map(|Json(last)| last) })
        };
        Ok(rows.into_iter().map(next).collect())
    }

    /// See [`EventStore::append_from`](crate::EventStore::append_from).
    pub(crate) async fn append_from<E: LogEvent>(
        &self,
        source: SourcePartition<'_>,
        from: Option<i64>,
        to: NextOffset,
        events: &[(E, Metadata)],
    ) -> Result<Translated, StoreError> {
        let ids = self.ids.len();
        let (mut types, mut payloads, mut metadata, mut columns) = (vec![], vec![], vec![], vec![Vec::<Option<Uuid>>::new(); ids]);
        for (event, known) in events {
            types.push(event.name());
            payloads.push(encode(event)?);
            // Each message is an append of its own.
            metadata.push(known.stored(Uuid::now_v7()));
            for (column, id) in columns.iter_mut().zip(ids_of(event, &self.ids)?) {
                column.push(id);
            }
        }
        let query = sqlx::query(&self.sql)
            .bind(source.consumer)
            .bind(source.topic)
            .bind(source.partition)
            .bind(from)
            .bind(to.offset)
            .bind(to.last.map(Json))
            .bind(types)
            .bind(payloads)
            .bind(metadata);
        let permit = self.pool.read_permit().await?;
        let (row, epoch) = with_timeout(async {
            let mut connection = PooledConnection::from(&self.pool).await?;
            let row = columns.into_iter().fold(query, sqlx::query::Query::bind).fetch_one(&mut *connection).await?;
            let epoch = connection.epoch();
            connection.done();
            Ok((row, epoch))
        })
        .await?;
        drop(permit);
        if !row.try_get::<bool, _>(0)? {
            return Ok(Translated::Moved { stored: row.try_get(1)? });
        }
        let head = row.try_get(2)?;
        self.pool.connector().head_watcher().committed(head, epoch);
        Ok(Translated::Appended { head })
    }
}

/// How far a consumer group has translated a partition into the log.
#[derive(Debug, Clone, Serialize)]
pub struct StoredOffset {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
    /// The offset of the next message to translate.
    pub next_offset: i64,
    /// Seconds since the offset last moved.
    pub age_seconds: f64,
}

/// Returns every stored offset of every consumer group.
///
/// # Errors
/// If the database is unreachable or the role may not read the offsets.
pub async fn stored_offsets(pool: &Pool) -> Result<Vec<StoredOffset>, StoreError> {
    let stored = sqlx::query_as!(
        StoredOffset,
        r#"SELECT consumer AS "group", topic, partition, next_offset,
                  extract(epoch FROM clock_timestamp() - updated_at)::float8 AS "age_seconds!"
           FROM source_offset ORDER BY consumer, topic, partition"#
    );
    with_timeout(async {
        let mut connection = PooledConnection::from(pool).await?;
        let stored = stored.fetch_all(&mut *connection).await?;
        connection.done();
        Ok(stored)
    })
    .await
}
