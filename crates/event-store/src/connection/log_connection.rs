//! Connections that know which server they lead to.

use std::{
    fmt::Write as _,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::{ConnectOptions, Executor, PgConnection, Row, postgres::PgConnectOptions};
use tokio::runtime::Handle;

use crate::{
    connection::timeout::{with_timeout, with_timeout_of},
    error::StoreError,
    log_identity::LogIdentity,
    position::Position,
    read::head_watcher::HeadWatcher,
    settings::{SessionTimeouts, StoreSettings},
};

/// Opens connections, and learns which server each one leads to.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    timeout: Duration,
    /// Sets the session up and asks which server this is.
    begin: String,
    head_watcher: HeadWatcher,
    runtime: Handle,
}

/// A server process. Process ids are reused, so its start time belongs to its identity.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) pid: i32,
    pub(crate) started: String,
}

/// A connection to the log's current server.
///
/// Dropping it closes the socket at once and sends nothing, because the server may be gone.
pub struct LogConnection {
    connection: PgConnection,
    session: Session,
    head_watcher: HeadWatcher,
}

/// Facts that a new connection learned about itself.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) identity: LogIdentity,
    pub(crate) backend: Backend,
    /// The head when the connection was opened.
    pub(crate) head: Position,
    /// The epoch that the connection belongs to.
    pub(crate) epoch: u64,
}

impl Connector {
    /// Prepares to connect. The connections belong to the current runtime.
    pub(crate) fn new(options: PgConnectOptions, settings: &StoreSettings, head_watcher: HeadWatcher) -> Self {
        let begin = begin(&settings.timeouts);
        Self(Arc::new(Inner { options, timeout: settings.connect_timeout, begin, head_watcher, runtime: Handle::current() }))
    }

    pub(crate) fn options(&self) -> &PgConnectOptions {
        &self.0.options
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.0.timeout
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    pub(crate) fn head_watcher(&self) -> &HeadWatcher {
        &self.0.head_watcher
    }

    /// Connects, on the store's runtime.
    ///
    /// A connection ends with the runtime that opened it. An HTTP worker's runtime ends early in a shutdown, and would take a connection
    /// with it that another request has borrowed since.
    ///
    /// # Errors
    /// If the server cannot be reached, is not the log's current one, or has no log.
    pub(crate) async fn connect(&self) -> Result<LogConnection, StoreError> {
        if Handle::current().id() == self.0.runtime.id() {
            return self.connect_here().await;
        }
        let connector = self.clone();
        self.0.runtime.spawn(async move { connector.connect_here().await }).await.unwrap_or(Err(StoreError::Closed))
    }

    async fn connect_here(&self) -> Result<LogConnection, StoreError> {
        let connecting = async {
            let mut connection = self.0.options.connect().await?;
            let session = self.identify(&mut connection).await?;
            Ok(LogConnection { connection, session, head_watcher: self.0.head_watcher.clone() })
        };
        with_timeout_of(self.0.timeout, connecting).await
    }

    /// Sets up the session of a new connection, and learns which server it leads to.
    ///
    /// # Errors
    /// If the server is not the log's current one, or has no log.
    pub(crate) async fn identify(&self, connection: &mut PgConnection) -> Result<Session, sqlx::Error> {
        let seen = self.0.head_watcher.seen_so_far();
        // One message: a pooler in between refuses some of these as startup parameters.
        let row = connection.fetch_one(self.0.begin.as_str()).await?;
        let (identity, head) = (row.try_get::<String, _>(0)?, row.try_get(1)?);
        let backend = Backend { pid: row.try_get(2)?, started: row.try_get(3)? };
        let identity = LogIdentity::parse(&identity)
            .ok_or_else(|| StoreError::NotCurrent("it is a standby, which takes no writes and may be behind".to_owned()))?;
        let epoch = self.0.head_watcher.connected(identity.clone(), head, seen)?;
        Ok(Session { identity, backend, head, epoch })
    }
}

/// Returns the statements that begin a session. They set all that correctness and plans rest on, whatever the role, the database or a
/// restore without the roles' settings say.
fn begin(timeouts: &SessionTimeouts) -> String {
    let SessionTimeouts { idle_in_transaction, transaction, statement, lock } = timeouts;
    let milliseconds = |timeout: Option<Duration>| timeout.map_or(0, |timeout| timeout.as_millis());
    let mut sql = String::new();
    for (setting, milliseconds) in [
        ("idle_in_transaction_session_timeout", milliseconds(Some(*idle_in_transaction))),
        ("transaction_timeout", milliseconds(*transaction)),
        ("statement_timeout", milliseconds(*statement)),
        ("lock_timeout", milliseconds(*lock)),
    ] {
        // Writing to a string never fails.
        let _ = write!(sql, "SET {setting} = {milliseconds};");
    }
    for set in [
        // append_events must see what was committed before it had the lock.
        "default_transaction_isolation = 'read committed'",
        "search_path = public",
        // Off, a table with policies refuses every statement.
        "row_security = on",
        // The server ends the session of a client that is gone, within seconds.
        "tcp_keepalives_idle = 2",
        "tcp_keepalives_interval = 1",
        "tcp_keepalives_count = 3",
        "tcp_user_timeout = 3000",
        // The pool, the appender and the listener keep idle connections.
        "idle_session_timeout = 0",
        // A session keeps a plan that was made while the log was short. Every statement on the log has an index.
        "enable_indexscan = on",
        "enable_seqscan = off",
        "enable_bitmapscan = off",
        // One plan for every call: planning a read anew costs more than the read.
        "plan_cache_mode = force_generic_plan",
        "jit = off",
    ] {
        let _ = write!(sql, "SET {set};");
    }
    sql + "SELECT public.log_identity(), (SELECT coalesce(max(event_id), 0) FROM public.event), pg_backend_pid(), \
                  (SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid())"
}

impl LogConnection {
    /// Returns the epoch that the connection belongs to. See [`HeadWatcher::epoch`].
    pub fn epoch(&self) -> u64 {
        self.session.epoch
    }

    /// Returns whether the connection still leads to the log's current server, as far as this process knows.
    pub fn is_current(&self) -> bool {
        self.session.epoch == self.head_watcher.epoch()
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Checks that the log on this connection's server has reached a position. Within a transaction this is its snapshot, or under READ
    /// COMMITTED the moment of the call.
    ///
    /// # Errors
    /// [`StoreError::NotCurrent`] if it has not. Drop the connection then.
    pub async fn ensure_head(&mut self, position: Position) -> Result<(), StoreError> {
        let head = with_timeout(head(&mut self.connection)).await?;
        if head >= position && self.is_current() {
            return Ok(());
        }
        Err(StoreError::NotCurrent(format!("its log ends at position {head}, and position {position} was seen")))
    }
}

/// Reads the head of the log.
pub(crate) async fn head(connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(max(event_id), 0) FROM event").fetch_one(connection).await
}

impl Deref for LogConnection {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for LogConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
