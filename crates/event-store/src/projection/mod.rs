//! Projections: tables made of the log. A projection says what it takes and how a batch becomes SQL; the runtime does the rest.
//!
//! The batch and its checkpoints are written in one transaction, so an event is applied exactly once, whatever dies. Each read model's
//! tables stand in two database schemas, so that a new build can be made beside the one in service; the runtime sets the search path.
//!
//! A projection is cut into segments by a hash of its key. The replicas that are alive, any number of processes, share its segments out
//! among themselves (`replica`, `worker`); what a replica holds it works as one: it reads the log once, writes a batch for all segments that
//! stand at the same position in one transaction, and lets those that are behind catch up with the others first.

mod courtesy;
mod operating;
mod pace;
mod parking;
mod registration;
mod replica;
mod segment;
mod serving;
mod worker;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use disintegrate::Event;
use opentelemetry::KeyValue;
use sqlx::PgConnection;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{EventStore, LogEvent, Position, Recorded, StoreError, metrics::METRICS, store::in_time};

pub use operating::{CompareError, Difference, Row, TableDifference, compare, drop_build, go_on, pause, retire, revive};
use registration::Switched;
pub use registration::{Switch, rebuild, rebuild_named, registered, switch_when_ready, switch_with_parked};
pub(crate) use replica::Replicas;
use replica::{Alive, Replica};
pub use segment::segment_of;
pub use serving::{Waited, serving, wait};
use worker::{Backoff, Running, say};

/// What a projection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tables that are read; they can be made anew at any time.
    ReadModel,
    /// The state and to-dos of an automation. Never made anew: what it did would be done again.
    Automation,
}

/// A function from batches of events to SQL.
#[async_trait]
pub trait Projection: Send + Sync + 'static {
    /// The log's events.
    type Log: LogEvent;
    /// Those it takes: one of the log's streams. It is asked for no others, so an event type that a newer release added is none of its
    /// business.
    type Event: Event + TryFrom<Self::Log> + Clone + Send + Sync;

    /// Its name, in tables, metrics and logs.
    const NAME: &'static str;
    /// Raised when it makes other rows of the same events: it is then made anew, beside the one in service.
    const VERSION: i32 = 1;
    /// What it is for.
    const KIND: Kind = Kind::ReadModel;
    /// Its tables, without schema: emptied before it is made anew.
    const TABLES: &'static [&'static str];
    /// Into how many segments its keys are cut, and so how many replicas can share its work at the most. May be changed in any release:
    /// nothing is made anew for it.
    const SEGMENTS: i32 = 8;

    /// The domain id that is the key, by its name in the log's schema. By it, an event that is not of today's shape is known to be a key's,
    /// which is parked with it; without, it counts as one without key.
    const KEYED_BY: Option<&'static str> = None;

    /// Whether it makes something of the events' metadata. Where it does not, they come without it but for the first few of a batch, by which
    /// that is traced: reading and parsing it would be for nothing.
    const METADATA: bool = matches!(Self::KIND, Kind::Automation);

    /// What events keep their order by. An event without a key concerns every key: it is applied once in each segment, and then may touch
    /// only rows whose key `projection_holds`, in SQL.
    fn key(event: &Self::Event) -> Option<Uuid>;

    /// Applies a batch, in the order of the log, within the transaction that moves the checkpoint. Set-based: one statement a kind of
    /// change, not one a row.
    ///
    /// # Errors
    /// The database's. The transaction is rolled back then, and the batch is tried again, in smaller ones; an event that fails alone parks
    /// its key, and the rest goes on.
    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<Self::Event>]) -> Result<(), sqlx::Error>;
}

/// How projections are run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Positions of the log that one transaction takes at the most.
    pub batch: i64,
    /// How long a process may be silent before others take over. It is heard of three times in it.
    pub lease: Duration,
    /// The longest pause before a batch that failed is tried again.
    pub max_backoff: Duration,
    /// Events of a projection that this process applies in a second at the most; 0 is as many as it can. For tests of what scaling does.
    pub throttle: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { batch: 10_000, lease: Duration::from_secs(3), max_backoff: Duration::from_secs(10), throttle: 0 }
    }
}

impl Settings {
    /// From the moment at which a process is silent until another has what it held, at the worst: killed just after a heartbeat, or frozen, in
    /// the middle of a transaction too, which the database ends after `idle`. What statements take comes to it.
    pub fn taken_over_within(&self, idle: Duration) -> Duration {
        // The lease runs out just after another has looked. Where rows are locked still, they are tried for again, and not only with the next
        // heartbeat.
        (self.lease + replica::heartbeat(self.lease)).max(idle) + worker::LOCKED
    }

    /// From the moment at which a process is known until it has its share: at the worst the others see it with their next heartbeat, and it
    /// sees with its own what they have handed back.
    pub fn shared_within(&self) -> Duration {
        replica::heartbeat(self.lease) * 2
    }

    /// As they are kept to: slowed down, batches are so small that the pauses between them stay short.
    fn kept(mut self) -> Self {
        if self.throttle > 0 {
            self.batch = self.batch.min(i64::from(self.throttle / 2));
        }
        self.batch = self.batch.max(1);
        self
    }

