//! The replicas of this process, and their heartbeat.
//!
//! One heartbeat serves all replicas of the process. It extends their lease, stores positions that no batch stored, and reads the state of
//! all builds.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_store::{LogConnection, Pool, Position, connection::with_timeout_of};
use sqlx::PgConnection;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use uuid::Uuid;

use crate::{
    checkpoint_cache::CheckpointCache,
    lease::OwnedSegments,
    settings::heartbeat,
    throughput::{Throughput, ThroughputMeter},
};

/// A projection as it runs in this process.
pub(crate) struct Replica {
    pub(crate) id: Uuid,
    pub(crate) name: &'static str,
    pub(crate) version: i32,
    /// The event types that the projection takes.
    pub(crate) types: Arc<[String]>,
    /// How long the replica counts as alive after a heartbeat.
    pub(crate) lease: Duration,
    /// What the last heartbeat read.
    view: watch::Sender<ClusterView>,
    /// What this replica owns, by build.
    owned: watch::Sender<BTreeMap<&'static str, OwnedSegments>>,
    meters: Mutex<BTreeMap<&'static str, ThroughputMeter>>,
}

impl Replica {
    pub(crate) fn new(name: &'static str, version: i32, types: Arc<[String]>, lease: Duration) -> Self {
        let (view, owned) = (watch::Sender::new(ClusterView::empty()), watch::Sender::default());
        Self { id: Uuid::now_v7(), name, version, types, lease, view, owned, meters: Mutex::default() }
    }

    pub(crate) fn view(&self) -> watch::Receiver<ClusterView> {
        self.view.subscribe()
    }

    pub(crate) fn owned(&self) -> watch::Receiver<BTreeMap<&'static str, OwnedSegments>> {
        self.owned.subscribe()
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
    pub(crate) builds: BTreeMap<String, Build>,
}

impl ClusterView {
    fn empty() -> Self {
        Self { begun: Instant::now(), builds: BTreeMap::new() }
    }
}

/// A build that serves or is being rebuilt.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub(crate) version: i32,
    pub(crate) serving: bool,
    pub(crate) switch_when_ready: bool,
    pub(crate) paused: bool,
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
    /// Returns the position that the build may not pass: the start of the log if it is paused.
    pub(crate) fn limit(&self) -> Option<Position> {
        if self.paused { Some(Position::START) } else { self.hold_at }
    }
}

/// The replicas of this process.
#[derive(Clone, Default)]
pub(crate) struct Replicas(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// By projection, whether it runs here or not.
    caches: Mutex<HashMap<String, Arc<CheckpointCache>>>,
    running: Mutex<Running>,
    requested: Notify,
    /// Locked while a heartbeat is in flight.
    in_flight: tokio::sync::Mutex<()>,
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
}

impl Replicas {
    /// Sends heartbeats for a replica until the guard is dropped.
    pub(crate) fn keep_alive(&self, pool: &Pool, replica: Arc<Replica>) -> HeartbeatGuard {
        let guard = HeartbeatGuard { id: replica.id, shared: self.0.clone() };
        let mut running = self.0.running();
        running.replicas.insert(replica.id, replica);
        if !std::mem::replace(&mut running.beating, true) {
            tokio::spawn(beat(pool.clone(), self.0.clone()));
        }
        self.0.requested.notify_one();
        guard
    }

