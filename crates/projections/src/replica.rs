//! The replicas of this process, and their heartbeat.
//!
//! One heartbeat serves all replicas of the process. It says that they are alive, deletes replicas that are dead, stores positions that no
//! batch stored, and reads the state of all builds.
//!
//! A heartbeat counts up the replica's `beats`. Whoever sees the same count for the replica's lease, by its own monotonic clock, deletes the
//! replica. So the database's clock may step.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use event_store::{LogConnection, Pool, Position, connection::with_timeout_of};
use tokio::{
    sync::{Notify, futures::Notified, watch},
    time::Instant,
};
use uuid::Uuid;

use crate::{
    checkpoint_cache::CheckpointCache,
    clock::DatabaseClock,
    health::Health,
    lease::OwnedSegments,
    metrics,
    settings::{heartbeat, heartbeat_timeout},
    throughput::{Throughput, ThroughputMeter},
    watch::Watch,
};

/// A projection as it runs in this process.
pub(crate) struct Replica {
    pub(crate) id: Uuid,
    pub(crate) name: &'static str,
    pub(crate) version: i32,
    /// The event types that the projection takes.
    pub(crate) types: Arc<[String]>,
    /// How long the replica's count may stand still before others take it for dead.
    pub(crate) lease: Duration,
    /// The cluster, as the last heartbeat read it.
    view: watch::Sender<ClusterView>,
    /// The segments that this replica owns, by build.
    owned: watch::Sender<BTreeMap<&'static str, OwnedSegments>>,
    /// Notified when a caller finds that it has to wait for a position.
    waiting: Notify,
    meters: Mutex<BTreeMap<&'static str, ThroughputMeter>>,
}

impl Replica {
    pub(crate) fn new(name: &'static str, version: i32, types: Arc<[String]>, lease: Duration) -> Self {
        let (view, owned) = (watch::Sender::new(ClusterView::empty()), watch::Sender::default());
        Self { id: Uuid::now_v7(), name, version, types, lease, view, owned, waiting: Notify::new(), meters: Mutex::default() }
    }

    pub(crate) fn view(&self) -> watch::Receiver<ClusterView> {
        self.view.subscribe()
    }

    /// Subscribes to the segments that this replica owns, for a caller that waits for a position.
    pub(crate) fn owned(&self) -> watch::Receiver<BTreeMap<&'static str, OwnedSegments>> {
        self.owned.subscribe()
    }

    /// Says that a subscriber has to wait.
    pub(crate) fn begin_wait(&self) {
        self.waiting.notify_waiters();
    }

    /// Returns what completes when the next caller in this process begins to wait, and whether one waits now.
    pub(crate) fn waiting(&self) -> (Notified<'_>, bool) {
        // In this order: a caller that begins to wait in between is noticed.
        (self.waiting.notified(), self.owned.receiver_count() > 0)
    }

    /// Publishes what this replica owns of a build, to waiting callers and to the heartbeat.
    pub(crate) fn publish(&self, build: &'static str, owned: &OwnedSegments) {
        self.meters().entry(build).or_insert_with(|| ThroughputMeter::new(Instant::now()));
        self.owned.send_if_modified(|published| {
            let published = published.entry(build).or_default();
            let changed = published != owned;
            if changed {
                published.clone_from(owned);
            }
            changed
        });
    }

    /// Counts an applied batch.
    pub(crate) fn count(&self, build: &'static str, events: usize) {
        self.meters().entry(build).or_insert_with(|| ThroughputMeter::new(Instant::now())).count(events);
    }

    fn throughput(&self, now: Instant) -> BTreeMap<&'static str, Throughput> {
        self.meters().iter_mut().filter_map(|(build, meter)| Some((*build, meter.sample(now)?))).collect()
    }

    fn meters(&self) -> MutexGuard<'_, BTreeMap<&'static str, ThroughputMeter>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a projection's builds, as a heartbeat read it.
#[derive(Debug, Clone)]
pub(crate) struct ClusterView {
    /// When the read began. Later changes may be missing.
    pub(crate) begun: Instant,
    /// The log that it was read from: the answer of `log_identity()`. Positions of another log are worthless here.
    pub(crate) log: Arc<str>,
    pub(crate) builds: BTreeMap<String, Build>,
}

