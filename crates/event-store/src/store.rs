//! The handle on the log.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    append::{
        appender,
        source::{SourceAppender, SourcePartition, Translated},
    },
    connection::{ConnectionPool, PooledConnection},
    decide::{
        catch_up::read_up_to,
        decider::Decider,
        decision::{DecideError, Decision},
        stages::States,
        state_cache::StateCache,
    },
    error::StoreError,
    event::{LogEvent, Metadata, domain_ids},
    metrics::{self, Connections, METRICS},
    position::Position,
    read::{
        head_watcher::{self, HeadWatcher},
        reader::{Reader, Wait},
    },
    readiness,
    settings::StoreSettings,
};

/// The log of `E`. Cheap to clone; the clones share one appender and one set of connections.
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
    connections: ConnectionPool,
    settings: StoreSettings,
    ids: Vec<&'static str>,
    heads: HeadWatcher,
    reader: Reader,
    decider: Decider,
    source: SourceAppender,
    /// Stops the appender, the announcer and the listener when the last handle is gone, or [`EventStore::close`] is called.
    closed: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// Which log a new connection is to. Before the migrations, it is none yet.
async fn identify(connection: &mut PgConnection, heads: HeadWatcher) -> Result<(), sqlx::Error> {
    let migrated: bool =
        sqlx::query_scalar("SELECT to_regprocedure('public.event_log_id()') IS NOT NULL").fetch_one(&mut *connection).await?;
    if migrated {
        heads.connected_to(sqlx::query_scalar("SELECT public.event_log_id()").fetch_one(connection).await?);
    }
    Ok(())
}

fn connections(pool: &PgPool) -> Connections {
    // The two are not read at one moment.
    let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
    let used = (i64::from(pool.size()) - idle).max(0);
    Connections { idle, used, max: pool.options().get_max_connections().into() }
}

