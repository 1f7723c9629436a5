//! What is still to be done, of the whole system and whichever process is asked: for who starts more of them, or fewer.

use std::collections::BTreeMap;

use event_store::{EventStore, LogEvent, StoreError, connection::with_timeout};

use crate::{
    replica::Replicas,
    todo::{COUNTED, Waiting},
};

/// So many positions are looked at for the first event that a projection takes, after those that it is known to have applied: more than are
/// appended between two heartbeats a second apart, which write down how far it went past what is none of its business. Where the lease is
/// longer they are further apart, and under very much load a lag may show that is none.
const LOOKED_AT: i64 = 50_000;

/// How far a projection is behind, as its replicas have written it down: once a second at the least.
#[derive(Debug, Clone, PartialEq)]
pub struct Backlog {
    /// Positions of the log from the first event that the segment furthest behind has yet to apply, of the build in service.
    pub lag: i64,
    /// For how long that event has been in the log.
    pub lag_seconds: f64,
    /// Whether it rests: more replicas do nothing for it.
    pub paused: bool,
    /// What its keys are cut into, and how many of these are in a living replica's hands.
    pub segments: i64,
    /// See above.
    pub held: i64,
    /// The replicas that are alive.
    pub replicas: i64,
    /// Events of the build in service that they all apply in a second: each as its last heartbeat told, over the 5 seconds before that or,
    /// where heartbeats come less often, since the one before. An event without a key counts for each replica.
    pub events_per_second: f64,
    /// Events of a batch, on the average of the same time; 0 where nothing was applied.
    pub batch: f64,
    /// Keys that are parked in the build in service, and its segments that stand before an event: see `operations::parked`.
    pub parked: i64,
    /// See above.
    pub stopped: i64,
    /// The build that is being made beside it.
    pub rebuild: Option<Rebuild>,
    /// An automation's to-dos.
    pub todos: Option<Waiting>,
}

/// How far the build is that is being made.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebuild {
    /// As of the build in service.
    pub lag: i64,
    /// From 0 to 1, all segments together.
    pub progress: f64,
    /// As of the build in service.
    pub events_per_second: f64,
    /// See above.
    pub batch: f64,
}

/// Rounded to tenths.
pub fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// How far the projections are behind that this process runs, by name. In one statement.
///
/// # Errors
/// Where the database is away or does not answer.
pub(crate) async fn backlog<E: LogEvent>(store: &EventStore<E>, replicas: &Replicas) -> Result<BTreeMap<String, Backlog>, StoreError> {
    let (mut names, mut types): (Vec<String>, Vec<String>) = (vec![], vec![]);
    for replica in replicas.all() {
        names.extend(replica.types.iter().map(|_| replica.name.to_owned()));
        types.extend_from_slice(&replica.types);
    }
    let rows = with_timeout(async {
        let mut connection = store.connection().await?;
        let rows = sqlx::query!(
            r#"SELECT p.name, p.status, p.paused, greatest(h.head - n.next + 1, 0) AS "lag!", s.segments AS "segments!", s.held AS "held!",
                          CASE WHEN h.head = 0 THEN 1 ELSE s.applied / (s.segments * h.head)::float8 END AS "progress!",
                          coalesce((SELECT extract(epoch FROM clock_timestamp() - e.inserted_at)::float8 FROM event e
                                    WHERE e.event_id = n.next), 0) AS "lag_seconds!",
                          a.replicas AS "replicas!", a.events AS "events_per_second!", coalesce(a.events / nullif(a.batches, 0), 0) AS "batch!",
                          (SELECT count(*) FROM parked k WHERE k.name = p.name AND k.build = p.build) AS "parked!", s.stopped AS "stopped!",
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
                                  WHERE r.name = c.name AND r.id = c.owner AND r.alive_until > clock_timestamp())) AS held,
                              count(*) FILTER (WHERE c.position < c.stopped_at) AS stopped
                       FROM checkpoint c WHERE c.name = p.name AND c.build = p.build
                   ) s
                   -- What is none of its events is written down with the heartbeat only, and is nothing that it is behind with.
                   CROSS JOIN LATERAL (
                       SELECT coalesce(min(e.event_id), least(s.lowest + $4, h.head) + 1) AS next FROM event e
                       WHERE e.event_id > s.lowest AND e.event_id <= s.lowest + $4 AND e.event_type = ANY (r.types)
                   ) n
                   CROSS JOIN LATERAL (
                       SELECT count(*) AS replicas, coalesce(sum((r.pace -> p.build ->> 'events')::float8), 0) AS events,
                              sum((r.pace -> p.build ->> 'batches')::float8) AS batches
                       FROM replica r WHERE r.name = p.name AND r.alive_until > clock_timestamp()
                   ) a
                   LEFT JOIN LATERAL todo_waiting(p.name, $3) w ON p.build = 'automation'
                   WHERE p.status IN ('serving', 'building') AND s.segments > 0
                   ORDER BY p.status = 'serving' DESC"#,
            &names,
            &types,
            COUNTED,
            LOOKED_AT
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
                (Some(open), Some(due), Some(failed)) => Some(Waiting { open, due, failed, oldest: row.oldest }),
                _ => None,
            };
            let backlog = Backlog {
                lag: row.lag,
                lag_seconds: row.lag_seconds,
                paused: row.paused,
                segments: row.segments,
                held: row.held,
                replicas: row.replicas,
                events_per_second,
                batch,
                parked: row.parked,
                stopped: row.stopped,
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
