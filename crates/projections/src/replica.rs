//! The replicas of projections in this process: one heartbeat for them all, which says that they are alive, writes down how far what they
//! hold has come, and sees how everything stands.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_store::{Position, connection::with_timeout_of};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use uuid::Uuid;

use crate::{
    lately::Lately,
    lease::Held,
    pace::{Pace, PerSecond},
    settings::heartbeat,
};

/// A projection as this process runs it.
pub(crate) struct Replica {
    pub(crate) id: Uuid,
    pub(crate) name: &'static str,
    pub(crate) version: i32,
    /// Into how many segments this release wants it cut.
    pub(crate) segments: i32,
    /// The events that it takes.
    pub(crate) types: Arc<[String]>,
    /// For how long it counts as alive after a heartbeat.
    pub(crate) lease: Duration,
    /// What the last heartbeat saw.
    seen: watch::Sender<Seen>,
    /// What is held here, for each build.
    held: watch::Sender<BTreeMap<&'static str, Held>>,
    /// How fast each is applied here.
    paces: Mutex<BTreeMap<&'static str, Pace>>,
}

impl Replica {
    pub(crate) fn new(name: &'static str, version: i32, segments: i32, types: Arc<[String]>, lease: Duration) -> Self {
        let (seen, held) = (watch::Sender::new(Seen::nothing()), watch::Sender::default());
        Self { id: Uuid::now_v7(), name, version, segments, types, lease, seen, held, paces: Mutex::default() }
    }

    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    pub(crate) fn held(&self) -> watch::Receiver<BTreeMap<&'static str, Held>> {
        self.held.subscribe()
    }

    pub(crate) fn tell(&self, build: &'static str, held: &Held) {
        self.paces().entry(build).or_insert_with(|| Pace::begin(Instant::now()));
        self.held.send_if_modified(|told| {
            let told = told.entry(build).or_default();
            let changed = told != held;
            if changed {
                told.clone_from(held);
            }
            changed
        });
    }

    /// A batch of so many events was applied to a build.
    pub(crate) fn count(&self, build: &'static str, events: usize) {
        self.paces().entry(build).or_insert_with(|| Pace::begin(Instant::now())).count(events);
    }

    /// How fast each build was applied lately, where it was.
    fn pace(&self, now: Instant) -> BTreeMap<&'static str, PerSecond> {
        self.paces().iter_mut().filter_map(|(build, pace)| Some((*build, pace.at(now)?))).collect()
    }

    fn paces(&self) -> MutexGuard<'_, BTreeMap<&'static str, Pace>> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a projection's builds stood at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Before the database was asked: what was changed after this may not be seen.
    pub(crate) begun: Instant,
    pub(crate) builds: BTreeMap<String, Build>,
}

impl Seen {
    fn nothing() -> Self {
        Self { begun: Instant::now(), builds: BTreeMap::new() }
    }
}

/// A build that is in service or being made.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub(crate) version: i32,
    pub(crate) serving: bool,
    pub(crate) switch_when_ready: bool,
    /// It rests, as an operator wants it.
    pub(crate) paused: bool,
    /// Up to where it may go, while it is to be compared with another.
    pub(crate) stop_at: Option<Position>,
    /// Into how many segments it is cut, and is to be cut.
    pub(crate) segments: i32,
    pub(crate) wanted: i32,
    /// Whether a replica that is alive wants it so.
    pub(crate) wanted_by_some: bool,
    /// Other replicas of this version that are alive, and how many of them come before this one.
    pub(crate) others: i64,
    pub(crate) before: i64,
    /// How many keys are parked in it, and whether an operator has asked for some to be tried again.
    pub(crate) parked: i64,
    pub(crate) retry_asked: bool,
    pub(crate) checkpoints: Vec<Checkpoint>,
}

/// A segment as it stands in the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoint {
    pub(crate) segment: i32,
    pub(crate) position: Position,
    /// The replica that holds it, where that is alive.
    pub(crate) owner: Option<Uuid>,
    /// It stands before an event that cannot be applied.
    pub(crate) stopped: bool,
    /// For how long the event after the position has been there.
    pub(crate) lag: Duration,
}

