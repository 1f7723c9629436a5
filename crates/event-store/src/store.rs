//! The handle on the log.

use std::{
    borrow::Cow,
    fmt::Display,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use sqlx::{
    Connection, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgDatabaseError, PgPoolOptions},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Heads, Known, LogEvent, StoreError,
    appender::{self, Append},
    event::domain_ids,
    heads,
    metrics::{self, Connections, METRICS},
    migrate,
    projection::Replicas,
    together::Reads,
    turns::Turns,
};

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Connections for reading, projecting and listening; the appender has two besides. At least 4.
    pub max_connections: u32,
    /// How long a command may decide again, or wait for its turn, before it is answered that the log is busy.
    pub decide_deadline: Duration,
    /// Bytes of states that are kept for the next decision, as reckoned from what they hold; 0 keeps none, and every decision reads first.
    /// Answers are the same either way.
    pub known_bytes: usize,
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
            known_bytes: 32_000_000,
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
    /// Where the store was made.
    pub(crate) runtime: Handle,
    pub(crate) settings: StoreSettings,
    pub(crate) appends: mpsc::Sender<Append>,
    /// Reads for commands and queries take turns here, for as long as their caller waits, and not at the pool: its short timeout is for a
    /// database that is away.
    pub(crate) reads: Arc<Semaphore>,
    /// Those that wait for one, to go together.
    pub(crate) waiting_reads: Reads,
    /// Commands that are on their way to the log.
    pub(crate) admitted: Semaphore,
    /// Commands that waited for their turn while somebody kept losing.
    pub(crate) in_line: AtomicUsize,
    /// How many of them there may be at once.
    pub(crate) places: AtomicUsize,
    pub(crate) heads: Heads,
    pub(crate) known: Known,
    /// Of the commands that are about to append, by what they write.
    pub(crate) turns: Turns,
    pub(crate) ids: Vec<&'static str>,
    pub(crate) read_sql: String,
    pub(crate) append_from_sql: String,
    /// The projections that run in this process.
    pub(crate) replicas: Replicas,
    /// Stops the appender, the announcer and the listener when the last handle is gone, or [`EventStore::close`] is called.
    closed: CancellationToken,
}

/// Which log a new connection is to. Before the migrations, it is none yet.
async fn identify(connection: &mut PgConnection, heads: Heads) -> Result<(), sqlx::Error> {
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

/// Why a server that is there is no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotLetIn {
    UnknownRole,
    WrongPassword,
    /// It wants TLS, a certificate, or another address.
    NotThisWay,
    Tls,
}

impl NotLetIn {
    fn mend(self) -> Cow<'static, str> {
        match self {
            Self::UnknownRole => format!("the migrations make the services' roles: {}", migrate::HOW).into(),
            Self::WrongPassword => "put the role's password into DATABASE_URL, or give the role that one with ALTER ROLE".into(),
            Self::NotThisWay => {
                "its pg_hba.conf does not let this role in so; with sslmode=verify-full in DATABASE_URL, TLS is used".into()
            }
            Self::Tls => {
                "sslrootcert in DATABASE_URL is to name a file with the certificate that the server's is signed by, and the host the \
                          name that is in it"
                    .into()
            }
        }
    }
}

/// Where a database is, without who connects.
fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    match options.get_socket() {
        Some(socket) => format!("{}/{database}", socket.display()),
        None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
    }
}

fn not_let_in(error: &sqlx::Error) -> Option<NotLetIn> {
    match error {
        sqlx::Error::Tls(_) => Some(NotLetIn::Tls),
        // rustls reports a certificate it does not accept as an error of the connection.
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => Some(NotLetIn::Tls),
        sqlx::Error::Database(error) => match (error.code().as_deref(), error.try_downcast_ref::<PgDatabaseError>()?.routine()) {
            (Some("28P01"), _) => Some(NotLetIn::WrongPassword),
            // One code for both.
            (Some("28000"), Some("ClientAuthentication")) => Some(NotLetIn::NotThisWay),
            (Some("28000"), _) => Some(NotLetIn::UnknownRole),
            _ => None,
        },
        _ => None,
    }
}

/// How long a statement that reads may go unanswered. Past it the server is frozen, or not there any more.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection of the pool, lent for one piece of work. It goes back where the work was [`done`](Lent::done), and is closed where the
/// work was given up in the middle, as its server did not answer or its caller has gone: to find out what it is still good for would take
/// as long as the server does, and keep its place in the pool for as long.
pub(crate) struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    pub(crate) async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        pool.acquire().await.map(|connection| Self(Some(connection)))
    }

    pub(crate) fn done(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Lent {
    type Target = PgConnection;
    #[allow(clippy::expect_used, reason = "it is taken by those only that take the whole")]
    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect("it is lent")
    }
}

