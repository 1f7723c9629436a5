//! The backlog of projections in all processes, e.g. for autoscaling.

use std::collections::BTreeMap;

use event_store::{EventStore, LogEvent, StoreError, connection::with_timeout};
use serde::Serialize;

use crate::{
    replica::Replicas,
    todo::{COUNTED, TodoBacklog},
};

/// How many positions to search for the next event that a projection takes: more than are appended between two heartbeats, which store
/// positions past other events. With a long lease and a high load, a lag may show that is none.
const SEARCHED: i64 = 50_000;

/// The backlog of a projection, by its stored checkpoints. They are at most one heartbeat old.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Backlog {
    /// Log positions from the oldest event that the serving build has yet to apply, to the head.
    pub lag: i64,
    /// The age of that event, in seconds.
    pub lag_seconds: f64,
    /// Whether an operator paused it.
    pub paused: bool,
    /// The number of segments.
    pub segments: i64,
    /// The segments that a living replica owns.
    pub owned: i64,
    /// The number of living replicas.
    pub replicas: i64,
    /// Events per second that all replicas apply to the serving build, over the last 5 seconds. An event without a key counts once per
    /// replica.
    pub events_per_second: f64,
    /// Events per batch in that time; 0 if nothing was applied.
    pub batch: f64,
    /// Parked keys of the serving build.
    pub parked: i64,
    /// Segments of the serving build that are blocked before an event; all, if the build is ahead of the log.
    pub blocked: i64,
    /// The build that is being rebuilt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<Rebuild>,
    /// The to-dos of an automation.
    #[serde(skip)]
    pub todos: Option<TodoBacklog>,
}

/// The backlog of a rebuild.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Rebuild {
    /// As of the serving build.
    pub lag: i64,
    /// From 0 to 1, over all segments.
    pub progress: f64,
    /// As of the serving build.
    pub events_per_second: f64,
    /// As of the serving build.
    pub batch: f64,
}

/// Rounds to tenths.
pub fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// See [`Projections::backlog`](crate::Projections::backlog).
pub(crate) async fn backlog<E: LogEvent>(store: &EventStore<E>, replicas: &Replicas) -> Result<BTreeMap<String, Backlog>, StoreError> {
    let (mut names, mut types): (Vec<String>, Vec<String>) = (vec![], vec![]);
    for replica in replicas.all() {
        names.extend(replica.types.iter().map(|_| replica.name.to_owned()));
        types.extend_from_slice(&replica.types);
    }
    let rows = with_timeout(async {
        let mut connection = store.connection().await?;
        let rows = sqlx::query!(
            r#"SELECT p.name, p.status, p.paused, greatest(h.head - n.next + 1, 0) AS "lag!", s.segments AS "segments!", s.owned AS "owned!",
                          CASE WHEN h.head = 0 THEN 1 ELSE s.applied / (s.segments * h.head)::float8 END AS "progress!",
                          coalesce((SELECT extract(epoch FROM clock_timestamp() - e.inserted_at)::float8 FROM event e
                                    WHERE e.event_id = n.next), 0) AS "lag_seconds!",
                          a.replicas AS "replicas!", a.events AS "events_per_second!", coalesce(a.events / nullif(a.batches, 0), 0) AS "batch!",
                          (SELECT count(*) FROM parked_key k WHERE k.name = p.name AND k.build = p.build) AS "parked!", s.blocked AS "blocked!",
                          w.open AS "open?", w.due AS "due?", w.failed AS "failed?", w.oldest AS "oldest?"
                   FROM (SELECT coalesce(max(event_id), 0) AS head FROM event) h
                   CROSS JOIN (
                       SELECT name, array_agg(event_type) AS types FROM unnest($1::text[], $2::text[]) AS t(name, event_type) GROUP BY name
                   ) r
                   JOIN projection p USING (name)
                   CROSS JOIN LATERAL (
                       SELECT min(c.position) AS lowest, sum(least(c.position, h.head))::float8 AS applied, count(*) AS segments,
                              count(*) FILTER (WHERE EXISTS (
                                  SELECT FROM replica r
                                  WHERE r.name = c.name AND r.id = c.owner AND r.beaten_at + r.lease > clock_timestamp())) AS owned,
                              count(*) FILTER (WHERE c.position < c.blocked_at OR p.ahead_of IS NOT NULL) AS blocked
                       FROM checkpoint c WHERE c.name = p.name AND c.build = p.build
                   ) s
                   -- Other events move a checkpoint only with the heartbeat, and are no backlog.
                   CROSS JOIN LATERAL (
                       SELECT coalesce(min(e.event_id), least(s.lowest + $4, h.head) + 1) AS next FROM event e
                       WHERE e.event_id > s.lowest AND e.event_id <= s.lowest + $4 AND e.event_type = ANY (r.types)
                   ) n
                   CROSS JOIN LATERAL (
                       SELECT count(*) AS replicas, coalesce(sum((r.throughput -> p.build ->> 'events')::float8), 0) AS events,
                              sum((r.throughput -> p.build ->> 'batches')::float8) AS batches
                       FROM replica r WHERE r.name = p.name AND r.beaten_at + r.lease > clock_timestamp()
                   ) a
                   LEFT JOIN LATERAL todo_backlog(p.name, $3) w ON p.build = 'automation'
                   WHERE p.status IN ('serving', 'building') AND s.segments > 0
                   ORDER BY p.status = 'serving' DESC"#,
            &names,
            &types,
            COUNTED,
            SEARCHED
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        Ok(rows)
    })
    .await?;
    let mut backlogs = BTreeMap::new();
    for row in rows {
        let (events_per_second, batch) = (tenths(row.events_per_second), tenths(row.batch));
        if row.status == "serving" {
            let todos = match (row.open, row.due, row.failed) {
                (Some(open), Some(due), Some(failed)) => Some(TodoBacklog { open, due, failed, oldest: row.oldest }),
                _ => None,
            };
            let backlog = Backlog {
                lag: row.lag,
                lag_seconds: row.lag_seconds,
                paused: row.paused,
                segments: row.segments,
                owned: row.owned,
                replicas: row.replicas,
                events_per_second,
                batch,
                parked: row.parked,
                blocked: row.blocked,
                rebuild: None,
                todos,
            };
            backlogs.insert(row.name, backlog);
        } else if let Some(serving) = backlogs.get_mut(&row.name) {
            let (lag, progress) = (row.lag, row.progress);
            serving.rebuild = Some(Rebuild { lag, progress, events_per_second, batch });
        }
    }
    Ok(backlogs)
}
