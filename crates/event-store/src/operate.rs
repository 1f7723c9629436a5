//! For operators: how everything stands, what the log holds as it is stored, and what may be set right by hand.
//!
//! Whoever calls these reads every table and may write those of the runtimes: the owner of the database, and no service's role.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgPool, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    EventStore, LogEvent, Position, SourcePartition, StoreError,
    event::decode,
    signals::tenths,
    store::{Lent, in_time},
};

/// The answer of one statement, on a connection of its own and in time.
async fn ask<T>(pool: &PgPool, statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>) -> Result<T, StoreError> {
    in_time(async {
        let mut connection = Lent::from(pool).await?;
        let answer = statement(&mut connection).await?;
        connection.done();
        Ok(answer)
    })
    .await
}

/// A build of a projection, with how far each of its segments has come.
#[derive(Debug, Clone, Serialize)]
pub struct Build {
    /// The projection's name.
    pub name: String,
    /// The schema that its tables stand in.
    pub build: String,
    /// The version of the release that makes it.
    pub version: i32,
    /// `serving`, `building` or `retired`.
    pub status: String,
    /// Whether it goes into service by itself, once it has come as far as the one that is.
    pub switch_when_ready: bool,
    /// Whether it rests, until it is told to go on.
    pub paused: bool,
    /// Up to where every segment has applied the log.
    pub position: Position,
    /// Positions of the log that the segment furthest behind has yet to look at.
    pub lag_events: i64,
    /// For how long the oldest event among those has been in the log.
    pub lag_seconds: f64,
    /// Keys that are parked in it: see [`parked`].
    pub parked: i64,
    /// Events that all replicas apply in a second, and events of a batch, lately: see [`crate::Backlog`].
    pub events_per_second: f64,
    /// See above.
    pub batch: f64,
    /// What it is cut into.
    pub segments: Vec<Segment>,
}

impl Build {
    /// How far it is on its way to the head of the log, from 0 to 1: all its segments together.
    pub fn progress(&self, head: Position) -> f64 {
        let applied: i64 = self.segments.iter().map(|segment| segment.position.0.min(head.0)).sum();
        let all = i64::try_from(self.segments.len()).unwrap_or_default() * head.0;
        if all == 0 { 1.0 } else { applied as f64 / all as f64 }
    }

    /// Whether it is an automation's: never made anew.
    pub fn is_automation(&self) -> bool {
        self.build == "automation"
    }
}

/// A segment of a build.
#[derive(Debug, Clone, Serialize)]
pub struct Segment {
    /// Its number.
    pub segment: i32,
    /// Up to where it has applied the log, as written down: its holder may be further.
    pub position: Position,
    /// Positions from there to the head.
    pub lag_events: i64,
    /// For how long the next event has been in the log.
    pub lag_seconds: f64,
    /// The replica that holds it, where that is alive.
    pub replica: Option<Uuid>,
    /// Whether it stands before an event that cannot be applied: see [`parked`].
    pub stopped: bool,
}

/// A process that runs a projection, and is alive.
#[derive(Debug, Clone, Serialize)]
pub struct Replica {
    /// The projection.
    pub name: String,
    /// What segments name it by.
    pub id: Uuid,
    /// The version that it makes.
    pub version: i32,
}

