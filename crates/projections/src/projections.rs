//! The handle to the projections of a process.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use event_store::{EventStore, LogEvent, Position, StoreError};
use sqlx::{FromRow, postgres::PgRow};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    automation::{Automation, run_automation},
    backlog::{Backlog, backlog},
    error::ProjectionError,
    projection::Projection,
    read::{self, Query},
    replica::Replicas,
    run::run,
    settings::Settings,
    wait::{Wait, wait},
};

/// Runs projections in this process, and reads any projection. Cheap to clone; the clones share one heartbeat.
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
    /// Creates a handle without running projections. Create one per process and clone it.
    pub fn new(store: EventStore<E>) -> Self {
        Self { store, replicas: Replicas::default() }
    }

    /// Returns the log.
    pub fn store(&self) -> &EventStore<E> {
        &self.store
    }

    /// Runs a projection until shutdown. Any number of processes may run the same projection: they share its segments, and if one dies the
    /// others take over.
    ///
    /// # Errors
    /// None. Errors are logged, counted and retried.
    pub fn run<P: Projection<Log = E>>(
        &self,
        projection: P,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<P, E> {
        run(self.store.clone(), self.replicas.clone(), Arc::new(projection), settings, Arc::default(), shutdown)
    }

    /// Runs an automation until shutdown: its projection, and the commands of its to-dos. Processes share the segments as with
    /// [`run`](Self::run), and each to-do is leased to one process.
    ///
    /// # Errors
    /// None. Errors are logged, counted and retried.
    pub fn run_automation<A: Automation<Log = E>>(
        &self,
        automation: A,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<A, E> {
        run_automation(self.store.clone(), self.replicas.clone(), Arc::new(automation), settings, shutdown)
    }

    /// Reads rows of the serving build of a projection, with one statement. A rebuild cannot empty the tables meanwhile. Pass the key that the
    /// query is about, or `None` if it is about all keys.
    ///
    /// # Errors
    /// The key, or any key if `None`, is parked. The projection never ran, or is an automation. The database is unreachable, busy or does not
    /// answer.
    pub async fn read<R: for<'r> FromRow<'r, PgRow>>(
        &self,
        name: &'static str,
        key: Option<Uuid>,
        query: Query,
    ) -> Result<Vec<R>, ProjectionError> {
        Ok(read::read(&self.store, &self.replicas, name, key, &query).await?.0)
    }

    /// Waits as [`wait`](Self::wait) does and then reads as [`read`](Self::read) does. The rows include the log up to the position, whichever
    /// server answers. Returns also the position up to which they are known to include it.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`ProjectionError::Behind`] if the position is not reached in time.
    pub async fn read_from<R: for<'r> FromRow<'r, PgRow>>(
        &self,
        name: &'static str,
        key: Option<Uuid>,
        min: Position,
        timeout: Duration,
        query: &Query,
    ) -> Result<(Vec<R>, Position), ProjectionError> {
        read::read_from(&self.store, &self.replicas, name, key, min, timeout, query).await
    }

    /// Waits until the serving build of a projection has applied the log up to a position, for a key or for all keys, in any process.
    /// Returns [`Wait::Parked`] at once if the key was parked when waiting began. [`Wait::Reached`] does not say that no key is parked.
    ///
    /// # Errors
    /// The database is unreachable or busy.
    pub async fn wait(&self, name: &'static str, key: Option<Uuid>, position: Position, timeout: Duration) -> Result<Wait, StoreError> {
        Ok(wait(&self.store, &self.replicas, name, key, position, timeout).await?.0)
    }

    /// Reads the backlog of the projections that this process runs, by name, with one statement. It covers all processes.
    ///
    /// # Errors
    /// The database is unreachable or does not answer.
    pub async fn backlog(&self) -> Result<BTreeMap<String, Backlog>, StoreError> {
        backlog(&self.store, &self.replicas).await
    }

    /// Checks that this process does a projection's work: its heartbeat is younger than three leases, and no task has failed for longer.
    /// An event that cannot be applied is no failure of a task.
    ///
    /// # Errors
    /// Says what is wrong, in words for an operator.
    pub fn working(&self, name: &str) -> Result<(), String> {
        self.replicas.working(name)
    }
}
