//! The head of the log, as it becomes known: announced after the commit, listened for, and polled for slowly beside that.
//!
//! Never a NOTIFY inside an append's transaction: it takes one lock for the whole database at commit, and with it 22,000 single-row
//! commits a second became 2,400 (PostgreSQL 15, 32 clients).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{PgPool, postgres::PgListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    connection::{PooledConnection, with_timeout},
    error::StoreError,
    metrics::METRICS,
    position::Position,
};

const CHANNEL: &str = "event_head";

/// The newest position that this process knows of.
#[derive(Clone)]
pub struct HeadWatcher {
    /// Whatever was heard, read or written.
    newest: Arc<watch::Sender<Position>>,
    /// What this process wrote: to be announced.
    written: Arc<watch::Sender<Position>>,
    /// When the newest position was last seen to move.
    grew: Arc<Mutex<Option<Instant>>>,
    /// How often the log turned out to be another one than before: what was known of it before that is worth nothing.
    epoch: Arc<AtomicU64>,
    /// The log that the last connection was to.
    log_id: Arc<Mutex<Option<String>>>,
}

impl HeadWatcher {
    pub(crate) fn new() -> Self {
        Self {
            newest: Arc::new(watch::Sender::new(Position::START)),
            written: Arc::new(watch::Sender::new(Position::START)),
            grew: Arc::default(),
            epoch: Arc::default(),
            log_id: Arc::default(),
        }
    }

    /// The newest position known.
    pub fn newest(&self) -> Position {
        *self.newest.borrow()
    }

    /// To wait for a newer one: subscribe before reading the log, so that nothing that comes between is missed.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }

    /// A position was seen in the log.
    pub(crate) fn seen(&self, head: Position) {
        self.newest.send_if_modified(|newest| {
            let newer = head > *newest;
            if newer {
                // What was there when this process came has not come just now.
                if *newest > Position::START {
                    *self.grew.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                }
                *newest = head;
                METRICS.head.record(head.0, &[]);
            }
            newer
        });
    }

    /// Whether somebody appends at this time: within the last second, a new position was seen.
    pub fn grows(&self) -> bool {
        self.grew.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|grew| grew.elapsed() < Duration::from_secs(1))
    }

    /// This process has committed up to a position.
    pub(crate) fn committed(&self, head: Position) {
        self.seen(head);
        self.written.send_if_modified(|written| {
            let newer = head > *written;
            if newer {
                *written = head;
            }
            newer
        });
    }

    /// Counts the logs that this process has known.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A connection was made to this log. Where that is another one than before, what was known is forgotten; answers whether it is.
    pub(crate) fn connected_to(&self, log_id: String) -> bool {
        let mut known = self.log_id.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.replace(log_id);
        let other = before.is_some() && before != *known;
        if other {
            tracing::warn!(?before, now = ?*known, "this is another log than before, or a restored one: forgetting what was known of it");
            self.reset(Position::START);
        }
        other
    }

    /// The log is another one, or behind what was known: start anew from its head, and with nothing known.
    pub(crate) fn reset(&self, head: Position) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.newest.send_replace(head);
        self.written.send_replace(head);
    }
}

/// Announces what this process has written, in a transaction of its own and at most once in an interval.
pub(crate) async fn announce(pool: PgPool, heads: HeadWatcher, interval: Duration, closed: CancellationToken) {
    let mut written = heads.written.subscribe();
    loop {
        tokio::select! {
            () = closed.cancelled() => return,
            changed = written.changed() => if changed.is_err() { return },
        }
        let announced = written.borrow_and_update().to_string();
        // A lost announcement costs readers their poll interval and nothing else.
        let announcing = with_timeout(async {
            let mut connection = PooledConnection::from(&pool).await?;
            // Not flushed: what is announced is durable already, and an append would wait for the flush.
            let sql = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)";
            sqlx::query(sql).bind(CHANNEL).bind(&announced).execute(&mut *connection).await?;
            connection.done();
            Ok(())
        });
        if let Err(error) = announcing.await {
            tracing::debug!(%error, "the head could not be announced");
        }
        tokio::time::sleep(interval).await;
    }
}

/// Listens for announcements, and looks the head up at every connection and once in an interval.
pub(crate) async fn listen(pool: PgPool, heads: HeadWatcher, poll: Duration, closed: CancellationToken) {
    let listening = async {
        loop {
            if let Err(error) = listen_once(&pool, &heads, poll).await {
                tracing::debug!(%error, "not listening for the head: trying again");
            }
            tokio::time::sleep(poll).await;
        }
    };
    tokio::select! {
        () = closed.cancelled() => {}
        () = listening => {}
    }
}

async fn listen_once(pool: &PgPool, heads: &HeadWatcher, poll: Duration) -> Result<(), StoreError> {
    let mut listener = with_timeout(async {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(listener)
    })
    .await?;
    loop {
        // Before the query: what becomes known while it runs may well be newer than what it sees.
        let known = heads.newest();
        let head: Position = with_timeout(async {
            let mut connection = PooledConnection::from(pool).await?;
            let head = sqlx::query_scalar("SELECT coalesce(max(event_id), 0) FROM event").fetch_one(&mut *connection).await?;
            connection.done();
            Ok(head)
        })
        .await?;
        if head < known {
            tracing::warn!(%head, %known, "the log is behind what was known of it: it was reset or restored");
            heads.reset(head);
        }
        heads.seen(head);
        let deadline = tokio::time::Instant::now() + poll;
        loop {
            match tokio::time::timeout_at(deadline, listener.try_recv()).await {
                Ok(Ok(Some(announced))) => {
                    // It is told, and not believed: anybody may notify, and who was just disconnected may tell of another log.
                    if announced.payload().parse().is_ok_and(|head| Position(head) > heads.newest()) {
                        break;
                    }
                }
                Ok(Ok(None)) => return Ok(()), // The connection was lost.
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => break,
            }
        }
    }
}