/// The head of the log, and every build of every projection in the same snapshot.
///
/// # Errors
/// Where the database is away, or the role may not.
pub async fn builds(pool: &PgPool) -> Result<(Position, Vec<Build>), StoreError> {
    let asked = sqlx::query!(
        r#"SELECT h.head AS "head!", p.name AS "name?", p.build AS "build?", p.version AS "version?", p.status AS "status?",
                  p.switch_when_ready AS "switch_when_ready?", p.paused AS "paused?", c.segment AS "segment?", c.position AS "position?",
                  greatest(h.head - c.position, 0) AS "lag_events?",
                  coalesce((SELECT extract(epoch FROM clock_timestamp() - e.inserted_at)::float8 FROM event e
                            WHERE e.event_id = c.position + 1), 0) AS "lag_seconds!",
                  (SELECT r.id FROM replica r
                   WHERE r.name = c.name AND r.id = c.owner AND r.alive_until > clock_timestamp()) AS replica,
                  (SELECT count(*) FROM parked k WHERE k.name = p.name AND k.build = p.build) AS "parked!",
                  coalesce(c.position < c.stopped_at, false) AS "stopped!",
                  a.events AS "events_per_second!", coalesce(a.events / nullif(a.batches, 0), 0) AS "batch!"
           FROM (SELECT coalesce(max(event_id), 0) AS head FROM event) h
           LEFT JOIN (projection p JOIN checkpoint c USING (name, build)) ON true
           CROSS JOIN LATERAL (
               SELECT coalesce(sum((r.pace -> p.build ->> 'events')::float8), 0) AS events,
                      sum((r.pace -> p.build ->> 'batches')::float8) AS batches
               FROM replica r WHERE r.name = p.name AND r.alive_until > clock_timestamp()
           ) a
           ORDER BY p.name, p.status = 'serving' DESC, p.build, c.segment"#
    );
    let rows = ask(pool, async |connection| asked.fetch_all(connection).await).await?;
    let head = Position(rows.first().map_or(0, |row| row.head));
    let mut builds: Vec<Build> = vec![];
    for row in rows {
        let (Some(name), Some(build), Some(segment), Some(position)) = (row.name, row.build, row.segment, row.position) else { continue };
        let segment = Segment {
            segment,
            position: Position(position),
            lag_events: row.lag_events.unwrap_or_default(),
            lag_seconds: row.lag_seconds,
            replica: row.replica,
            stopped: row.stopped,
        };
        match builds.last_mut().filter(|last| last.name == name && last.build == build) {
            Some(last) => last.segments.push(segment),
            None => builds.push(Build {
                name,
                build,
                version: row.version.unwrap_or_default(),
                status: row.status.unwrap_or_default(),
                switch_when_ready: row.switch_when_ready.unwrap_or_default(),
                paused: row.paused.unwrap_or_default(),
                position: Position::START,
                lag_events: 0,
                lag_seconds: 0.0,
                parked: row.parked,
                events_per_second: tenths(row.events_per_second),
                batch: tenths(row.batch),
                segments: vec![segment],
            }),
        }
    }
    for build in &mut builds {
        build.position = build.segments.iter().map(|segment| segment.position).min().unwrap_or_default();
        build.lag_events = build.segments.iter().map(|segment| segment.lag_events).max().unwrap_or_default();
        build.lag_seconds = build.segments.iter().map(|segment| segment.lag_seconds).fold(0.0, f64::max);
    }
    Ok((head, builds))
}

/// The replicas that are alive.
///
/// # Errors
/// As [`builds`].
pub async fn replicas(pool: &PgPool) -> Result<Vec<Replica>, StoreError> {
    let alive = sqlx::query_as!(Replica, "SELECT name, id, version FROM replica WHERE alive_until > clock_timestamp() ORDER BY name, id");
    ask(pool, async |connection| alive.fetch_all(connection).await).await
}

/// What a build cannot apply, and where that stands: a parked key, or segments before an event for which no key can be parked.
#[derive(Debug, Clone, Serialize)]
pub struct Parked {
    /// The projection.
    pub projection: String,
    /// The schema that the build's tables stand in.
    pub build: String,
    /// The build's: `serving` or `building`.
    pub status: String,
    /// The key; none where segments stand.
    pub key: Option<Uuid>,
    /// Those that stand.
    pub segments: Option<Vec<i32>>,
    /// The event that could not be applied.
    pub position: Position,
    /// Why.
    pub error: String,
    /// How often that was tried.
    pub attempts: i32,
    /// For how long it has been so.
    pub since_seconds: f64,
    /// Events in the key's queue, that one among them.
    pub queued: i64,
    /// Whether it is to be tried again, and was not yet.
    pub retry_asked: bool,
}

