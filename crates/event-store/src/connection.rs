//! Connections for one piece of work each, and no wait without a bound.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{error::StoreError, metrics::METRICS};

/// How long a statement that reads may go unanswered. Past it the server is frozen, or not there any more.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection of the pool, lent for one piece of work. It goes back where the work was [`done`](PooledConnection::done), and is closed where the
/// work was given up in the middle, as its server did not answer or its caller has gone: to find out what it is still good for would take
/// as long as the server does, and keep its place in the pool for as long.
pub struct PooledConnection(Option<PoolConnection<Postgres>>);

impl PooledConnection {
    /// Takes one.
    ///
    /// # Errors
    /// Where none comes in time.
    pub async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        pool.acquire().await.map(|connection| Self(Some(connection)))
    }

    /// Gives it back: the work is done.
    pub fn done(mut self) {
        drop(self.0.take());
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;
    #[allow(clippy::expect_used, reason = "it is taken by those only that take the whole")]
    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect("it is lent")
    }
}

impl DerefMut for PooledConnection {
    #[allow(clippy::expect_used, reason = "as above")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is lent")
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(given_up) = self.0.take() {
            drop(given_up.detach());
        }
    }
}

/// The work's outcome, where it comes in time.
///
/// # Errors
/// The work's; or that there was no answer in time.
pub async fn with_timeout<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    with_timeout_of(ANSWER_TIMEOUT, work).await
}

/// As [`with_timeout`], for work that may take longer.
///
/// # Errors
/// As [`with_timeout`].
pub async fn with_timeout_of<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(StoreError::Unavailable(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer from the database within {} seconds", limit.as_secs()),
        )))),
    }
}

/// The connections of a store, and the turns to read with them.
#[derive(Clone)]
pub(crate) struct ConnectionPool {
    pool: PgPool,
    /// Where the store was made.
    runtime: Handle,
    /// Reads for commands and queries take turns here, for as long as their caller waits, and not at the pool: its short timeout is for a
    /// database that is away.
    reads: Arc<Semaphore>,
    /// For how long a command may wait.
    patience: Duration,
}

impl ConnectionPool {
    /// On the runtime that this is called in.
    pub(crate) fn new(pool: PgPool, reads: usize, patience: Duration) -> Self {
        Self { pool, runtime: Handle::current(), reads: Arc::new(Semaphore::new(reads)), patience }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// A connection for one piece of work, see [`PooledConnection`].
    ///
    /// It is made on the store's runtime, whoever asks: a connection ends with the runtime it was made on, and an HTTP worker has one of its
    /// own, which ends as soon as there is nothing in hand for that worker when the process is asked to stop.
    pub(crate) async fn connection(&self) -> Result<PooledConnection, sqlx::Error> {
        if Handle::current().id() == self.runtime.id() {
            return PooledConnection::from(&self.pool).await;
        }
        let pool = self.pool.clone();
        self.runtime.spawn(async move { PooledConnection::from(&pool).await }).await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// Waits for a turn to read, for as long as a command may wait.
    pub(crate) async fn read_permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        match tokio::time::timeout(self.patience, self.reads.clone().acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| StoreError::Closed),
            Err(_) => {
                METRICS.command_timeouts.add(1, &[]);
                Err(StoreError::Busy)
            }
        }
    }
}