impl DerefMut for Lent {
    #[allow(clippy::expect_used, reason = "as above")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is lent")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(given_up) = self.0.take() {
            drop(given_up.detach());
        }
    }
}

/// The work's outcome, where it comes in time.
pub(crate) async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    within(ANSWER_TIMEOUT, work).await
}

/// As [`in_time`], for work that may take longer.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(StoreError::Unavailable(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer from the database within {} seconds", limit.as_secs()),
        )))),
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl<E: LogEvent> EventStore<E> {
    /// A connection for one piece of work, see [`Lent`].
    ///
    /// It is made on the store's runtime, whoever asks: a connection ends with the runtime it was made on, and an HTTP worker has one of its
    /// own, which ends as soon as there is nothing in hand for that worker when the process is asked to stop.
    pub(crate) async fn lend(&self) -> Result<Lent, sqlx::Error> {
        if Handle::current().id() == self.shared.runtime.id() {
            return Lent::from(self.pool()).await;
        }
        let pool = self.pool().clone();
        self.shared.runtime.spawn(async move { Lent::from(&pool).await }).await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// A store on this database. Connects when it is first needed and whenever it has to again: a database that is away shows in
    /// [`EventStore::ready`] and in the answers.
    ///
    /// Must be called within a tokio runtime: it starts the appender, the announcer and the listener.
    pub fn new(options: PgConnectOptions, settings: StoreSettings) -> Self {
        METRICS.begin();
        let heads = Heads::new();
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
        tokio::spawn(heads::announce(pool.clone(), heads.clone(), settings.announce_interval, closed.clone()));
        tokio::spawn(heads::listen(pool.clone(), heads.clone(), settings.poll_interval, closed.clone()));
        let shared = Shared {
            read_sql: crate::read::sql(ids.len()),
            append_from_sql: crate::translate::sql(ids.len()),
            pool,
            runtime: Handle::current(),
            replicas: Replicas::default(),
            // The listener has one connection, and the announcer now and then another.
            reads: Arc::new(Semaphore::new(settings.max_connections.saturating_sub(2).max(1) as usize)),
            waiting_reads: Reads::default(),
            known: Known::new(settings.known_bytes, heads.clone()),
            turns: Turns::default(),
            admitted: Semaphore::new(settings.max_batch),
            in_line: AtomicUsize::default(),
            places: AtomicUsize::new(settings.max_batch),
            settings,
            appends,
            heads,
            ids,
            closed,
        };
        let shared = Arc::new(shared);
        let counted = Arc::downgrade(&shared);
        metrics::connections(move || counted.upgrade().map(|shared| connections(&shared.pool)));
        Self { shared, event: PhantomData }
    }

    /// Waits for a turn to read, for as long as a command may wait.
    pub(crate) async fn turn(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        match tokio::time::timeout(self.shared.settings.decide_deadline, self.shared.reads.clone().acquire_owned()).await {
            Ok(turn) => turn.map_err(|_| StoreError::Closed),
            Err(_) => {
                METRICS.busy.add(1, &[]);
                Err(StoreError::Busy)
            }
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
        let missing = in_time(async {
            let mut connection = self.lend().await?;
            let missing = migrate::missing(&mut connection).await?;
            connection.done();
            Ok(missing)
        });
        let away = |error: &dyn Display| format!("the database at {} ({error})", place(&self.pool().connect_options()));
        match missing.await {
            Ok(None) => Ok(()),
            Ok(Some(missing)) => Err(missing),
            Err(StoreError::Unavailable(error) | StoreError::Database(error)) => {
                let error = self.cause(error).await;
                Err(match not_let_in(&error) {
                    Some(why) => format!("{}: {}", away(&error), why.mend()),
                    None => away(&error),
                })
            }
            Err(error) => Err(away(&error)),
        }
    }

    /// The pool keeps trying and says only that its time was over: what the server says, or the network, is asked here.
    async fn cause(&self, error: sqlx::Error) -> sqlx::Error {
        if !matches!(error, sqlx::Error::PoolTimedOut) {
            return error;
        }
        let options = self.pool().connect_options();
        let connecting = PgConnection::connect_with(&options);
        // The pool has had most of the time that a probe waits.
        match tokio::time::timeout(self.shared.settings.connect_timeout / 4, connecting).await {
            Ok(Err(cause)) => cause,
            // It is there, and the pool's connections are all in use; or it does not answer at all.
            Ok(Ok(_)) | Err(_) => error,
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
