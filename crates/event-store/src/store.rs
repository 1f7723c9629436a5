//! The handle on the log.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    Heads, LogEvent, StoreError,
    appender::{self, Append},
    event::domain_ids,
    heads, migrate,
    projection::Replicas,
};

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Connections for reading, projecting and listening; the appender has one besides. At least 4.
    pub max_connections: u32,
    /// How long a command may decide again, or wait for its turn, before it is answered that the log is busy.
    pub decide_deadline: Duration,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// Appends that one call carries at the most.
    pub max_batch: usize,
    /// Announcements of the head are at least this far apart.
    pub announce_interval: Duration,
    /// How often the head is looked up, should an announcement be lost.
    pub poll_interval: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            max_connections: 10,
            decide_deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            max_batch: 256,
            announce_interval: Duration::from_millis(5),
            poll_interval: Duration::from_secs(1),
        }
    }
}

/// The log of `E`. Cheap to clone; the clones share one appender and one set of connections.
pub struct EventStore<E> {
    pub(crate) shared: Arc<Shared>,
    event: PhantomData<fn() -> E>,
}

impl<E> Clone for EventStore<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), event: PhantomData }
    }
}

pub(crate) struct Shared {
    pub(crate) pool: PgPool,
    pub(crate) settings: StoreSettings,
    pub(crate) appends: mpsc::Sender<Append>,
    /// Reads for commands and queries take turns here, for as long as their caller waits, and not at the pool: its short timeout is for a
    /// database that is away.
    pub(crate) reads: Arc<Semaphore>,
    pub(crate) heads: Heads,
    pub(crate) ids: Vec<&'static str>,
    pub(crate) read_sql: String,
    pub(crate) append_from_sql: String,
    /// The projections that run in this process.
    pub(crate) replicas: Replicas,
    /// Stops the appender, the announcer and the listener when the last handle is gone, or [`EventStore::close`] is called.
    closed: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl<E: LogEvent> EventStore<E> {
    /// A store on this database. Connects when it is first needed and whenever it has to again: a database that is away shows in
    /// [`EventStore::ready`] and in the answers.
    ///
    /// Must be called within a tokio runtime: it starts the appender, the announcer and the listener.
    pub fn new(options: PgConnectOptions, settings: StoreSettings) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections.max(4))
            .acquire_timeout(settings.connect_timeout)
            .connect_lazy_with(options.clone());
        let ids = domain_ids::<E>();
        let (appends, queue) = mpsc::channel(4 * settings.max_batch);
        let closed = CancellationToken::new();
        let heads = Heads::new();
        tokio::spawn(appender::run(
            appender::Settings { options, ids: ids.clone(), settings: settings.clone() },
            queue,
            heads.clone(),
            closed.clone(),
        ));
        tokio::spawn(heads::announce(pool.clone(), heads.clone(), settings.announce_interval, closed.clone()));
        tokio::spawn(heads::listen(pool.clone(), heads.clone(), settings.poll_interval, closed.clone()));
        let shared = Shared {
            read_sql: crate::read::sql(ids.len()),
            append_from_sql: crate::translate::sql(ids.len()),
            pool,
            replicas: Replicas::default(),
            // The listener has one connection, and the announcer now and then another.
            reads: Arc::new(Semaphore::new(settings.max_connections.saturating_sub(2).max(1) as usize)),
            settings,
            appends,
            heads,
            ids,
            closed,
        };
        Self { shared: Arc::new(shared), event: PhantomData }
    }

    /// Waits for a turn to read, for as long as a command may wait.
    pub(crate) async fn turn(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        match tokio::time::timeout(self.shared.settings.decide_deadline, self.shared.reads.clone().acquire_owned()).await {
            Ok(turn) => turn.map_err(|_| StoreError::Closed),
            Err(_) => Err(StoreError::Busy),
        }
    }

    /// The connections that reads and projections use.
    pub fn pool(&self) -> &PgPool {
        &self.shared.pool
    }

    /// The newest position, as it becomes known.
    pub fn heads(&self) -> &Heads {
        &self.shared.heads
    }

    /// The projections that run in this process.
    pub(crate) fn replicas(&self) -> &Replicas {
        &self.shared.replicas
    }

    /// Whether the log can be reached and is migrated.
    ///
    /// # Errors
    /// What is waited for, as words for an operator.
    pub async fn ready(&self) -> Result<(), String> {
        match migrate::missing(self.pool()).await {
            Ok(None) => Ok(()),
            Ok(Some(missing)) => Err(missing),
            Err(error) => Err(format!("the database ({error})")),
        }
    }

    /// Waits until [`EventStore::ready`] says so, saying in the log what it waits for, whenever that changes.
    ///
    /// # Errors
    /// Where `cancelled` comes first.
    pub async fn wait_ready(&self, cancelled: &CancellationToken) -> Result<(), StoreError> {
        let mut said = String::new();
        let mut pause = Duration::from_millis(100);
        loop {
            match self.ready().await {
                Ok(()) => return Ok(()),
                Err(reason) if reason != said => {
                    tracing::warn!(waiting_for = %reason, "not ready yet");
                    said = reason;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = cancelled.cancelled() => return Err(StoreError::Closed),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(2)),
            }
        }
    }

    /// Stops taking appends, lets those in flight end, and closes the connections.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.pool.close().await;
    }
}
