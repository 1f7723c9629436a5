//! The pool of connections.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use deadpool::{
    Runtime,
    managed::{self, Manager, Metrics, Object, PoolError, RecycleError, RecycleResult, TimeoutType, Timeouts},
};
use futures::{
    FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Connection, Describe, Either, Execute, Executor, PgConnection, Postgres,
    postgres::{PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

use crate::{
    connection::log_connection::{Connector, LogConnection},
    error::StoreError,
    metrics::{Connections, METRICS},
    position::Position,
    read::head_watcher::HeadWatcher,
    settings::StoreSettings,
};

/// A connection that was used within this time is taken as alive. A ping would double the cost of a read.
const ALIVE: Duration = Duration::from_secs(1);

/// The pause between two looks for a session with long work.
const LOOK: Duration = Duration::from_secs(2);

/// How long a statement may go unanswered if the session has no timeout of its own.
const NO_TIMEOUT: Duration = Duration::from_secs(60);

/// A store's connections for reading and projecting, and the permits to read with them. Clones share them.
///
/// A connection of an earlier [epoch](crate::HeadWatcher::epoch) is never handed out.
#[derive(Clone)]
pub struct Pool {
    connections: managed::Pool<ToLog>,
    connector: Connector,
    /// Commands and queries queue here for as long as they may wait. The pool's own timeout is short.
    reads: Arc<Semaphore>,
    command_timeout: Duration,
    /// How long a statement may go unanswered. After this the server counts as frozen or gone.
    answer_timeout: Duration,
}

/// Opens the pool's connections and checks them before they are used again.
struct ToLog(Connector);

impl Manager for ToLog {
    type Type = LogConnection;
    type Error = StoreError;

    async fn create(&self) -> Result<LogConnection, StoreError> {
        self.0.connect().await
    }

    async fn recycle(&self, connection: &mut LogConnection, used: &Metrics) -> RecycleResult<StoreError> {
        if !connection.is_current() {
            return Err(RecycleError::message("another server serves the log"));
        }
        if used.last_used() >= ALIVE {
            connection.ping().await.map_err(StoreError::from)?;
        }
        Ok(())
    }
}

impl Pool {
    /// Opens a pool without a store, for a tool. It connects when a connection is needed. Call it within a Tokio runtime.
    pub fn open(options: PgConnectOptions, settings: &StoreSettings) -> Self {
        Self::new(Connector::new(options, settings, HeadWatcher::new()), settings)
    }

    pub(crate) fn new(connector: Connector, settings: &StoreSettings) -> Self {
        let size = settings.max_connections.max(4) as usize;
        // Connecting has a timeout of its own.
        let timeouts = Timeouts { wait: Some(connector.timeout()), create: None, recycle: Some(connector.timeout()) };
        let building = managed::Pool::builder(ToLog(connector.clone())).max_size(size).timeouts(timeouts).runtime(Runtime::Tokio1);
        #[allow(clippy::expect_used, reason = "building fails only for timeouts without a runtime")]
        let connections = building.build().expect("the runtime is set");
        // The announcer uses one connection from time to time.
        let reads = Arc::new(Semaphore::new(size - 1));
        let answer_timeout = answer_timeout(settings);
        Self { connections, connector, reads, command_timeout: settings.command_timeout, answer_timeout }
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Waits for a permit to read, for at most the command timeout.
    pub(crate) async fn read_permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        match tokio::time::timeout(self.command_timeout, self.reads.clone().acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| StoreError::Closed),
            Err(_) => {
                METRICS.command_timeouts.add(1, &[]);
                Err(StoreError::Busy)
            }
        }
    }

    /// Closes the idle connections, and every other one when its work is done. Nobody gets a connection any more.
    pub(crate) fn close(&self) {
        self.connections.close();
    }

    /// Opens a connection beside the pool, for work that must not wait for the pool's connections. Drop it after any error.
    ///
    /// # Errors
    /// If the server cannot be reached within the connect timeout, or is not the log's current one.
    pub async fn connect(&self) -> Result<LogConnection, StoreError> {
        self.connector.connect().await
    }

    /// Begins a transaction on a connection of its own.
    ///
    /// # Errors
    /// As [`PooledConnection::from`], or if the server does not answer.
    pub async fn begin(&self) -> Result<PooledTransaction, sqlx::Error> {
        let beginning = async {
            let mut connection = PooledConnection::from(self).await?;
            connection.execute("BEGIN").await?;
            Ok(PooledTransaction { connection, answer_timeout: self.answer_timeout })
        };
        within(self.answer_timeout, beginning).await
    }

    /// Runs work of a transaction that may take long, for as long as the server has the session. New connections ask for it every 2 seconds.
    ///
    /// A statement waits without a limit for a server that is gone, and a limit that is long enough for the work would be too long for that.
    /// If only the answer is lost, the session ends, because the server ends a transaction whose client does not go on.
    ///
    /// # Errors
    /// The work's own; [`StoreError::NotCurrent`] if the session is gone; why no connection can ask for it, if that lasts. Drop the
    /// transaction then.
    pub async fn while_alive<T, E: From<StoreError>>(
        &self,
        transaction: &mut PgConnection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let session = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let session = sqlx::query_as(session).fetch_one(&mut *transaction);
        let session = within(self.answer_timeout, session).await.map_err(StoreError::from)?;
        tokio::select! {
            done = work(transaction) => done,
            gone = self.until_gone(session) => Err(gone.into()),
        }
    }

    /// Waits until the server does not have a session any more, or nobody can ask for it.
    async fn until_gone(&self, (pid, started): (i32, String)) -> StoreError {
        let has = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2)";
        let mut answered = Instant::now();
        loop {
            sleep(LOOK).await;
            let asking = async {
                let mut connection = self.connect().await?;
                sqlx::query_scalar(has).bind(pid).bind(&started).fetch_one(&mut *connection).await
            };
            match within(self.answer_timeout, asking).await {
                Ok(true) => answered = Instant::now(),
                Ok(false) => return StoreError::NotCurrent("it has ended the session".to_owned()),
                Err(error) if answered.elapsed() >= self.answer_timeout => return error.into(),
                Err(_) => {}
            }
        }
    }

    /// Returns whether the pool is closed.
    pub fn is_closed(&self) -> bool {
        self.connections.is_closed()
    }

    pub(crate) fn counts(&self) -> Connections {
        let status = self.connections.status();
        let count = |connections: usize| i64::try_from(connections).unwrap_or(i64::MAX);
        Connections {
            idle: count(status.available),
            used: count(status.size.saturating_sub(status.available)),
            max: count(status.max_size),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("status", &self.connections.status()).finish_non_exhaustive()
    }
}

/// A connection of the pool, for one piece of work.
///
/// Call [`done`](Self::done) when the work is finished: the connection then returns to the pool. A connection that is dropped earlier is
/// closed, because a statement may still run on it.
pub struct PooledConnection(Option<Object<ToLog>>);

impl PooledConnection {
    /// Takes a connection out of the pool, or opens one.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if all are in use for the connect timeout; or why no connection can be opened.
    pub async fn from(pool: &Pool) -> Result<Self, StoreError> {
        match pool.connections.get().await {
            Ok(connection) => Ok(Self(Some(connection))),
            Err(PoolError::Backend(error)) => Err(error),
            Err(PoolError::Timeout(TimeoutType::Wait)) => Err(StoreError::Busy),
            Err(PoolError::Timeout(_)) => Err(StoreError::NoAnswer(pool.connector.timeout())),
            Err(PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => Err(StoreError::Closed),
        }
    }

    /// Returns the connection to the pool. Closes it instead if another server serves the log by now.
    pub fn done(mut self) {
        if self.is_current() {
            drop(self.0.take());
        }
    }

    /// Returns the epoch that the connection belongs to. See [`LogConnection::epoch`].
    pub fn epoch(&self) -> u64 {
        self.log().epoch()
    }

    /// Returns whether the connection still leads to the log's current server. See [`LogConnection::is_current`].
    pub fn is_current(&self) -> bool {
        self.log().is_current()
    }

    /// Checks that the log on this connection's server has reached a position. See [`LogConnection::ensure_head`].
    ///
    /// # Errors
    /// [`StoreError::NotCurrent`] if it has not. Drop the connection then.
    #[allow(clippy::expect_used, reason = "as below")]
    pub async fn ensure_head(&mut self, position: Position) -> Result<(), StoreError> {
        self.0.as_mut().expect("the connection is there until done").ensure_head(position).await
    }

    #[allow(clippy::expect_used, reason = "only methods that consume the whole take it out")]
    fn log(&self) -> &LogConnection {
        self.0.as_ref().expect("the connection is there until done")
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        self.log()
    }
}

impl DerefMut for PooledConnection {
    #[allow(clippy::expect_used, reason = "as above")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("the connection is there until done")
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(unfinished) = self.0.take() {
            drop(Object::take(unfinished));
        }
    }
}

impl fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledConnection").finish_non_exhaustive()
    }
}