/// The replicas of this process.
#[derive(Clone, Default)]
pub(crate) struct Replicas(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// What is waited for of each projection, whether it runs here or not.
    lately: Mutex<HashMap<String, Arc<Lately>>>,
    running: Mutex<Running>,
    now: Notify,
    /// Locked for as long as a heartbeat is on its way.
    heart: tokio::sync::Mutex<()>,
    /// Locked for as long as a projection that is behind applies a batch and rests after it.
    catching_up: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Running {
    replicas: HashMap<Uuid, Arc<Replica>>,
    beating: bool,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Build {
    /// Up to where it may be worked: nowhere while it rests.
    pub(crate) fn limit(&self) -> Option<Position> {
        if self.paused { Some(Position::START) } else { self.stop_at }
    }
}

impl Replicas {
    /// Lets a replica live for as long as the answer does.
    pub(crate) fn live(&self, pool: &PgPool, replica: Arc<Replica>) -> Alive {
        let alive = Alive { id: replica.id, shared: self.0.clone() };
        let mut running = self.0.running();
        running.replicas.insert(replica.id, replica);
        if !std::mem::replace(&mut running.beating, true) {
            tokio::spawn(beat(pool.clone(), self.0.clone()));
        }
        self.0.now.notify_one();
        alive
    }

    /// What was last seen by those who wait for a projection.
    pub(crate) fn lately(&self, name: &str) -> Arc<Lately> {
        let mut lately = self.0.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.entry(name.to_owned()).or_default().clone()
    }

    /// The projections that this process runs.
    pub(crate) fn all(&self) -> Vec<Arc<Replica>> {
        self.0.running().replicas.values().cloned().collect()
    }

    /// The turn of a projection that is behind to apply a batch, and to rest after it, while commands append. Those of this process go one after the other then, so
    /// that however many are made anew, the database has one such transaction of each process to write beside what is appended. Who has come
    /// to the log's end waits for none of them, and where nobody appends they go side by side. None where the turn does not come soon: who
    /// waits hands nothing back meanwhile, and one batch that is stuck is not to hold up the others.
    pub(crate) async fn turn_to_catch_up(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        tokio::time::timeout(Duration::from_millis(500), self.0.catching_up.lock()).await.ok()
    }

    /// A projection that this process runs.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Replica>> {
        self.0.running().replicas.values().find(|replica| replica.name == name).cloned()
    }
}

/// Dropped, also with a task that is aborted, its replica is no longer said to be alive.
pub(crate) struct Alive {
    id: Uuid,
    shared: Arc<Shared>,
}

impl Alive {
    /// Ends it, and waits until no heartbeat is on its way that would say once more that it is alive.
    pub(crate) async fn end(self) {
        let shared = self.shared.clone();
        drop(self);
        drop(shared.heart.lock().await);
    }

    /// Asks for a heartbeat before it is time.
    pub(crate) fn look(&self) {
        self.shared.now.notify_one();
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.shared.running().replicas.remove(&self.id);
        self.shared.now.notify_one();
    }
}

async fn beat(pool: PgPool, shared: Arc<Shared>) {
    // A connection of its own: a pool that is busy with large batches must not look like a dead process.
    let own = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(2))
        .connect_lazy_with(pool.connect_options().as_ref().clone());
    let mut said = false;
    loop {
        let beating = shared.heart.lock().await;
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
        let outcome = with_timeout_of(lease.max(Duration::from_secs(1)), see(&own, &replicas)).await;
        drop(beating);
        match outcome {
            Ok(mut seen) => {
                said = false;
                for replica in replicas {
                    let builds = seen.remove(&replica.id).unwrap_or_default();
                    replica.seen.send_replace(Seen { begun, builds });
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "no heartbeat: waiting for the database");
                }
            }
        }
        // Asked for before its time, or not: the next one is due either way.
        let _ = tokio::time::timeout_at(begun + heartbeat(lease), shared.now.notified()).await;
    }
    own.close().await;
}