/// What is parked and what stands, of one projection or of all. What stands is tried again by itself.
///
/// # Errors
/// As [`builds`].
pub async fn parked(pool: &PgPool, projection: Option<&str>) -> Result<Vec<Parked>, StoreError> {
    let listed = sqlx::query_as!(
        Parked,
        r#"SELECT name AS "projection!", build AS "build!", status AS "status!", key, segments, position AS "position!: Position",
                  error AS "error!", attempts AS "attempts!",
                  extract(epoch FROM clock_timestamp() - since)::float8 AS "since_seconds!", queued AS "queued!", retry_asked AS "retry_asked!"
           FROM (
               SELECT k.name, k.build, p.status, k.key, NULL::integer[] AS segments, k.position, k.error, k.attempts, k.parked_at AS since,
                      (SELECT count(*) FROM parked_event q WHERE q.name = k.name AND q.build = k.build AND q.key = k.key) AS queued,
                      k.retry_asked_at IS NOT NULL AS retry_asked
               FROM parked k JOIN projection p USING (name, build)
               UNION ALL
               SELECT c.name, c.build, p.status, NULL, array_agg(c.segment ORDER BY c.segment), c.stopped_at, min(c.stopped_error),
                      max(c.stopped_attempts), min(c.stopped_since), 0, false
               FROM checkpoint c JOIN projection p USING (name, build)
               WHERE c.position < c.stopped_at
               GROUP BY c.name, c.build, p.status, c.stopped_at
           ) stands
           WHERE status <> 'retired' AND ($1::text IS NULL OR name = $1)
           ORDER BY name, status DESC, since, key"#,
        projection
    );
    ask(pool, async |connection| listed.fetch_all(connection).await).await
}

/// The events in a parked key's queue, in their order, so many at the most.
///
/// # Errors
/// Where the log cannot be read.
pub async fn parked_queue<E: LogEvent>(store: &EventStore<E>, of: &Parked, count: i64) -> Result<Vec<Entry<E>>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM event WHERE event_id = ANY (ARRAY(
             SELECT position FROM parked_event WHERE name = $1 AND build = $2 AND key = $3 ORDER BY position LIMIT $4))
         ORDER BY event_id"
    );
    entries(store, sqlx::query_as(&sql).bind(&of.projection).bind(&of.build).bind(of.key).bind(count)).await
}

/// Asks for parked keys to be tried again, by the replicas that hold their segments: of one projection or of all, these keys or all. Answers
/// those that are parked, as they stood.
///
/// # Errors
/// As [`builds`].
pub async fn retry_parked(pool: &PgPool, projection: Option<&str>, keys: Option<&[Uuid]>) -> Result<Vec<Parked>, StoreError> {
    let asked = sqlx::query!(
        "UPDATE parked SET retry_asked_at = clock_timestamp()
         WHERE ($1::text IS NULL OR name = $1) AND ($2::uuid[] IS NULL OR key = ANY ($2)) RETURNING name, build, key",
        projection,
        keys
    );
    let before = parked(pool, projection).await?;
    let asked = ask(pool, async |connection| asked.fetch_all(connection).await).await?;
    let is_asked =
        |parked: &Parked| asked.iter().any(|row| row.name == parked.projection && row.build == parked.build && Some(row.key) == parked.key);
    Ok(before.into_iter().filter(is_asked).collect())
}

/// What is to be skipped, and why.
#[derive(Debug, Clone, Copy)]
pub struct Skip<'a> {
    /// The projection.
    pub projection: &'a str,
    /// The parked key; none for an event that segments stand before.
    pub key: Option<Uuid>,
    /// The event: the first in the key's queue, or the one that segments stand before.
    pub position: Position,
    /// Why it may be skipped.
    pub reason: &'a str,
    /// Who decided so.
    pub by: &'a str,
}