impl ClusterView {
    fn empty() -> Self {
        Self { begun: Instant::now(), log: Arc::default(), builds: BTreeMap::new() }
    }
}

/// A build that serves or is being rebuilt.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub(crate) version: i32,
    pub(crate) serving: bool,
    pub(crate) switch_when_ready: bool,
    pub(crate) paused: bool,
    /// The head that the log had when this build was found to be ahead of it. Only a rebuild helps.
    pub(crate) ahead_of: Option<Position>,
    /// The position that it may not pass while it is compared with another build.
    pub(crate) hold_at: Option<Position>,
    /// The other living replicas of this version, and how many of them have a smaller id.
    pub(crate) others: i64,
    pub(crate) before: i64,
    /// The number of parked keys, and whether an operator asked to retry some.
    pub(crate) parked: i64,
    pub(crate) retry_asked: bool,
    pub(crate) checkpoints: Vec<Checkpoint>,
}

/// A segment's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoint {
    pub(crate) segment: i32,
    pub(crate) position: Position,
    /// The living replica that owns it.
    pub(crate) owner: Option<Uuid>,
    /// The age of the next event.
    pub(crate) lag: Duration,
}

impl Build {
    /// Returns the position that the build may not pass: the start of the log if it applies nothing.
    pub(crate) fn limit(&self) -> Option<Position> {
        if self.paused || self.ahead_of.is_some() { Some(Position::START) } else { self.hold_at }
    }
}

/// The replicas of this process.
#[derive(Clone, Default)]
pub(crate) struct Replicas(Arc<Shared>);

#[derive(Default)]
pub(crate) struct Shared {
    /// By projection, whether it runs here or not.
    caches: Mutex<HashMap<String, Arc<CheckpointCache>>>,
    running: Mutex<Running>,
    requested: Notify,
    /// Locked while a heartbeat is in flight.
    in_flight: tokio::sync::Mutex<()>,
    /// When the last heartbeat succeeded, or the first one became due.
    beaten: Mutex<Option<Instant>>,
    /// Whether the age of the heartbeat is a metric already.
    measured: OnceLock<()>,
    /// How the tasks of each projection are doing.
    health: Mutex<HashMap<String, Arc<Health>>>,
}

#[derive(Default)]
struct Running {
    replicas: HashMap<Uuid, Arc<Replica>>,
    /// Whether the task that sends heartbeats runs.
    beating: bool,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beaten(&self) -> MutexGuard<'_, Option<Instant>> {
        self.beaten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since the last heartbeat. `None` if no replica runs.
    fn heartbeat_age(&self) -> Option<Duration> {
        let is_running = !self.running().replicas.is_empty();
        self.beaten().filter(|_| is_running).map(|at| at.elapsed())
    }
}

impl Replicas {
    /// Sends heartbeats for a replica until the guard is dropped.
    pub(crate) fn keep_alive(&self, pool: &Pool, replica: Arc<Replica>) -> HeartbeatGuard {
        let guard = HeartbeatGuard { id: replica.id, shared: self.0.clone() };
        let mut running = self.0.running();
        running.replicas.insert(replica.id, replica);
        if !std::mem::replace(&mut running.beating, true) {
            self.0.beaten().replace(Instant::now());
            tokio::spawn(beat(pool.clone(), self.0.clone()));
        }
        drop(running);
        self.0.measured.get_or_init(|| {
            let shared = Arc::downgrade(&self.0);
            metrics::heartbeat_age(move || shared.upgrade().and_then(|shared| shared.heartbeat_age()));
        });
        self.0.requested.notify_one();
        guard
    }

    /// The stored checkpoints that callers waiting for a projection share.
    pub(crate) fn checkpoint_cache(&self, name: &str) -> Arc<CheckpointCache> {
        let mut caches = self.0.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.entry(name.to_owned()).or_default().clone()
    }

    /// How the tasks of a projection are doing in this process.
    pub(crate) fn health(&self, name: &str) -> Arc<Health> {
        let mut health = self.0.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.entry(name.to_owned()).or_default().clone()
    }

