//! A process that runs projections, as a task of the test.

use std::time::Duration;

use event_store::{EventStore, LogEvent, StoreSettings};
use projections::{Projection, Projections, Settings};
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::TestLog;

/// A replica with its own connections, like a process of cart-projections.
pub struct Process<E> {
    /// Its handle on projections.
    pub projections: Projections<E>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The settings of a replica that takes over soon.
pub fn quick() -> Settings {
    Settings { lease: Duration::from_millis(900), batch: 50, max_backoff: Duration::from_millis(200), ..Settings::default() }
}

impl<E: LogEvent> Process<E> {
    /// Runs a projection with [`quick`] settings.
    pub fn start<P: Projection<Log = E>>(log: &TestLog<E>, projection: P) -> Self {
        Self::with(log, projection, quick())
    }

    /// Runs a projection with these settings.
    pub fn with<P: Projection<Log = E>>(log: &TestLog<E>, projection: P, settings: Settings) -> Self {
        Self::connected(log.database.options_as("cartlog_projections"), StoreSettings::default(), projection, settings)
    }

    /// Runs a projection on a database, with these settings.
    pub fn connected<P: Projection<Log = E>>(options: PgConnectOptions, store: StoreSettings, projection: P, settings: Settings) -> Self {
        let projections = Projections::new(EventStore::new(options, store));
        let stop = CancellationToken::new();
        let ran = projections.run(projection, settings, stop.clone());
        Self { projections, stop, task: tokio::spawn(async move { ran.await.expect("the projection ends well") }) }
    }

    /// Ends it like kill -9.
    pub fn kill(self) {
        self.task.abort();
    }

    /// Ends it well.
    ///
    /// # Panics
    /// If the projection panicked.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the projection does not panic");
        self.projections.store().close().await;
    }
}