/// Returns how long a statement may go unanswered: a server that lives ends it at its own timeout, and says so at once.
fn answer_timeout(settings: &StoreSettings) -> Duration {
    let limits = [settings.timeouts.statement, settings.timeouts.transaction];
    limits.into_iter().flatten().min().unwrap_or(NO_TIMEOUT) + settings.connect_timeout
}

/// Runs database work with a timeout. Keeps its error as it is, which [`with_timeout_of`](crate::connection::with_timeout_of) does not.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(StoreError::NoAnswer(limit).into()))
}

/// A transaction on a connection of the pool. If it is dropped, the connection is closed, and the server rolls back.
///
/// Beginning and ending it have a timeout. Its statements have none, because only the caller knows how long they may take.
pub struct PooledTransaction {
    connection: PooledConnection,
    answer_timeout: Duration,
}

impl PooledTransaction {
    /// Commits, and returns the connection to the pool.
    ///
    /// # Errors
    /// If the server does not commit, or does not answer.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    /// Rolls back, and returns the connection to the pool.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &str) -> Result<(), sqlx::Error> {
        within(self.answer_timeout, self.connection.execute(how)).await?;
        self.connection.done();
        Ok(())
    }
}

impl Deref for PooledTransaction {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for PooledTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Pool {
    /// Runs a statement on a connection of its own, for as long as the server may take to answer.
    async fn run<T>(&self, statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let running = async {
            let mut connection = PooledConnection::from(self).await?;
            let answer = statement(&mut connection).await?;
            connection.done();
            Ok(answer)
        };
        within(self.answer_timeout, running).await
    }
}

/// Runs a statement on a connection of its own. The whole answer is read before the first row is returned. A server that does not answer
/// for longer than the session's timeouts allow counts as gone.
impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let answer = self.run(async move |connection| connection.fetch_many(query).try_collect::<Vec<_>>().await);
        let answer = answer.map_ok(|answer| stream::iter(answer.into_iter().map(Ok)));
        stream::once(answer).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.run(async move |connection| connection.fetch_optional(query).await).boxed()
    }

    fn prepare_with<'e, 'q: 'e>(self, sql: &'q str, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement<'q>, sqlx::Error>>
    where
        'p: 'e,
    {
        self.run(async move |connection| connection.prepare_with(sql, parameters).await).boxed()
    }

    fn describe<'e, 'q: 'e>(self, sql: &'q str) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        self.run(async move |connection| connection.describe(sql).await).boxed()
    }
}