    /// Fails if this process does not do a projection's work.
    pub(crate) fn working(&self, name: &str) -> Result<(), String> {
        let Some(replica) = self.find(name) else {
            return Err("its first start".to_owned());
        };
        // Longer than a failover takes.
        let patience = replica.lease * 3;
        match self.0.heartbeat_age() {
            Some(age) if age > patience => return Err(format!("its last heartbeat is {} s old", age.as_secs())),
            _ if replica.view.borrow().builds.is_empty() => return Err("its first heartbeat".to_owned()),
            _ => {}
        }
        self.health(name).check(Instant::now(), patience)
    }

    /// The projections that this process runs.
    pub(crate) fn all(&self) -> Vec<Arc<Replica>> {
        self.0.running().replicas.values().cloned().collect()
    }

    /// This process's replica of a projection.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Replica>> {
        self.0.running().replicas.values().find(|replica| replica.name == name).cloned()
    }
}

/// Keeps a replica alive. Ends its heartbeats when dropped, also if its task is aborted.
pub(crate) struct HeartbeatGuard {
    id: Uuid,
    shared: Arc<Shared>,
}

impl HeartbeatGuard {
    /// Ends the heartbeats, and waits for one in flight, which could extend the lease once more.
    pub(crate) async fn end(self) {
        let shared = self.shared.clone();
        drop(self);
        drop(shared.in_flight.lock().await);
    }

    /// Requests a heartbeat before the next regular one.
    pub(crate) fn request(&self) {
        self.shared.requested.notify_one();
    }
}

impl Drop for HeartbeatGuard {
    fn drop(&mut self) {
        self.shared.running().replicas.remove(&self.id);
        self.shared.requested.notify_one();
    }
}

async fn beat(pool: Pool, shared: Arc<Shared>) {
    let mut session: Option<Session> = None;
    let (mut watch, mut clock) = (Watch::default(), DatabaseClock::default());
    let (mut beats, mut warned) = (0, false);
    loop {
        let in_flight = shared.in_flight.lock().await;
        let replicas: Vec<_> = {
            let mut running = shared.running();
            if running.replicas.is_empty() || pool.is_closed() {
                running.beating = false;
                break;
            }
            running.replicas.values().cloned().collect()
        };
        let lease = replicas.iter().map(|replica| replica.lease).min().unwrap_or_default();
        let begun = Instant::now();
        beats += 1;
        // After an error or without an answer the session is dropped, which closes its connection without waiting for the server. A pool
        // would first wait until the server answers.
        let beaten = with_timeout_of(heartbeat_timeout(lease), async {
            let mut session = match session.take().filter(|session| session.connection.is_current()) {
                Some(session) => session,
                None => Session::open(&pool).await?,
            };
            session.beat(&replicas, beats, &watch).await?;
            let others = session.others(&replicas, &mut clock).await?;
            let views = session.read_views(&replicas, &others).await?;
            Ok((session, others, views))
        })
        .await;
        drop(in_flight);
        match beaten {
            Ok((open, others, mut views)) => {
                warned = false;
                watch.saw(begun, others.into_iter().map(|other| ((other.name, other.id, other.beats), other.lease)));
                shared.beaten().replace(Instant::now());
                for replica in replicas {
                    let builds = views.remove(&replica.id).unwrap_or_default();
                    replica.view.send_replace(ClusterView { begun, log: open.log.clone(), builds });
                }
                session = Some(open);
            }
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "heartbeat failed, waiting for the database");
                }
            }
        }
        // The next heartbeat follows in time, or at once if one was requested.
        let _ = tokio::time::timeout_at(begun + heartbeat(lease), shared.requested.notified()).await;
    }
}

/// A replica at a heartbeat: its projection, its id, and the number of its heartbeats.
type Beat = (String, Uuid, i64);

/// A replica's row.
struct Other {
    name: String,
    id: Uuid,
    version: i32,
    beats: i64,
    lease: Duration,
}

/// The heartbeat's own connection: a pool that is busy with batches must not look like a dead process.
struct Session {
    connection: LogConnection,
    /// The log at the other end.
    log: Arc<str>,
}

