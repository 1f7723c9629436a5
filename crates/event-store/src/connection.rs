//! Connections for one piece of work each, and timeouts for everything that waits for the database.

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

/// How long a statement that reads may go unanswered. After this the server counts as frozen or gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection of the pool, for one piece of work.
///
/// Call [`done`](Self::done) when the work is finished: the connection then returns to the pool. A connection that is dropped earlier is
/// closed, because a statement may still run on it.
pub struct PooledConnection(Option<PoolConnection<Postgres>>);

impl PooledConnection {
    /// Takes a connection out of the pool.
    ///
    /// # Errors
    /// If the pool has none within its acquire timeout.
    pub async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        pool.acquire().await.map(|connection| Self(Some(connection)))
    }

    /// Returns the connection to the pool.
    pub fn done(mut self) {
        drop(self.0.take());
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;
    #[allow(clippy::expect_used, reason = "only methods that consume the whole take it out")]
    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect("the connection is there until done")
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
            drop(unfinished.detach());
        }
    }
}

/// Runs database work with the timeout of a read: 5 seconds.
///
/// # Errors
/// The work's own error, or [`StoreError::NoAnswer`].
pub async fn with_timeout<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    with_timeout_of(ANSWER_TIMEOUT, work).await
}

/// Runs database work with a timeout.
///
/// # Errors
/// The work's own error, or [`StoreError::NoAnswer`].
pub async fn with_timeout_of<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(StoreError::NoAnswer(limit)),
    }
}

/// A store's connections, and the permits to read with them.
#[derive(Clone)]
pub(crate) struct ConnectionPool {
    pool: PgPool,
    runtime: Handle,
    /// Commands and queries queue here for as long as they may wait. The pool's own timeout is short, to notice a database that is away.
    reads: Arc<Semaphore>,
    command_timeout: Duration,
}

impl ConnectionPool {
    /// Wraps a pool whose connections belong to the current runtime.
    pub(crate) fn new(pool: PgPool, reads: usize, command_timeout: Duration) -> Self {
        Self { pool, runtime: Handle::current(), reads: Arc::new(Semaphore::new(reads)), command_timeout }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Takes a connection, opened on the store's runtime if it is new.
    ///
    /// A connection ends with the runtime that opened it. An HTTP worker's runtime ends early in a shutdown, and would take a connection
    /// with it that another request has borrowed since.
    pub(crate) async fn connection(&self) -> Result<PooledConnection, sqlx::Error> {
        if Handle::current().id() == self.runtime.id() {
            return PooledConnection::from(&self.pool).await;
        }
        let pool = self.pool.clone();
        self.runtime.spawn(async move { PooledConnection::from(&pool).await }).await.unwrap_or(Err(sqlx::Error::PoolClosed))
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_without_an_answer_is_not_blamed_on_the_pool() {
        let outcome = with_timeout_of(Duration::from_millis(20), std::future::pending::<Result<(), sqlx::Error>>()).await;
        let error = outcome.unwrap_err();
        assert!(error.is_unavailable());
        assert_eq!(error.to_string(), "the database did not answer within 20 ms");
    }
}
