//! A connection of the appender.

use std::time::Duration;

use sqlx::{ConnectOptions, PgConnection, Row, postgres::PgConnectOptions};

use crate::{error::StoreError, read::head_watcher::HeadWatcher};

/// A connection, and what recovery needs if a call on it gets no answer.
pub(crate) struct Session {
    pub(crate) connection: PgConnection,
    pub(crate) backend: Backend,
    /// The newest position known before the last call.
    pub(crate) head: i64,
}

/// A server process. Process ids are reused, so its start time belongs to its identity.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) pid: i32,
    pub(crate) started: String,
}

impl Session {
    /// Connects, and learns which log the connection belongs to.
    pub(crate) async fn connect(options: &PgConnectOptions, timeout: Duration, head_watcher: &HeadWatcher) -> Result<Self, StoreError> {
        let connecting = async {
            let mut connection = options.connect().await?;
            let row = sqlx::query(
                "SELECT pg_backend_pid(), (SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()), \
                        log_identity(), (SELECT coalesce(max(event_id), 0) FROM event)",
            )
            .fetch_one(&mut connection)
            .await?;
            let backend = Backend { pid: row.try_get(0)?, started: row.try_get(1)? };
            Ok((Self { connection, backend, head: row.try_get(3)? }, row.try_get(2)?))
        };
        let (session, log_id): (Self, String) = match tokio::time::timeout(timeout, connecting).await {
            Ok(session) => session.map_err(|error: sqlx::Error| match StoreError::from(error) {
                // Nothing was sent yet, so no error at this point is about an append's data.
                StoreError::Database(error) | StoreError::Rejected(error) => StoreError::Unavailable(error),
                error => error,
            })?,
            Err(_) => return Err(StoreError::NoAnswer(timeout)),
        };
        if head_watcher.connected_to(log_id) {
            return Err(StoreError::Reset("it is another one than the one connected to before".to_owned()));
        }
        Ok(session)
    }
}