impl Session {
    async fn open(pool: &Pool) -> Result<Self, sqlx::Error> {
        let mut connection = pool.connect().await?;
        let log: String = sqlx::query_scalar!(r#"SELECT log_identity() AS "log!""#).fetch_one(&mut *connection).await?;
        Ok(Self { connection, log: log.into() })
    }

    /// Says that replicas are alive, deletes dead ones, and stores positions that moved. Notes builds that are ahead of the log.
    async fn beat(&mut self, replicas: &[Arc<Replica>], beats: i64, watch: &Watch<Beat>) -> Result<(), sqlx::Error> {
        let (mut ids, mut names, mut versions, mut leases, mut throughputs) = (vec![], vec![], vec![], vec![], vec![]);
        let now = Instant::now();
        let (mut owners, mut builds, mut segments, mut stored, mut positions) = (vec![], vec![], vec![], vec![], vec![]);
        for replica in replicas {
            ids.push(replica.id);
            names.push(replica.name.to_owned());
            versions.push(replica.version);
            leases.push(replica.lease.as_secs_f64());
            throughputs.push(serde_json::json!(replica.throughput(now)));
            // Positions that were read from another log, or before this one was restored, are never written to it.
            for (build, owned) in replica.owned.borrow().iter().filter(|(_, owned)| owned.log == self.log) {
                for (segment, at) in &owned.positions {
                    owners.push(replica.id);
                    builds.push((*build).to_owned());
                    segments.push(*segment);
                    stored.push(at.stored.0);
                    positions.push(at.applied.0);
                }
            }
        }
        let (mut dead_names, mut dead_ids, mut dead_beats) = (vec![], vec![], vec![]);
        for (name, id, beats) in watch.expired(now) {
            dead_names.push(name.clone());
            dead_ids.push(*id);
            dead_beats.push(*beats);
        }
        sqlx::query!(
            "WITH running AS (
                 SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::float8[], $5::jsonb[])
                     AS r(id, name, version, lease, throughput)
             ), alive AS (
                 INSERT INTO replica AS r (name, id, version, beats, lease, throughput)
                 SELECT name, id, version, $6, make_interval(secs => lease), throughput FROM running
                 ON CONFLICT (name, id) DO UPDATE SET beats = excluded.beats, lease = excluded.lease, beaten_at = excluded.beaten_at,
                                                      throughput = excluded.throughput
             ), log AS (
                 SELECT coalesce(max(event_id), 0) AS head FROM event
             ), owned AS (
                 SELECT r.name, o.* FROM unnest($7::uuid[], $8::text[], $9::integer[], $10::bigint[], $11::bigint[])
                     AS o(id, build, segment, stored, position) JOIN running r USING (id)
             ), further AS (
                 -- A batch that locks the row at this moment moves it itself.
                 SELECT c.name, c.build, c.segment, o.position
                 FROM checkpoint c JOIN owned o USING (name, build, segment)
                 WHERE c.owner = o.id AND c.position >= o.stored AND c.position < o.position AND o.position <= (SELECT head FROM log)
                 FOR UPDATE OF c SKIP LOCKED
             ), moved AS (
                 UPDATE checkpoint c SET position = f.position, updated_at = clock_timestamp() FROM further f
                 WHERE c.name = f.name AND c.build = f.build AND c.segment = f.segment
             )
             UPDATE projection p SET ahead_of = log.head FROM log
             WHERE p.name = ANY ($2) AND p.status IN ('serving', 'building') AND p.ahead_of IS NULL
               AND (EXISTS (SELECT FROM checkpoint c WHERE c.name = p.name AND c.build = p.build AND c.position > log.head)
                    OR p.build = 'automation'
                       AND EXISTS (SELECT FROM todo t WHERE t.automation = p.name AND t.status = 'open' AND t.position > log.head))",
            &ids,
            &names,
            &versions,
            &leases,
            &throughputs,
            beats,
            &owners,
            &builds,
            &segments,
            &stored,
            &positions
        )
        .execute(&mut *self.connection)
        .await?;
        // Afterwards, because a late heartbeat may find its own replica among those that did not beat.
        if !dead_ids.is_empty() {
            sqlx::query!("SELECT delete_replicas($1, $2, $3)", &dead_names, &dead_ids, &dead_beats)
                .fetch_one(&mut *self.connection)
                .await?;
        }
        Ok(())
    }

    /// Reads the replicas of these projections. Compares the database's clock with this process's.
    async fn others(&mut self, replicas: &[Arc<Replica>], clock: &mut DatabaseClock) -> Result<Vec<Other>, sqlx::Error> {
        let names: Vec<_> = replicas.iter().map(|replica| replica.name.to_owned()).collect();
        let asked = Instant::now();
        let rows = sqlx::query!(
            r#"SELECT name, id, version, beats, extract(epoch FROM lease)::float8 AS "lease!", clock_timestamp() AS "now!"
               FROM replica WHERE name = ANY ($1)"#,
            &names
        )
        .fetch_all(&mut *self.connection)
        .await?;
        if let Some(first) = rows.first() {
            clock.read(asked, first.now);
        }
        let lease = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let others = rows.into_iter();
        Ok(others
            .map(|row| Other { name: row.name, id: row.id, version: row.version, beats: row.beats, lease: lease(row.lease) })
            .collect())
    }

    async fn read_views(
        &mut self,
        replicas: &[Arc<Replica>],
        others: &[Other],
    ) -> Result<HashMap<Uuid, BTreeMap<String, Build>>, sqlx::Error> {
        let (ids, names): (Vec<_>, Vec<_>) = replicas.iter().map(|replica| (replica.id, replica.name.to_owned())).unzip();
        let rows = sqlx::query!(
            r#"WITH parked AS (
                   SELECT name, build, count(*) AS keys, bool_or(retry_asked_at IS NOT NULL) AS asked FROM parked_key GROUP BY name, build
               )
               SELECT r.id AS "id!", p.build, p.version, p.status = 'serving' AS "serving!", p.switch_when_ready, p.paused,
                      p.ahead_of AS "ahead_of: Position", CASE WHEN is_held(p.hold_until) THEN p.hold_at END AS "hold_at: Position",
                      coalesce(k.keys, 0) AS "parked!", coalesce(k.asked, false) AS "retry_asked!", c.segment,
                      c.position AS "position: Position",
                      (SELECT o.id FROM replica o WHERE o.name = c.name AND o.id = c.owner) AS owner,
                      coalesce((SELECT extract(epoch FROM clock_timestamp() - e.inserted_at)::float8 FROM event e
                                WHERE e.event_id = c.position + 1), 0) AS "lag!"
               FROM unnest($1::uuid[], $2::text[]) AS r(id, name) JOIN projection p USING (name) JOIN checkpoint c USING (name, build)
               LEFT JOIN parked k ON k.name = p.name AND k.build = p.build
               WHERE p.status IN ('serving', 'building')
               ORDER BY c.segment"#,
            &ids,
            &names
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let mut views: HashMap<Uuid, BTreeMap<String, Build>> = HashMap::new();
        for row in rows {
            let build = views.entry(row.id).or_default().entry(row.build).or_insert_with(|| {
                let name = replicas.iter().find(|replica| replica.id == row.id).map(|replica| replica.name);
                let others = |of: &dyn Fn(&Other) -> bool| {
                    let same = others.iter().filter(|other| Some(other.name.as_str()) == name && other.version == row.version);
                    i64::try_from(same.filter(|other| of(other)).count()).unwrap_or(i64::MAX)
                };
                Build {
                    version: row.version,
                    serving: row.serving,
                    switch_when_ready: row.switch_when_ready,
                    paused: row.paused,
                    ahead_of: row.ahead_of,
                    hold_at: row.hold_at,
                    others: others(&|other| other.id != row.id),
                    before: others(&|other| other.id < row.id),
                    parked: row.parked,
                    retry_asked: row.retry_asked,
                    checkpoints: vec![],
                }
            });
            build.checkpoints.push(Checkpoint {
                segment: row.segment,
                position: row.position,
                owner: row.owner,
                lag: Duration::try_from_secs_f64(row.lag).unwrap_or_default(),
            });
        }
        Ok(views)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn query_that_begins_to_wait_is_noticed() {
        let replica = Replica::new("ledger", 1, Arc::default(), Duration::from_secs(3));
        let (begins, is_waited_for) = replica.waiting();
        assert!(!is_waited_for);
        let query = replica.owned();
        replica.begin_wait();
        begins.await;
        assert!(replica.waiting().1);
        drop(query);
        assert!(!replica.waiting().1);
    }
}