/// Takes an event out of the queue of a parked key, never to be applied to it, and has the rest tried again; or has the segments that stand
/// before an event go on without it. Recorded. Answers the builds in which it was so: none where the event is not that one.
///
/// # Errors
/// As [`builds`].
pub async fn skip(pool: &PgPool, skip: Skip<'_>) -> Result<Vec<String>, StoreError> {
    let Skip { projection, key, position, reason, by } = skip;
    in_time(async {
        let mut transaction = pool.begin().await?;
        if key.is_some() {
            // Who is trying it at this moment is waited for.
            sqlx::query!("SELECT FROM parked WHERE name = $1 AND key = $2 ORDER BY build FOR UPDATE", projection, key)
                .execute(&mut *transaction)
                .await?;
        }
        let builds = sqlx::query_scalar!(
            r#"WITH stands AS (
                   SELECT k.build, k.error, k.attempts FROM parked k
                   WHERE k.name = $1 AND k.key = $2 AND $3 = (
                       SELECT min(q.position) FROM parked_event q WHERE q.name = k.name AND q.build = k.build AND q.key = k.key)
                   UNION ALL
                   SELECT build, min(stopped_error), max(stopped_attempts) FROM checkpoint
                   WHERE $2::uuid IS NULL AND name = $1 AND stopped_at = $3 AND position < stopped_at GROUP BY build
               )
               INSERT INTO skipped_event (name, build, started_at, key, position, error, attempts, reason, skipped_by)
               SELECT $1, build, p.started_at, $2, $3, s.error, s.attempts, $4, $5
               FROM stands s JOIN projection p USING (build) WHERE p.name = $1 AND p.status <> 'retired'
               RETURNING build"#,
            projection,
            key,
            position.0,
            reason,
            by
        )
        .fetch_all(&mut *transaction)
        .await?;
        sqlx::query!(
            "DELETE FROM parked_event WHERE name = $1 AND key = $2 AND position = $3 AND build = ANY ($4)",
            projection,
            key,
            position.0,
            &builds
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "UPDATE parked SET retry_asked_at = clock_timestamp() WHERE name = $1 AND key = $2 AND build = ANY ($3)",
            projection,
            key,
            &builds
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(builds)
    })
    .await
}

/// An event that was skipped.
#[derive(Debug, Clone, Serialize)]
pub struct Skipped {
    /// The projection.
    pub projection: String,
    /// The schema that the build's tables stand in.
    pub build: String,
    /// The key that it was parked for.
    pub key: Option<Uuid>,
    /// The event.
    pub position: Position,
    /// Why it could not be applied.
    pub error: String,
    /// How often that was tried.
    pub attempts: i32,
    /// Why it might be skipped.
    pub reason: String,
    /// Who decided so.
    pub skipped_by: String,
    /// How long ago.
    pub age_seconds: f64,
}

/// What was ever skipped, of one projection or of all.
///
/// # Errors
/// As [`builds`].
pub async fn skipped(pool: &PgPool, projection: Option<&str>) -> Result<Vec<Skipped>, StoreError> {
    let listed = sqlx::query_as!(
        Skipped,
        r#"SELECT name AS projection, build, key, position AS "position: Position", error, attempts, reason, skipped_by,
                  extract(epoch FROM clock_timestamp() - skipped_at)::float8 AS "age_seconds!"
           FROM skipped_event WHERE $1::text IS NULL OR name = $1 ORDER BY id"#,
        projection
    );
    ask(pool, async |connection| listed.fetch_all(connection).await).await
}

