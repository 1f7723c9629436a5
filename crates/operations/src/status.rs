//! How everything stands.

use event_store::{Position, StoreError};
use projections::tenths;
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::ask::ask;

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
    /// Keys that are parked in it: see [`crate::parked()`].
    pub parked: i64,
    /// Events that all replicas apply in a second, and events of a batch, lately: see [`projections::Backlog`].
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
    /// Whether it stands before an event that cannot be applied: see [`crate::parked()`].
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
                  (SELECT count(*) FROM parked_key k WHERE k.name = p.name AND k.build = p.build) AS "parked!",
                  coalesce(c.position < c.blocked_at, false) AS "stopped!",
                  a.events AS "events_per_second!", coalesce(a.events / nullif(a.batches, 0), 0) AS "batch!"
           FROM (SELECT coalesce(max(event_id), 0) AS head FROM event) h
           LEFT JOIN (projection p JOIN checkpoint c USING (name, build)) ON true
           CROSS JOIN LATERAL (
               SELECT coalesce(sum((r.throughput -> p.build ->> 'events')::float8), 0) AS events,
                      sum((r.throughput -> p.build ->> 'batches')::float8) AS batches
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
