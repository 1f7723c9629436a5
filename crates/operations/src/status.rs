//! The state of projections.

use event_store::{Pool, Position, StoreError};
use projections::tenths;
use serde::Serialize;
use uuid::Uuid;

use crate::ask::ask;

/// A build of a projection with the positions of its segments.
#[derive(Debug, Clone, Serialize)]
pub struct Build {
    /// The projection.
    pub name: String,
    /// The schema of its tables.
    pub build: String,
    /// The version of the projection.
    pub version: i32,
    /// `serving`, `building` or `retired`.
    pub status: String,
    /// Whether it serves as soon as it has caught up.
    pub switch_when_ready: bool,
    /// Whether an operator paused it.
    pub paused: bool,
    /// The head of the log when the build was found to be ahead of it. It applies nothing until it is rebuilt.
    pub ahead_of: Option<Position>,
    /// The position that every segment has reached.
    pub position: Position,
    /// The log positions that the segment furthest behind has yet to apply.
    pub lag_events: i64,
    /// The age of the oldest event among these, in seconds.
    pub lag_seconds: f64,
    /// The number of parked keys.
    pub parked: i64,
    /// Events per second that all replicas apply, over the last 5 seconds.
    pub events_per_second: f64,
    /// Events per batch in that time.
    pub batch: f64,
    /// Its segments.
    pub segments: Vec<Segment>,
}

impl Build {
    /// Returns its progress to the head of the log, from 0 to 1, over all segments.
    pub fn progress(&self, head: Position) -> f64 {
        let applied: i64 = self.segments.iter().map(|segment| segment.position.0.min(head.0)).sum();
        let all = i64::try_from(self.segments.len()).unwrap_or_default() * head.0;
        if all == 0 { 1.0 } else { applied as f64 / all as f64 }
    }

    /// Returns whether it belongs to an automation, which has no second build.
    pub fn is_automation(&self) -> bool {
        self.build == "automation"
    }
}

/// A segment of a build.
#[derive(Debug, Clone, Serialize)]
pub struct Segment {
    /// The number, from 0.
    pub segment: i32,
    /// The stored position. Its owner may be further.
    pub position: Position,
    /// The log positions from there to the head.
    pub lag_events: i64,
    /// The age of the next event, in seconds.
    pub lag_seconds: f64,
    /// The living replica that owns it.
    pub replica: Option<Uuid>,
    /// Whether it is blocked before an event that cannot be applied, or because its build is ahead of the log.
    pub blocked: bool,
}

/// A living process that runs a projection.
#[derive(Debug, Clone, Serialize)]
pub struct Replica {
    /// The projection.
    pub name: String,
    /// Its id.
    pub id: Uuid,
    /// The version that it runs.
    pub version: i32,
}

/// Reads the head of the log and every build of every projection, in one snapshot.
///
/// # Errors
/// The database failed, or the role lacks a privilege.
pub async fn builds(pool: &Pool) -> Result<(Position, Vec<Build>), StoreError> {
    let asked = sqlx::query!(
        r#"SELECT h.head AS "head!", p.name AS "name?", p.build AS "build?", p.version AS "version?", p.status AS "status?",
                  p.switch_when_ready AS "switch_when_ready?", p.paused AS "paused?",
                  p.ahead_of AS "ahead_of?: Position", c.segment AS "segment?", c.position AS "position?",
                  greatest(h.head - c.position, 0) AS "lag_events?",
                  coalesce((SELECT extract(epoch FROM clock_timestamp() - e.inserted_at)::float8 FROM event e
                            WHERE e.event_id = c.position + 1), 0) AS "lag_seconds!",
                  (SELECT r.id FROM replica r
                   WHERE r.name = c.name AND r.id = c.owner AND r.beaten_at + r.lease > clock_timestamp()) AS replica,
                  (SELECT count(*) FROM parked_key k WHERE k.name = p.name AND k.build = p.build) AS "parked!",
                  coalesce(c.position < c.blocked_at, false) OR p.ahead_of IS NOT NULL AS "blocked!",
                  a.events AS "events_per_second!", coalesce(a.events / nullif(a.batches, 0), 0) AS "batch!"
           FROM (SELECT coalesce(max(event_id), 0) AS head FROM event) h
           LEFT JOIN (projection p JOIN checkpoint c USING (name, build)) ON true
           CROSS JOIN LATERAL (
               SELECT coalesce(sum((r.throughput -> p.build ->> 'events')::float8), 0) AS events,
                      sum((r.throughput -> p.build ->> 'batches')::float8) AS batches
               FROM replica r WHERE r.name = p.name AND r.beaten_at + r.lease > clock_timestamp()
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
            blocked: row.blocked,
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
                ahead_of: row.ahead_of,
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

/// Returns the rebuild that a projection's rebuild would continue: one of the same version, or a newer one that a living replica runs.
pub fn running_rebuild<'a>(builds: &'a [Build], serving: &Build, replicas: &[Replica]) -> Option<&'a Build> {
    builds.iter().find(|build| {
        let is_alive = || replicas.iter().any(|one| one.name == build.name && one.version == build.version);
        let is_newer = build.version > serving.version && is_alive();
        build.name == serving.name && build.status == "building" && (build.version == serving.version || is_newer)
    })
}

/// Why a projection cannot switch back to its retired build.
#[derive(Debug, thiserror::Error)]
pub enum NoWayBack {
    /// There is no retired build.
    #[error("{0} has no retired build")]
    NoBuild(String),
    /// A rebuild has emptied it.
    #[error("A rebuild of {0} has replaced the retired build")]
    Replaced(String),
    /// No replica would let it catch up.
    #[error("The retired build of {0} has version {1}, which no running process has")]
    NoReplica(String, i32),
    /// It has events that the log does not have.
    #[error("The retired build of {0} is ahead of the log, which was restored without it")]
    Ahead(String),
}

/// Checks that a projection can switch back to its retired build.
///
/// # Errors
/// Why it cannot.
pub fn way_back(builds: &[Build], replicas: &[Replica], name: &str) -> Result<(), NoWayBack> {
    let other = builds.iter().find(|build| build.name == name && build.status != "serving");
    let other = other.ok_or_else(|| NoWayBack::NoBuild(name.to_owned()))?;
    if other.status != "retired" {
        return Err(NoWayBack::Replaced(name.to_owned()));
    }
    if !replicas.iter().any(|replica| replica.name == name && replica.version == other.version) {
        return Err(NoWayBack::NoReplica(name.to_owned(), other.version));
    }
    if other.ahead_of.is_some() {
        return Err(NoWayBack::Ahead(name.to_owned()));
    }
    Ok(())
}

/// Reads the living replicas.
///
/// # Errors
/// As [`builds`].
pub async fn replicas(pool: &Pool) -> Result<Vec<Replica>, StoreError> {
    let alive =
        sqlx::query_as!(Replica, "SELECT name, id, version FROM replica WHERE beaten_at + lease > clock_timestamp() ORDER BY name, id");
    ask(pool, async |connection| alive.fetch_all(connection).await).await
}