/// What an automation has to do, counted.
#[derive(Debug, Clone, Serialize)]
pub struct TodoCounts {
    /// The automation.
    pub automation: String,
    /// To-dos that are yet to be done, those in hand among them.
    pub open: i64,
    /// To-dos that were given up, kept for an operator to retry.
    pub failed: i64,
    /// How long ago the oldest open one was asked for.
    pub oldest_open_seconds: Option<f64>,
    /// How long ago the oldest failed one was asked for.
    pub oldest_failed_seconds: Option<f64>,
}

/// What each automation has to do, counted. Done ones are not: they are as many as ever there were.
///
/// # Errors
/// As [`builds`].
pub async fn todo_counts(pool: &PgPool) -> Result<Vec<TodoCounts>, StoreError> {
    // Each status by an index of its own, which does not hold the done ones.
    let counted = sqlx::query_as!(
        TodoCounts,
        r#"WITH open AS (
               SELECT automation, count(*) AS todos, min(created_at) AS oldest FROM todo WHERE status = 'open' GROUP BY automation
           ), failed AS (
               SELECT automation, count(*) AS todos, min(created_at) AS oldest FROM todo WHERE status = 'failed' GROUP BY automation
           ), known AS (
               SELECT automation FROM open UNION SELECT automation FROM failed UNION SELECT name FROM projection WHERE build = 'automation'
           )
           SELECT k.automation AS "automation!", coalesce(o.todos, 0) AS "open!", coalesce(f.todos, 0) AS "failed!",
                  extract(epoch FROM clock_timestamp() - o.oldest)::float8 AS oldest_open_seconds,
                  extract(epoch FROM clock_timestamp() - f.oldest)::float8 AS oldest_failed_seconds
           FROM known k LEFT JOIN open o USING (automation) LEFT JOIN failed f USING (automation)
           ORDER BY 1"#
    );
    ask(pool, async |connection| counted.fetch_all(connection).await).await
}

/// A to-do as it stands.
#[derive(Debug, Serialize)]
pub struct TodoEntry {
    /// The automation.
    pub automation: String,
    /// What it is for.
    pub key: String,
    /// The position of the event that asked for it.
    pub position: Position,
    /// `open`, `done` or `failed`.
    pub status: String,
    /// How often it was tried.
    pub attempts: i32,
    /// How long ago it was asked for.
    pub age_seconds: f64,
    /// Why the last attempt came to nothing.
    pub last_error: Option<String>,
    /// What is to be done, in the automation's own words.
    pub payload: Box<RawValue>,
}

/// To-dos in the order of the events that asked for them: of one automation or of all, of one status or of each, so many at the most.
///
/// # Errors
/// As [`builds`].
pub async fn todos(pool: &PgPool, automation: Option<&str>, status: Option<&str>, count: i64) -> Result<Vec<TodoEntry>, StoreError> {
    let listed = sqlx::query!(
        r#"SELECT automation, key, position, status, attempts, last_error, payload AS "payload: Json<Box<RawValue>>",
                  extract(epoch FROM clock_timestamp() - created_at)::float8 AS "age_seconds!"
           FROM todo WHERE ($1::text IS NULL OR automation = $1) AND ($2::text IS NULL OR status = $2)
           ORDER BY automation, position, key LIMIT $3"#,
        automation,
        status,
        count
    );
    let rows = in_time(async {
        let mut connection = Lent::from(pool).await?;
        let rows = listed.fetch_all(&mut *connection).await?;
        connection.done();
        Ok(rows)
    })
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| TodoEntry {
            automation: row.automation,
            key: row.key,
            position: Position(row.position),
            status: row.status,
            attempts: row.attempts,
            age_seconds: row.age_seconds,
            last_error: row.last_error,
            payload: row.payload.0,
        })
        .collect())
}