    /// The stored checkpoints that callers waiting for a projection share.
    pub(crate) fn checkpoint_cache(&self, name: &str) -> Arc<CheckpointCache> {
        let mut caches = self.0.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.entry(name.to_owned()).or_default().clone()
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
    // The heartbeat has its own connection: a pool that is busy with batches must not look like a dead process.
    let mut own: Option<LogConnection> = None;
    let mut warned = false;
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
        let beating = async {
            let connection = match own.take().filter(LogConnection::is_current) {
                Some(connection) => connection,
                None => pool.connect().await?,
            };
            read_views(own.insert(connection), &replicas).await
        };
        let outcome = with_timeout_of(lease.max(Duration::from_secs(1)), beating).await;
        drop(in_flight);
        // The next connection may be better than one with an error.
        if outcome.is_err() {
            own = None;
        }
        match outcome {
            Ok(mut views) => {
                warned = false;
                for replica in replicas {
                    let builds = views.remove(&replica.id).unwrap_or_default();
                    replica.view.send_replace(ClusterView { begun, builds });
                }
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

/// Sends a heartbeat: one statement, which writes positions only if they moved.
async fn read_views(
    connection: &mut PgConnection,
    replicas: &[Arc<Replica>],
) -> Result<HashMap<Uuid, BTreeMap<String, Build>>, sqlx::Error> {
    let (mut ids, mut names, mut versions, mut leases, mut throughputs) = (vec![], vec![], vec![], vec![], vec![]);
    let now = Instant::now();
    let (mut owners, mut builds, mut segments, mut stored, mut positions) = (vec![], vec![], vec![], vec![], vec![]);
    for replica in replicas {
        ids.push(replica.id);
        names.push(replica.name.to_owned());
        versions.push(replica.version);
        leases.push(replica.lease.as_secs_f64());
        throughputs.push(serde_json::json!(replica.throughput(now)));
        for (build, owned) in &*replica.owned.borrow() {
            for (segment, at) in &owned.positions {
                owners.push(replica.id);
                builds.push((*build).to_owned());
                segments.push(*segment);
                stored.push(at.stored.0);
                positions.push(at.applied.0);
            }
        }
    }
    let rows = sqlx::query!(
        r#"WITH running AS (
               SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::float8[], $5::jsonb[])
                   AS r(id, name, version, lease, throughput)
           ), alive AS (
               INSERT INTO replica AS r (name, id, version, alive_until, throughput)
               SELECT name, id, version, clock_timestamp() + make_interval(secs => lease), throughput FROM running
               ON CONFLICT (name, id) DO UPDATE SET alive_until = excluded.alive_until, throughput = excluded.throughput
           ), owned AS (
               SELECT r.name, o.* FROM unnest($6::uuid[], $7::text[], $8::integer[], $9::bigint[], $10::bigint[])
                   AS o(id, build, segment, stored, position) JOIN running r USING (id)
           ), further AS (
               -- A batch that locks the row at this moment moves it itself.
               SELECT c.name, c.build, c.segment, o.position
               FROM checkpoint c JOIN owned o USING (name, build, segment)
               WHERE c.owner = o.id AND c.position >= o.stored AND c.position < o.position
               FOR UPDATE OF c SKIP LOCKED
           ), moved AS (
               UPDATE checkpoint c SET position = f.position, updated_at = clock_timestamp() FROM further f
               WHERE c.name = f.name AND c.build = f.build AND c.segment = f.segment
           ), parked AS (
               SELECT name, build, count(*) AS keys, bool_or(retry_asked_at IS NOT NULL) AS asked FROM parked_key GROUP BY name, build
           )
           SELECT r.id AS "id!", p.build, p.version, p.status = 'serving' AS "serving!", p.switch_when_ready, p.paused,
                  CASE WHEN p.hold_until > clock_timestamp() THEN p.hold_at END AS hold_at,
                  (SELECT count(*) FROM replica o WHERE o.name = p.name AND o.version = p.version AND o.id <> r.id
                      AND o.alive_until > clock_timestamp()) AS "others!",
                  (SELECT count(*) FROM replica o WHERE o.name = p.name AND o.version = p.version AND o.id < r.id
                      AND o.alive_until > clock_timestamp()) AS "before!",
                  coalesce(k.keys, 0) AS "parked!", coalesce(k.asked, false) AS "retry_asked!",
                  c.segment, greatest(c.position, o.position) AS "position!",
                  (SELECT c.owner WHERE c.owner = r.id OR EXISTS (
                      SELECT FROM replica o WHERE o.name = c.name AND o.id = c.owner AND o.alive_until > clock_timestamp())) AS owner,
                  coalesce((SELECT extract(epoch FROM clock_timestamp() - e.inserted_at)::float8 FROM event e
                            WHERE e.event_id = greatest(c.position, o.position) + 1), 0) AS "lag!"
           FROM running r JOIN projection p USING (name) JOIN checkpoint c USING (name, build)
           LEFT JOIN owned o ON o.id = r.id AND o.id = c.owner AND o.build = c.build AND o.segment = c.segment
           LEFT JOIN parked k ON k.name = p.name AND k.build = p.build
           WHERE p.status IN ('serving', 'building')
           ORDER BY c.segment"#,
        &ids,
        &names,
        &versions,
        &leases,
        &throughputs,
        &owners,
        &builds,
        &segments,
        &stored,
        &positions
    )
    .fetch_all(connection)
    .await?;
    let mut views: HashMap<Uuid, BTreeMap<String, Build>> = HashMap::new();
    for row in rows {
        let build = views.entry(row.id).or_default().entry(row.build).or_insert_with(|| Build {
            version: row.version,
            serving: row.serving,
            switch_when_ready: row.switch_when_ready,
            paused: row.paused,
            hold_at: row.hold_at.map(Position),
            others: row.others,
            before: row.before,
            parked: row.parked,
            retry_asked: row.retry_asked,
            checkpoints: vec![],
        });
        build.checkpoints.push(Checkpoint {
            segment: row.segment,
            position: Position(row.position),
            owner: row.owner,
            lag: Duration::try_from_secs_f64(row.lag).unwrap_or_default(),
        });
    }
    Ok(views)
}
