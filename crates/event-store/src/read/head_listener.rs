//! The head of the log: announced after a commit, listened for, and polled at a slower pace.
//!
//! An append's transaction never sends NOTIFY: that takes one lock for the whole database at commit, and reduced 22,000 single-row commits
//! a second to 2,400 (PostgreSQL 15, 32 clients).

use std::time::Duration;

use sqlx::{
    Acquire,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    connection::{
        log_connection::{Connector, Session, head},
        pool::{Pool, PooledConnection},
        timeout::{with_timeout, with_timeout_of},
    },
    error::StoreError,
    position::Position,
};

const CHANNEL: &str = "event_head";

/// How long a connection listens. Then a new one takes its place, which learns whether another server serves the log by now.
const RENEWAL: Duration = Duration::from_secs(2);

/// The pause after an announcement of a position that the log does not have. Every role may notify as often as it likes.
const FALSE_ALARM: Duration = Duration::from_millis(20);

/// Announces what this process has written, each time in a transaction of its own, with at least `interval` in between.
pub(crate) async fn announce(pool: Pool, interval: Duration, closed: CancellationToken) {
    let mut written = pool.connector().head_watcher().subscribe_written();
    loop {
        tokio::select! {
            () = closed.cancelled() => return,
            changed = written.changed() => if changed.is_err() { return },
        }
        let announced = written.borrow_and_update().to_string();
        // A lost announcement costs readers their poll interval and nothing else.
        let announcing = with_timeout(async {
            let mut connection = PooledConnection::from(&pool).await?;
            // Not flushed: the events are durable already, and an append would wait behind the flush.
            let sql = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)";
            sqlx::query(sql).bind(CHANNEL).bind(&announced).execute(&mut *connection).await?;
            connection.done();
            Ok(())
        });
        if let Err(error) = announcing.await {
            tracing::debug!(%error, "the head was not announced");
        }
        tokio::time::sleep(interval).await;
    }
}

/// Listens for announcements. Polls the head once in each interval.
pub(crate) async fn listen(connector: Connector, poll: Duration, closed: CancellationToken) {
    let listening = async {
        loop {
            if let Err(error) = listen_until_lost(&connector, poll).await {
                tracing::debug!(%error, "not listening for the head: trying again");
            }
            tokio::time::sleep(poll.min(RENEWAL)).await;
        }
    };
    tokio::select! {
        () = closed.cancelled() => {}
        () = listening => {}
    }
}

async fn listen_until_lost(connector: &Connector, poll: Duration) -> Result<(), StoreError> {
    let mut listener = Listener::begin(connector).await?;
    let mut announced = Position::START;
    loop {
        if listener.begun.elapsed() >= RENEWAL {
            // The new one listens before the old one ends, so no announcement is missed. A server without room for both gets them in turn.
            listener = match Listener::begin(connector).await {
                Ok(renewed) => renewed,
                Err(_) => {
                    drop(listener);
                    Listener::begin(connector).await?
                }
            };
        }
        let seen = connector.head_watcher().seen_so_far();
        let head = listener.head(connector.timeout()).await?;
        if !connector.head_watcher().includes(head, seen) {
            // A new connection learns what has become of the log.
            listener = Listener::begin(connector).await?;
            continue;
        }
        connector.head_watcher().seen(head, listener.session.epoch);
        if head < std::mem::take(&mut announced) {
            tokio::time::sleep(FALSE_ALARM).await;
        }
        let next_poll = (Instant::now() + poll).min(listener.begun + RENEWAL);
        // An announcement only starts a poll. Anybody may notify, also a process that still writes to another log. If nobody in this process
        // waits for the head, the regular poll suffices.
        while Instant::now() < next_poll
            && let Ok(heard) = tokio::time::timeout_at(next_poll, listener.next()).await
        {
            announced = heard?;
            if announced > connector.head_watcher().newest() && connector.head_watcher().has_subscribers() {
                break;
            }
        }
    }
}

/// A connection of its own that listens: the pool's connections are for work.
struct Listener {
    connection: Hearing,
    session: Session,
    begun: Instant,
}

impl Listener {
    async fn begin(connector: &Connector) -> Result<Self, StoreError> {
        let beginning = async {
            // sqlx listens only on a connection of a pool.
            let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
            let pool = pool.acquire_timeout(connector.timeout() * 2).connect_lazy_with(connector.options().clone());
            let mut connection = Hearing(Some(PgListener::connect_with(&pool).await?));
            let listener = connection.get()?;
            listener.eager_reconnect(false);
            let session = connector.identify(listener.acquire().await?).await?;
            listener.listen(CHANNEL).await?;
            Ok(Self { connection, session, begun: Instant::now() })
        };
        with_timeout_of(connector.timeout(), beginning).await
    }

    async fn head(&mut self, timeout: Duration) -> Result<Position, StoreError> {
        with_timeout_of(timeout, async { head(self.connection.get()?.acquire().await?).await }).await
    }

    /// Waits for the next announced position. What is no position counts as one before all others.
    async fn next(&mut self) -> Result<Position, StoreError> {
        let announced = self.connection.get()?.try_recv().await?.ok_or(sqlx::Error::WorkerCrashed)?;
        Ok(Position(announced.payload().parse().unwrap_or_default()))
    }
}

/// A listener whose drop closes the socket at once. sqlx's own drop first talks to the server, which may be gone, without a limit.
struct Hearing(Option<PgListener>);

impl Hearing {
    fn get(&mut self) -> Result<&mut PgListener, sqlx::Error> {
        self.0.as_mut().ok_or(sqlx::Error::PoolClosed)
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        // sqlx spawns a task for that talk. A runtime that never runs only drops the task, and the connection with it.
        if let Ok(never_run) = tokio::runtime::Builder::new_current_thread().build() {
            let handle = never_run.handle().clone();
            let _entered = handle.enter();
            drop(self.0.take());
            never_run.shutdown_background();
        }
    }
}
