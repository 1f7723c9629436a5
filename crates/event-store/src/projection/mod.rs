//! Projections: tables made of the log. A projection says what it takes and how a batch becomes SQL; the runtime does the rest.
//!
//! The batch and its checkpoints are written in one transaction, so an event is applied exactly once, whatever dies. Each read model's
//! tables stand in two database schemas, so that a new build can be made beside the one in service; the runtime sets the search path.
//!
//! A projection is cut into segments by a hash of its key. The replicas that are alive, any number of processes, share its segments out
//! among themselves (`replica`, `worker`); what a replica holds it works as one: it reads the log once, writes a batch for all segments that
//! stand at the same position in one transaction, and lets those that are behind catch up with the others first.

mod registration;
mod replica;
mod segment;
mod serving;
mod worker;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use disintegrate::Event;
use sqlx::PgConnection;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{EventStore, LogEvent, Position, Recorded, StoreError};

pub use registration::{Switch, rebuild, rebuild_named, registered, switch_when_ready};
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

    /// What events keep their order by. An event without a key concerns every key: it is applied once in each segment, and then may touch
    /// only rows whose key `projection_holds`, in SQL.
    fn key(event: &Self::Event) -> Option<Uuid>;

    /// Applies a batch, in the order of the log, within the transaction that moves the checkpoint. Set-based: one statement a kind of
    /// change, not one a row.
    ///
    /// # Errors
    /// The database's. The transaction is rolled back then, and the batch is tried again.
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
}

impl Default for Settings {
    fn default() -> Self {
        Self { batch: 10_000, lease: Duration::from_secs(3), max_backoff: Duration::from_secs(10) }
    }
}

/// Runs a projection until it is told to stop. Any number of processes may run the same one: they share its segments, and when one dies the
/// others take over. `applied` is told how far this process has come with what it holds.
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
    let replica = Arc::new(Replica::new(P::NAME, P::VERSION, P::SEGMENTS, settings.lease));
    let types = P::Event::SCHEMA.events.iter().map(|name| (*name).to_owned()).collect();
    let running = Running { store, projection, settings, applied, replica, types };
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
    drop(alive);
    // Where the database is away, the others wait until it is no longer alive.
    let _ =
        sqlx::query!("DELETE FROM replica WHERE name = $1 AND id = $2", P::NAME, running.replica.id).execute(running.store.pool()).await;
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

/// Puts a new build into service when it is as far as the one that is. Beside the workers, for they go on while it waits for them.
async fn switch<P: Projection>(running: &Running<P>, alive: &Alive, shutdown: &CancellationToken) {
    let mut seen = running.replica.seen();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = seen.changed() => if changed.is_err() { return },
        }
        let nearly = {
            let seen = seen.borrow_and_update();
            let serving = seen.builds.values().find(|build| build.serving);
            let made = seen.builds.values().find(|build| !build.serving && build.version == P::VERSION && build.switch_when_ready);
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
                Ok(true) => alive.look(),
                Ok(false) => {}
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