/// One heartbeat, one statement: whatever is written is written only where something changed.
async fn see(pool: &PgPool, replicas: &[Arc<Replica>]) -> Result<HashMap<Uuid, BTreeMap<String, Build>>, sqlx::Error> {
    let (mut ids, mut names, mut versions, mut segments, mut leases, mut paces) = (vec![], vec![], vec![], vec![], vec![], vec![]);
    let now = Instant::now();
    let (mut of, mut builds, mut cut, mut held, mut stored, mut positions) = (vec![], vec![], vec![], vec![], vec![], vec![]);
    for replica in replicas {
        ids.push(replica.id);
        names.push(replica.name.to_owned());
        versions.push(replica.version);
        segments.push(replica.segments);
        leases.push(replica.lease.as_secs_f64());
        paces.push(serde_json::json!(replica.pace(now)));
        for (build, hold) in &*replica.held.borrow() {
            for (segment, at) in &hold.positions {
                of.push(replica.id);
                builds.push((*build).to_owned());
                cut.push(hold.segments);
                held.push(*segment);
                stored.push(at.stored.0);
                positions.push(at.position.0);
            }
        }
    }
    let rows = sqlx::query!(
        r#"WITH running AS (
               SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::float8[], $12::jsonb[])
                   AS r(id, name, version, segments, lease, pace)
           ), alive AS (
               INSERT INTO replica AS r (name, id, version, segments, alive_until, parks, pace)
               SELECT name, id, version, segments, clock_timestamp() + make_interval(secs => lease), true, pace FROM running
               ON CONFLICT (name, id) DO UPDATE SET alive_until = excluded.alive_until, pace = excluded.pace
           ), held AS (
               SELECT r.name, h.* FROM unnest($6::uuid[], $7::text[], $8::integer[], $9::integer[], $10::bigint[], $11::bigint[])
                   AS h(id, build, segments, segment, stored, position) JOIN running r USING (id)
           ), further AS (
               -- What a batch of this moment has locked, that batch moves.
               SELECT c.name, c.build, c.segment, h.position
               FROM checkpoint c JOIN held h USING (name, build, segments, segment)
               WHERE c.owner = h.id AND c.position >= h.stored AND c.position < h.position
               FOR UPDATE OF c SKIP LOCKED
           ), moved AS (
               UPDATE checkpoint c SET position = f.position, updated_at = clock_timestamp() FROM further f
               WHERE c.name = f.name AND c.build = f.build AND c.segment = f.segment
           ), held_back AS (
               SELECT name, build, count(*) AS keys, bool_or(retry_asked_at IS NOT NULL) AS asked FROM parked GROUP BY name, build
           )
           SELECT r.id AS "id!", p.build, p.version, p.status = 'serving' AS "serving!", p.switch_when_ready, p.paused,
                  CASE WHEN p.stop_until > clock_timestamp() THEN p.stop_at END AS stop_at, p.segments AS wanted,
                  p.segments = r.segments OR EXISTS (
                      SELECT FROM replica o WHERE o.name = p.name AND o.version = p.version AND o.segments = p.segments
                         AND o.alive_until > clock_timestamp()) AS "wanted_by_some!",
                  (SELECT count(*) FROM replica o WHERE o.name = p.name AND o.version = p.version AND o.id <> r.id
                      AND o.alive_until > clock_timestamp()) AS "others!",
                  (SELECT count(*) FROM replica o WHERE o.name = p.name AND o.version = p.version AND o.id < r.id
                      AND o.alive_until > clock_timestamp()) AS "before!",
                  coalesce(k.keys, 0) AS "parked!", coalesce(k.asked, false) AS "retry_asked!",
                  c.segment, c.segments, greatest(c.position, h.position) AS "position!",
                  (SELECT c.owner WHERE c.owner = r.id OR EXISTS (
                      SELECT FROM replica o WHERE o.name = c.name AND o.id = c.owner AND o.alive_until > clock_timestamp())) AS owner,
                  coalesce(c.position < c.stopped_at, false) AS "stopped!",
                  coalesce((SELECT extract(epoch FROM clock_timestamp() - e.inserted_at)::float8 FROM event e
                            WHERE e.event_id = greatest(c.position, h.position) + 1), 0) AS "lag!"
           FROM running r JOIN projection p USING (name) JOIN checkpoint c USING (name, build)
           LEFT JOIN held h ON h.id = r.id AND h.id = c.owner AND h.build = c.build AND h.segments = c.segments AND h.segment = c.segment
           LEFT JOIN held_back k ON k.name = p.name AND k.build = p.build
           WHERE p.status IN ('serving', 'building')
           ORDER BY c.segment"#,
        &ids,
        &names,
        &versions,
        &segments,
        &leases,
        &of,
        &builds,
        &cut,
        &held,
        &stored,
        &positions,
        &paces
    )
    .fetch_all(pool)
    .await?;
    let mut seen: HashMap<Uuid, BTreeMap<String, Build>> = HashMap::new();
    for row in rows {
        let build = seen.entry(row.id).or_default().entry(row.build).or_insert_with(|| Build {
            version: row.version,
            serving: row.serving,
            switch_when_ready: row.switch_when_ready,
            paused: row.paused,
            stop_at: row.stop_at.map(Position),
            segments: row.segments,
            wanted: row.wanted,
            wanted_by_some: row.wanted_by_some,
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
            stopped: row.stopped,
            lag: Duration::try_from_secs_f64(row.lag).unwrap_or_default(),
        });
    }
    Ok(seen)
}