    /// Until so many events have taken as long as they are to take, since they were begun.
    async fn slow_down(&self, events: usize, begun: Instant) {
        if self.throttle > 0 {
            sleep_until(begun + Duration::from_secs_f64(events as f64 / f64::from(self.throttle))).await;
        }
    }
}

/// Runs a projection until it is told to stop. Any number of processes may run the same one: they share its segments, and when one dies the
/// others take over. `applied` is told up to where, whenever this process has applied something: not how it goes past what is nothing of it.
///
/// # Errors
/// None: what goes wrong is said, counted and tried again.
pub async fn run<P: Projection>(
    store: EventStore<P::Log>,
    projection: P,
    settings: Settings,
    applied: Arc<watch::Sender<Position>>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let types: Arc<[String]> = P::Event::SCHEMA.events.iter().map(|name| (*name).to_owned()).collect();
    let replica = Arc::new(Replica::new(P::NAME, P::VERSION, P::SEGMENTS, types.clone(), settings.lease));
    let running = Running { store, projection, settings: settings.kept(), applied, replica, types };
    if !register(&running, &shutdown).await {
        return Ok(());
    }
    worker::count_faults::<P>(0);
    let alive = running.store.replicas().live(running.store.pool(), running.replica.clone());
    match P::KIND {
        Kind::ReadModel => {
            tokio::join!(
                worker::work(&running, &alive, "projection_a", &shutdown),
                worker::work(&running, &alive, "projection_b", &shutdown),
                switch(&running, &alive, &shutdown),
            );
        }
        Kind::Automation => worker::work(&running, &alive, "automation", &shutdown).await,
    }
    // Where the database is away, neither of these two comes about, and the others wait until this one is no longer alive: so what becomes
    // of them is nothing to stop for.
    let _ = timeout(SLOW, alive.end()).await;
    let _ = in_time(async {
        let mut connection = running.store.lend().await?;
        sqlx::query!("DELETE FROM replica WHERE name = $1 AND id = $2", P::NAME, running.replica.id).execute(&mut *connection).await?;
        connection.done();
        Ok(())
    })
    .await;
    Ok(())
}

/// How long what is done seldom may take: past it the database does not answer.
const SLOW: Duration = Duration::from_secs(30);

/// Makes the projection known, as soon as the database is there. `false`: stopped before.
async fn register<P: Projection>(running: &Running<P>, shutdown: &CancellationToken) -> bool {
    let mut backoff = Backoff::new(running.settings.max_backoff);
    loop {
        let started = Instant::now();
        if running.store.wait_ready(shutdown).await.is_err() {
            return false;
        }
        let registered = timeout(SLOW, registration::register::<P>(running.store.pool(), &running.replica)).await;
        match registered.unwrap_or(Err(StoreError::Busy)) {
            Ok(()) => return true,
            Err(error) => say::<P>(&error),
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = backoff.pause(started) => {}
        }
    }
}

/// How far the build that is being made has come.
fn measure<P: Projection>(seen: &replica::Seen, head: Position) {
    let made = seen.builds.values().find(|build| !build.serving);
    let progress = made.map_or(1.0, |build| {
        let applied: i64 = build.checkpoints.iter().map(|checkpoint| checkpoint.position.0.min(head.0)).sum();
        let all = i64::try_from(build.checkpoints.len()).unwrap_or_default() * head.0;
        if all == 0 { 1.0 } else { applied as f64 / all as f64 }
    });
    METRICS.projection_rebuild.record(progress, &[KeyValue::new("projection", P::NAME)]);
}

/// Puts a new build into service when it is as far as the one that is. Beside the workers, for they go on while it waits for them.
async fn switch<P: Projection>(running: &Running<P>, alive: &Alive, shutdown: &CancellationToken) {
    let mut seen = running.replica.seen();
    let mut said = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = seen.changed() => if changed.is_err() { return },
        }
        let nearly = {
            let seen = seen.borrow_and_update();
            let serving = seen.builds.values().find(|build| build.serving);
            measure::<P>(&seen, running.store.heads().newest());
            let made = seen
                .builds
                .values()
                .find(|build| !build.serving && build.version == P::VERSION && build.switch_when_ready && build.limit().is_none());
            let far = |build: &replica::Build| build.checkpoints.iter().map(|checkpoint| checkpoint.position.0).max();
            let near = |build: &replica::Build| build.checkpoints.iter().map(|checkpoint| checkpoint.position.0).min();
            match (serving, made) {
                (Some(serving), Some(made)) => made.before == 0 && near(made) >= far(serving).map(|far| far - running.settings.batch),
                _ => false,
            }
        };
        if nearly {
            let switched = timeout(SLOW, registration::switch(running.store.pool(), P::NAME, P::VERSION, &running.types)).await;
            match switched.unwrap_or(Err(StoreError::Busy)) {
                Ok(Switched::Done) => {
                    said = false;
                    alive.look();
                }
                Ok(Switched::NotYet) => {}
                Ok(Switched::Parked) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(
                            projection = P::NAME,
                            "the new build does not go into service: it has keys parked that the one in service has not; `cartctl parked list` shows them"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        projection = P::NAME,
                        error = &error as &dyn std::error::Error,
                        "the new build cannot go into service yet"
                    );
                }
            }
        }
    }
}
