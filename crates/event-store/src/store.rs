//! The handle on a log.

use std::{collections::HashMap, marker::PhantomData, sync::Arc, time::Duration};

use sqlx::postgres::PgConnectOptions;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    append::{
        appender,
        source::{NextOffset, SourceAppender, SourcePartition, Translated},
    },
    connection::{Pool, PooledConnection, log_connection::Connector, with_timeout},
    decide::{
        catch_up::read_up_to,
        decider::Decider,
        decision::{DecideError, Decision},
        stages::States,
        state_cache::StateCache,
    },
    error::StoreError,
    event::{LogEvent, Metadata, domain_ids},
    installation::{self, Finding},
    metrics::{self, METRICS},
    position::Position,
    read::{
        head_listener,
        head_watcher::HeadWatcher,
        reader::{Reader, Wait},
        touched::{self, Touched},
    },
    readiness,
    settings::StoreSettings,
};

/// A log of events of type `E`, on PostgreSQL.
///
/// Clones are cheap and share one appender and one set of connections.
pub struct EventStore<E> {
    shared: Arc<Shared>,
    event: PhantomData<fn() -> E>,
}

impl<E> Clone for EventStore<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), event: PhantomData }
    }
}

struct Shared {
    pool: Pool,
    settings: StoreSettings,
    ids: Vec<&'static str>,
    head_watcher: HeadWatcher,
    reader: Reader,
    decider: Decider,
    source: SourceAppender,
    /// Stops the appender, the announcer and the listener.
    closed: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl<E: LogEvent> EventStore<E> {
    /// Opens a log, without connecting yet. If the database is unreachable, [`ready`](Self::ready) and each operation say so.
    ///
    /// Call it within a Tokio runtime: it spawns the appender, the announcer and the listener.
    pub fn new(options: PgConnectOptions, settings: StoreSettings) -> Self {
        METRICS.begin();
        let head_watcher = HeadWatcher::new();
        let connector = Connector::new(options, &settings, head_watcher.clone());
        let pool = Pool::new(connector.clone(), &settings);
        let ids = domain_ids::<E>();
        let (appends, queue) = mpsc::channel(4 * settings.max_batch);
        let closed = CancellationToken::new();
        tokio::spawn(appender::run(connector.clone(), ids.len(), settings.clone(), queue, closed.clone()));
        tokio::spawn(head_listener::announce(pool.clone(), settings.announce_interval, closed.clone()));
        tokio::spawn(head_listener::listen(connector, settings.poll_interval, closed.clone()));
        let reader = Reader::new(pool.clone(), ids.clone());
        let cache = StateCache::new(settings.state_cache_bytes, head_watcher.clone());
        let shared = Shared {
            decider: Decider::new(&settings, reader.clone(), head_watcher.clone(), ids.clone(), appends, cache),
            source: SourceAppender::new(pool.clone(), ids.clone()),
            reader,
            pool,
            settings,
            head_watcher,
            ids,
            closed,
        };
        let shared = Arc::new(shared);
        let counted = Arc::downgrade(&shared);
        metrics::connections(move || counted.upgrade().map(|shared| shared.pool.counts()));
        Self { shared, event: PhantomData }
    }

    /// Returns the pool of connections for reading and projecting.
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Takes a connection out of the pool. See [`PooledConnection::from`].
    ///
    /// # Errors
    /// As there.
    pub async fn connection(&self) -> Result<PooledConnection, StoreError> {
        PooledConnection::from(&self.shared.pool).await
    }

    /// Notes a position that was read from the database on a connection of this epoch, such as a checkpoint. From then on, what this
    /// process reads from the log in that epoch includes the position.
    pub fn saw(&self, position: Position, epoch: u64) {
        self.shared.head_watcher.seen(position, epoch);
    }

    /// Waits for a permit to read. Holders of permits never exhaust the pool.
    ///
    /// # Errors
    /// [`StoreError::Busy`] after the command timeout.
    pub async fn read_permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        self.shared.pool.read_permit().await
    }

    /// Returns the settings.
    pub fn settings(&self) -> &StoreSettings {
        &self.shared.settings
    }

    /// Returns the names of the log's domain ids, sorted. Each is a column of the table `event`.
    pub fn domain_ids(&self) -> &[&'static str] {
        &self.shared.ids
    }

    /// Returns the watcher of the newest position.
    pub fn head_watcher(&self) -> &HeadWatcher {
        &self.shared.head_watcher
    }