/// Opens failed to-dos of an automation again, as if they had never been tried: these, or all. Answers the keys of those that were failed.
///
/// # Errors
/// As [`builds`].
pub async fn retry_todos(pool: &PgPool, automation: &str, keys: Option<&[String]>) -> Result<Vec<String>, StoreError> {
    let opened = sqlx::query_scalar!(
        "UPDATE todo SET status = 'open', attempts = 0, first_attempt_at = NULL, next_attempt_at = clock_timestamp(), finished_at = NULL
         WHERE automation = $1 AND status = 'failed' AND ($2::text[] IS NULL OR key = ANY ($2)) RETURNING key",
        automation,
        keys
    );
    let mut keys = ask(pool, async |connection| opened.fetch_all(connection).await).await?;
    keys.sort_unstable();
    Ok(keys)
}

/// Up to where a consumer has translated a partition into the log.
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
    /// How long ago it was moved.
    pub age_seconds: f64,
}

/// Every stored offset.
///
/// # Errors
/// As [`builds`].
pub async fn stored_offsets(pool: &PgPool) -> Result<Vec<StoredOffset>, StoreError> {
    let stored = sqlx::query_as!(
        StoredOffset,
        r#"SELECT consumer AS "group", topic, partition, next_offset,
                  extract(epoch FROM clock_timestamp() - updated_at)::float8 AS "age_seconds!"
           FROM translation_offset ORDER BY consumer, topic, partition"#
    );
    ask(pool, async |connection| stored.fetch_all(connection).await).await
}

/// Sets a stored offset. Answers what it was; `None`, and nothing is done, where this consumer never read the partition.
///
/// A translator that is at work finds that it was moved with the next batch, which it gives up, and reads from here.
///
/// # Errors
/// As [`builds`].
pub async fn seek(pool: &PgPool, source: SourcePartition<'_>, to: i64) -> Result<Option<i64>, StoreError> {
    in_time(async {
        let mut transaction = pool.begin().await?;
        // A batch that is being appended compares the offset and moves it under this lock, and would move it once more otherwise.
        sqlx::query!(r#"SELECT event_lock() AS "locked!: ()""#).fetch_one(&mut *transaction).await?;
        let before = sqlx::query_scalar!(
            "SELECT next_offset FROM translation_offset WHERE consumer = $1 AND topic = $2 AND partition = $3 FOR UPDATE",
            source.consumer,
            source.topic,
            source.partition
        )
        .fetch_optional(&mut *transaction)
        .await?;
        sqlx::query!(
            "UPDATE translation_offset SET next_offset = $4, updated_at = clock_timestamp()
             WHERE consumer = $1 AND topic = $2 AND partition = $3",
            source.consumer,
            source.topic,
            source.partition,
            to
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(before)
    })
    .await
}

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

const COLUMNS: &str = "event_id, event_type, payload, metadata, inserted_at";

/// The newest events of those that are meant, so many at the most, in the order of the log.
///
/// # Errors
/// Where the log cannot be read; where its schema has no such id.
pub async fn newest<E: LogEvent>(store: &EventStore<E>, which: Which<'_>, count: i64) -> Result<Vec<Entry<E>>, StoreError> {
    let sql = match which {
        Which::All => format!("SELECT {COLUMNS} FROM event WHERE $1::bigint IS NULL AND $2::uuid IS NULL ORDER BY event_id DESC LIMIT $3"),
        Which::At(_) => format!("SELECT {COLUMNS} FROM event WHERE event_id = $1 AND $2::uuid IS NULL LIMIT $3"),
        // The id's own index first, whatever the planner thinks: walking the log back until enough are found can take all of it.
        Which::Of { id, .. } => match store.shared.ids.iter().find(|known| **known == id) {
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

type Columns = (i64, String, Vec<u8>, Json<Box<RawValue>>, OffsetDateTime);

async fn entries<E: LogEvent>(
    store: &EventStore<E>,
    query: sqlx::query::QueryAs<'_, sqlx::Postgres, Columns, sqlx::postgres::PgArguments>,
) -> Result<Vec<Entry<E>>, StoreError> {
    let rows = in_time(async {
        let mut connection = store.lend().await?;
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