impl<E: LogEvent> EventStore<E> {
    /// A store on this database. Connects when it is first needed and whenever it has to again: a database that is away shows in
    /// [`EventStore::ready`] and in the answers.
    ///
    /// Must be called within a tokio runtime: it starts the appender, the announcer and the listener.
    pub fn new(options: PgConnectOptions, settings: StoreSettings) -> Self {
        METRICS.begin();
        let heads = HeadWatcher::new();
        let connected = heads.clone();
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections.max(4))
            .acquire_timeout(settings.connect_timeout)
            .after_connect(move |connection, _| Box::pin(identify(connection, connected.clone())))
            // One that was used just now is taken to be there still: a ping would double what a read costs.
            .test_before_acquire(false)
            .before_acquire(|connection, used| {
                Box::pin(
                    async move { if used.idle_for < Duration::from_secs(1) { Ok(true) } else { connection.ping().await.map(|()| true) } },
                )
            })
            .connect_lazy_with(options.clone());
        let ids = domain_ids::<E>();
        let (appends, queue) = mpsc::channel(4 * settings.max_batch);
        let closed = CancellationToken::new();
        tokio::spawn(appender::run(
            appender::Settings { options, ids: ids.clone(), settings: settings.clone() },
            queue,
            heads.clone(),
            closed.clone(),
        ));
        tokio::spawn(head_watcher::announce(pool.clone(), heads.clone(), settings.announce_interval, closed.clone()));
        tokio::spawn(head_watcher::listen(pool.clone(), heads.clone(), settings.poll_interval, closed.clone()));
        // The listener has one connection, and the announcer now and then another.
        let reads = settings.max_connections.saturating_sub(2).max(1) as usize;
        let connections = ConnectionPool::new(pool, reads, settings.command_timeout);
        let reader = Reader::new(connections.clone(), heads.clone(), ids.len());
        let known = StateCache::new(settings.state_cache_bytes, heads.clone());
        let shared = Shared {
            decider: Decider::new(&settings, reader.clone(), heads.clone(), ids.clone(), appends, known),
            source: SourceAppender::new(connections.clone(), heads.clone(), ids.clone()),
            reader,
            connections,
            settings,
            heads,
            ids,
            closed,
        };
        let shared = Arc::new(shared);
        let counted = Arc::downgrade(&shared);
        metrics::connections(move || counted.upgrade().map(|shared| self::connections(shared.connections.pool())));
        Self { shared, event: PhantomData }
    }

    /// The connections that reads and projections use.
    pub fn pool(&self) -> &PgPool {
        self.shared.connections.pool()
    }

    /// A connection for one piece of work, see [`PooledConnection`].
    ///
    /// # Errors
    /// Where none comes in time.
    pub async fn connection(&self) -> Result<PooledConnection, sqlx::Error> {
        self.shared.connections.connection().await
    }

    /// Waits for a turn to read, for as long as a command may wait.
    ///
    /// # Errors
    /// Where none comes in that time.
    pub async fn read_permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        self.shared.connections.read_permit().await
    }

    /// How the store was asked to behave.
    pub fn settings(&self) -> &StoreSettings {
        &self.shared.settings
    }

    /// The names of the log's domain ids: each is a column of the table `event`.
    pub fn domain_ids(&self) -> &[&'static str] {
        &self.shared.ids
    }

    /// The newest position, as it becomes known.
    pub fn head_watcher(&self) -> &HeadWatcher {
        &self.shared.heads
    }

    /// Whether the log can be reached and is migrated.
    ///
    /// # Errors
    /// What is waited for, as words for an operator.
    pub async fn ready(&self) -> Result<(), String> {
        readiness::ready(&self.shared.connections, self.shared.settings.connect_timeout).await
    }

    /// Waits until [`EventStore::ready`] says so, saying in the log what it waits for, whenever that changes.
    ///
    /// # Errors
    /// Where `cancelled` comes first.
    pub async fn wait_ready(&self, cancelled: &CancellationToken) -> Result<(), StoreError> {
        readiness::wait_ready(&self.shared.connections, self.shared.settings.connect_timeout, cancelled).await
    }

    /// Stops taking appends, lets those in flight end, and closes the connections.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        self.pool().close().await;
    }

    /// The newest position in the log.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn head(&self) -> Result<Position, StoreError> {
        self.shared.reader.head().await
    }

    /// Waits until the log has come to a position, for a query that is counted under this name: what is read after that is no older.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn wait(&self, query: &'static str, position: Position, timeout: Duration) -> Result<Wait, StoreError> {
        self.shared.reader.wait(query, position, timeout).await
    }

    /// Folds a state, or several, from the log as it stands at this moment. Answers also the position up to which they are complete.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn read<S: States<E>>(&self, states: S) -> Result<(S::View, Position), StoreError> {
        read_up_to(&self.shared.reader, states, None).await
    }

    /// Folds a state, or several, as they were at a position. Answers also the position up to which they are complete: that one, or the
    /// log's head where it is not there yet.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn read_at<S: States<E>>(&self, states: S, at: Position) -> Result<(S::View, Position), StoreError> {
        read_up_to(&self.shared.reader, states, Some(at)).await
    }

    /// Runs a decision: lets it decide on what is known of what it asks for, appends, and where events came in between, decides again on
    /// those, for as long as the setting `command_timeout` says. Answers the position of its last event; of what it found already done; or, where there
    /// was nothing to do, up to where that was known.
    ///
    /// # Errors
    /// The decision's own refusal, which rests on a read made for this command; or a store that is away, or busy past the bound.
    pub async fn decide<D: Decision<Event = E>>(&self, decision: &D) -> Result<Position, DecideError<D::Error>> {
        self.decide_with(decision, Metadata::current()).await
    }

    /// As [`EventStore::decide`], with metadata of the caller's.
    ///
    /// # Errors
    /// As [`EventStore::decide`].
    pub async fn decide_with<D: Decision<Event = E>>(&self, decision: &D, metadata: Metadata) -> Result<Position, DecideError<D::Error>> {
        self.shared.decider.decide(decision, &metadata).await
    }

    /// The offset of the next message to read, by partition; a partition never read has none.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn stored_offsets(&self, consumer: &str, topic: &str) -> Result<std::collections::HashMap<i32, i64>, StoreError> {
        self.shared.source.stored_offsets(consumer, topic).await
    }

    /// Appends a batch's events and moves the stored offset from `from` (`None`: never read) to `to`, both or neither. Where the stored
    /// offset is another than `from`, nothing is done.
    ///
    /// # Errors
    /// Where the log is away (the outcome may be unknown then: [`EventStore::stored_offsets`] tells), or refuses the data.
    pub async fn append_from(
        &self,
        source: SourcePartition<'_>,
        from: Option<i64>,
        to: i64,
        events: &[(E, Metadata)],
    ) -> Result<Translated, StoreError> {
        self.shared.source.append_from(source, from, to, events).await
    }
}