    /// Checks that the log can be reached, is migrated, and takes writes.
    ///
    /// # Errors
    /// The missing thing, in words for an operator.
    pub async fn ready(&self) -> Result<(), String> {
        readiness::ready(&self.shared.pool).await
    }

    /// Returns what is wrong with the database's roles, grants and settings, and who keeps others waiting for a lock. Takes tens of
    /// milliseconds, so do not ask more often than every few seconds.
    ///
    /// # Errors
    /// If the database is unreachable or not migrated.
    pub async fn check_installation(&self) -> Result<Vec<Finding>, StoreError> {
        with_timeout(async {
            let mut connection = self.connection().await?;
            let findings = installation::check(&mut connection).await?;
            connection.done();
            Ok(findings)
        })
        .await
    }

    /// Waits until [`ready`](Self::ready) succeeds. Logs what it waits for, whenever that changes.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if `cancelled` comes first.
    pub async fn wait_ready(&self, cancelled: &CancellationToken) -> Result<(), StoreError> {
        readiness::wait_ready(&self.shared.pool, cancelled).await
    }

    /// Takes no more appends, and sends those that wait. Closes the connections, each one when its work is done.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        self.pool().close();
    }

    /// Reads the newest position in the log.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn head(&self) -> Result<Position, StoreError> {
        self.shared.reader.head().await
    }

    /// Waits until the log reaches a position. A read that starts afterwards sees it.
    ///
    /// `query` labels the metric `query.wait.duration`.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn wait(&self, query: &'static str, position: Position, timeout: Duration) -> Result<Wait, StoreError> {
        self.shared.reader.wait(query, position, timeout).await
    }

    /// Reads which ids the events after a position carry, of at most 10,000 events. With it, many readers learn by one question what changed.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn touched(&self, after: Position) -> Result<Touched, StoreError> {
        touched::touched(&self.shared.pool, &self.shared.ids, after).await
    }

    /// Folds states from the log as it is now. Returns also the position up to which they are complete.
    ///
    /// Starts from the cached states and reads what came after them, so reading a state again costs little, however many events it has.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn read<S: States<E>>(&self, states: S) -> Result<(S::View, Position), StoreError> {
        self.shared.decider.read(states).await
    }

    /// Folds states as they were at a position. Returns also the position up to which they are complete: `at`, or the head if the log has
    /// not reached `at`.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn read_at<S: States<E>>(&self, states: S, at: Position) -> Result<(S::View, Position), StoreError> {
        read_up_to(&self.shared.reader, states, at).await
    }

    /// Runs a decision: decides on the cached states and appends its events. After a conflict it folds the missed events and decides again,
    /// until the command timeout.
    ///
    /// Returns the position of its last event. If it was already done, returns the position of that; if there was nothing to do, the
    /// position up to which that was read.
    ///
    /// # Errors
    /// The decision's refusal, which always rests on a read made for this command, or a fault of the store.
    pub async fn decide<D: Decision<Event = E>>(&self, decision: &D) -> Result<Position, DecideError<D::Error>> {
        self.decide_with(decision, Metadata::current()).await
    }

    /// Runs a decision as [`decide`](Self::decide) does, with metadata from the caller.
    ///
    /// # Errors
    /// As [`decide`](Self::decide).
    pub async fn decide_with<D: Decision<Event = E>>(&self, decision: &D, metadata: Metadata) -> Result<Position, DecideError<D::Error>> {
        self.shared.decider.decide(decision, &metadata).await
    }

    /// Returns the offset of the next message to read, by partition. A partition that was never read is missing.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn stored_offsets(&self, consumer: &str, topic: &str) -> Result<HashMap<i32, NextOffset>, StoreError> {
        self.shared.source.stored_offsets(consumer, topic).await
    }

    /// Appends a batch's events and moves the stored offset from `from` to `to`: both or neither. `None` means never read. If the stored
    /// offset is not `from`, nothing is written. If `to` names no last message, the one before is kept.
    ///
    /// # Errors
    /// If the log is unreachable or refuses the data. After a lost answer, [`stored_offsets`](Self::stored_offsets) shows the outcome.
    pub async fn append_from(
        &self,
        source: SourcePartition<'_>,
        from: Option<i64>,
        to: impl Into<NextOffset>,
        events: &[(E, Metadata)],
    ) -> Result<Translated, StoreError> {
        self.shared.source.append_from(source, from, to.into(), events).await
    }
}
