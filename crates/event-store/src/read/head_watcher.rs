//! The head of the log, and the server that this process knows as the log's current one.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{error::StoreError, log_identity::LogIdentity, metrics::METRICS, position::Position};

/// How long an older timeline is refused after a newer one was last connected to. Later it counts as restored on purpose.
const PATIENCE: Duration = Duration::from_secs(30);

/// Knows the newest position that this process has seen, and the log's current server. Clones share it.
#[derive(Clone)]
pub struct HeadWatcher(Arc<Watched>);

struct Watched {
    /// The newest position read or written.
    newest: watch::Sender<Position>,
    /// The newest position that this process wrote and has to announce.
    written: watch::Sender<Position>,
    /// When the newest position last moved.
    grew: Mutex<Option<Instant>>,
    /// Counts how often the log turned out to be served by another server, or restored.
    epoch: AtomicU64,
    server: Mutex<Option<Server>>,
}

/// The log's current server.
struct Server {
    identity: LogIdentity,
    /// When a connection to it was last opened.
    connected: Instant,
}

/// The newest position that was seen, and the epoch in which it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    epoch: u64,
    newest: Position,
}

impl HeadWatcher {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Watched {
            newest: watch::Sender::new(Position::START),
            written: watch::Sender::new(Position::START),
            grew: Mutex::default(),
            epoch: AtomicU64::default(),
            server: Mutex::default(),
        }))
    }

    /// Returns the newest position seen.
    pub fn newest(&self) -> Position {
        *self.0.newest.borrow()
    }

    /// Subscribes to newer positions. Subscribe before you read the log: then no position that appears in between is missed.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.0.newest.subscribe()
    }

    /// Returns whether anybody waits for newer positions.
    pub(crate) fn has_subscribers(&self) -> bool {
        self.0.newest.receiver_count() > 0
    }

    /// Returns whether the head moved within the last second.
    pub fn grows(&self) -> bool {
        self.0.grew.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|grew| grew.elapsed() < Duration::from_secs(1))
    }

    /// Returns the number of the epoch, counted from 0. A new one begins if the log has another server, was restored, or if its server was
    /// restarted. Never use beside one another what was read in different epochs.
    pub fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::Acquire)
    }

    /// Returns what was seen up to now. A snapshot that is taken later, on the log's current server, includes it.
    pub(crate) fn seen_so_far(&self) -> Seen {
        // In this order: if an epoch begins in between, the position belongs to the later one, and `includes` does not use it.
        let epoch = self.epoch();
        Seen { epoch, newest: self.newest() }
    }

    /// Returns whether a snapshot with this head includes what was seen before it was taken.
    pub(crate) fn includes(&self, head: Position, seen: Seen) -> bool {
        head >= seen.newest || seen.epoch != self.epoch()
    }

    /// Notes a position that was read from the log in this epoch. From then on, what this process reads includes it.
    pub(crate) fn seen(&self, head: Position, epoch: u64) {
        self.0.newest.send_if_modified(|newest| {
            // A new epoch begins before it sets its head, so an older position never replaces that.
            let newer = head > *newest && epoch == self.epoch();
            if newer {
                // The first position seen may be old.
                if *newest > Position::START {
                    *self.0.grew.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                }
                *newest = head;
                METRICS.head.record(head.0, &[]);
            }
            newer
        });
    }

    /// Notes a position that this process has committed, to be announced.
    pub(crate) fn committed(&self, head: Position, epoch: u64) {
        self.seen(head, epoch);
        self.0.written.send_if_modified(|written| {
            let newer = head > *written && epoch == self.epoch();
            if newer {
                *written = head;
            }
            newer
        });
    }

    /// Subscribes to the positions that this process has to announce.
    pub(crate) fn subscribe_written(&self) -> watch::Receiver<Position> {
        self.0.written.subscribe()
    }

    /// Notes the server of a new connection, the head that the connection has read, and what was seen before that. Returns the epoch that
    /// the connection belongs to.
    ///
    /// # Errors
    /// [`StoreError::NotCurrent`] if it is a server that was replaced.
    pub(crate) fn connected(&self, identity: LogIdentity, head: Position, seen: Seen) -> Result<u64, StoreError> {
        let mut server = self.0.server.lock().unwrap_or_else(PoisonError::into_inner);
        match &*server {
            Some(known) if identity.precedes(&known.identity) && known.connected.elapsed() < PATIENCE => {
                let (older, newer) = (identity.timeline(), known.identity.timeline());
                return Err(StoreError::NotCurrent(format!("it is on timeline {older}, and this process has seen timeline {newer}")));
            }
            Some(known) if known.identity == identity && self.includes(head, seen) => {}
            Some(known) if known.identity == identity => {
                tracing::warn!(%head, seen = %seen.newest, "the log ends before a position that was seen: forgetting the cached states");
                self.begin_epoch(head);
            }
            Some(known) => {
                let (before, newest) = (&known.identity, self.newest());
                tracing::warn!(?before, now = ?identity, %head, seen = %newest, "the log has another server: forgetting the cached states");
                self.begin_epoch(head);
            }
            None => {}
        }
        *server = Some(Server { identity, connected: Instant::now() });
        let epoch = self.epoch();
        self.seen(head, epoch);
        Ok(epoch)
    }

    /// Begins a new epoch at this head.
    pub(crate) fn begin_epoch(&self, head: Position) {
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
        self.0.newest.send_replace(head);
        self.0.written.send_replace(head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(watcher: &HeadWatcher, server: &str, head: i64) -> Result<u64, StoreError> {
        let identity = LogIdentity::parse(server).unwrap_or_else(|| panic!("{server}"));
        watcher.connected(identity, Position(head), watcher.seen_so_far())
    }

    const PRIMARY: &str = "7:00000001:5:a:1700.5";
    const PROMOTED: &str = "7:00000002:5:a:1800.5";

    #[test]
    fn a_replaced_server_is_refused_and_its_positions_are_forgotten() {
        let watcher = HeadWatcher::new();
        let old = connect(&watcher, PRIMARY, 10).unwrap();
        watcher.committed(Position(12), old);
        assert_eq!(watcher.newest(), Position(12));
        let new = connect(&watcher, PROMOTED, 11).unwrap();
        assert_ne!(old, new);
        assert_eq!(watcher.newest(), Position(11));
        // An answer of the old server that comes late.
        watcher.seen(Position(13), old);
        assert_eq!(watcher.newest(), Position(11));
        assert!(matches!(connect(&watcher, PRIMARY, 20), Err(StoreError::NotCurrent(_))));
        assert_eq!((watcher.newest(), watcher.epoch()), (Position(11), new));
        assert_eq!(connect(&watcher, PROMOTED, 12).unwrap(), new);
    }

    #[test]
    fn a_restart_or_a_head_behind_begins_an_epoch() {
        let watcher = HeadWatcher::new();
        let first = connect(&watcher, PRIMARY, 10).unwrap();
        assert_eq!(connect(&watcher, PRIMARY, 10).unwrap(), first);
        let restarted = connect(&watcher, "7:00000001:5:a:1900.5", 10).unwrap();
        assert_ne!(restarted, first);
        let behind = connect(&watcher, "7:00000001:5:a:1900.5", 9).unwrap();
        assert_ne!(behind, restarted);
        assert_eq!(watcher.newest(), Position(9));
    }

    #[test]
    fn a_head_read_before_a_position_was_seen_is_not_behind() {
        let watcher = HeadWatcher::new();
        let epoch = connect(&watcher, PRIMARY, 10).unwrap();
        let seen = watcher.seen_so_far();
        watcher.committed(Position(11), epoch);
        let identity = LogIdentity::parse(PRIMARY).unwrap();
        assert_eq!(watcher.connected(identity, Position(10), seen).unwrap(), epoch);
        assert_eq!(watcher.newest(), Position(11));
    }
}
