//! The handle on the projections of a process.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use event_store::{EventStore, LogEvent, Position, StoreError};
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    backlog::{Backlog, backlog},
    error::ProjectionError,
    projection::Projection,
    registration,
    replica::Replicas,
    run::run,
    serving::{self, Wait},
    settings::Settings,
};

/// The projections that run in this process, and those of others to read. Cheap to clone; the clones share one heartbeat.
pub struct Projections<E> {
    store: EventStore<E>,
    replicas: Replicas,
}

impl<E> Clone for Projections<E> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), replicas: self.replicas.clone() }
    }
}

impl<E: LogEvent> Projections<E> {
    /// The projections of this log; none runs yet.
    pub fn new(store: EventStore<E>) -> Self {
        Self { store, replicas: Replicas::default() }
    }

    /// The log.
    pub fn store(&self) -> &EventStore<E> {
        &self.store
    }

    /// Runs a projection until it is told to stop. Any number of processes may run the same one: they share its segments, and when one dies
    /// the others take over. `applied` is told up to where, whenever this process has applied something: not how it goes past what is
    /// nothing of it.
    ///
    /// # Errors
    /// None: what goes wrong is said, counted and tried again.
    pub fn run<P: Projection<Log = E>>(
        &self,
        projection: P,
        settings: Settings,
        applied: Arc<watch::Sender<Position>>,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<P, E> {
        run(self.store.clone(), self.replicas.clone(), projection, settings, applied, shutdown)
    }

    /// Reads the build of a projection that is in service: its tables are found without a schema, and are not emptied meanwhile. What is read
    /// is about a key, or where none is given about any: where that is parked, it is not read.
    ///
    /// # Errors
    /// Where the database is away, busy or does not answer, or the projection was never run; where a key is parked.
    pub async fn read<T>(
        &self,
        name: &'static str,
        key: Option<Uuid>,
        read: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ProjectionError> {
        serving::read(&self.store, name, key, read).await
    }

    /// Waits until the build of a projection that is in service has applied the log up to a position: for a key, or where there is none for
    /// every key, whichever replicas have them in hand. Where a key is parked that this is about, it does not wait; that it is there does
    /// not say that none is.
    ///
    /// # Errors
    /// Where the database is away or busy.
    pub async fn wait(&self, name: &'static str, key: Option<Uuid>, position: Position, timeout: Duration) -> Result<Wait, StoreError> {
        serving::wait(&self.store, &self.replicas, name, key, position, timeout).await
    }

    /// How far the projections are behind that this process runs, by name. In one statement.
    ///
    /// # Errors
    /// Where the database is away or does not answer.
    pub async fn backlog(&self) -> Result<BTreeMap<String, Backlog>, StoreError> {
        backlog(&self.store, &self.replicas).await
    }

    /// Whether a projection is known: it has a build in service, however far that has come.
    ///
    /// # Errors
    /// Where the database is away or the migrations are missing.
    pub async fn registered(&self, name: &str) -> Result<bool, StoreError> {
        registration::registered(&self.store, name).await
    }
}
