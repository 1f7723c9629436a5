//! The state cache: recently folded states, each with the position up to which it is complete.
//!
//! A decision runs on cached states at once, and the log checks its condition. A stale state costs a retry and never correctness. So
//! entries may be evicted at any time, and only another log invalidates them.

use std::{
    any::{Any, TypeId},
    hash::{BuildHasher, Hash, Hasher},
    mem::size_of,
    sync::Arc,
};

use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, Weighter, sync::Cache};

use crate::{
    decide::state::State,
    event::LogEvent,
    metrics::{self, METRICS},
    position::Position,
    query::state_query::{Query, QueryError},
    read::head_watcher::HeadWatcher,
};

/// The estimated bytes of an entry beside its two values: allocations and its place in the tables.
const OVERHEAD: usize = 256;

type States = Cache<Key, Entry, Bytes, DefaultHashBuilder, Evictions>;

/// Caches folded states by their type and their whole initial value. Two commands that differ only in a field that is no id have two
/// entries.
///
/// The cache is bounded in bytes. quick_cache evicts by S3-FIFO, so one scan over many states does not empty it.
#[derive(Clone)]
pub struct StateCache {
    /// `None` if nothing is cached.
    states: Option<Arc<States>>,
    hasher: DefaultHashBuilder,
    head_watcher: HeadWatcher,
}

/// A folded state.
pub(crate) struct Folded<S> {
    pub(crate) state: S,
    pub(crate) query: Arc<Query>,
    pub(crate) position: Position,
}

#[derive(Clone)]
struct Key {
    hash: u64,
    initial: Arc<dyn Initial>,
}

#[derive(Clone)]
struct Entry {
    /// A [`Folded`].
    folded: Arc<dyn Any + Send + Sync>,
    position: Position,
    bytes: u64,
    /// The epoch of the log that it was folded from.
    epoch: u64,
}

impl StateCache {
    /// Creates a cache of up to `bytes`; 0 caches nothing.
    pub(crate) fn new(bytes: usize, head_watcher: HeadWatcher) -> Self {
        let states =
            (bytes > 0).then(|| Arc::new(Cache::with(bytes / 1_024 + 1, bytes as u64, Bytes, DefaultHashBuilder::default(), Evictions)));
        if let Some(states) = &states {
            let states = Arc::downgrade(states);
            metrics::state_cache_size(move || states.upgrade().map(|states| states.weight()));
        }
        Self { states, hasher: DefaultHashBuilder::default(), head_watcher }
    }

    /// Creates a cache that keeps nothing.
    pub(crate) fn disabled() -> Self {
        Self::new(0, HeadWatcher::new())
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.states.is_some()
    }

    /// Returns the cached state for an initial value. Without an entry it returns the initial value at the log's start.
    ///
    /// # Errors
    /// If the state's query does not fit the log's schema.
    pub(crate) fn get<S: State, E: LogEvent>(&self, initial: &S) -> Result<Folded<S>, QueryError> {
        if let Some(states) = &self.states {
            let found = states.get(&Probe { hash: self.hash(initial), initial });
            if let Some(folded) = found.filter(|entry| entry.epoch == self.head_watcher.epoch()).and_then(|entry| entry.of::<S>()) {
                METRICS.state_cache_hits.add(1, &[]);
                return Ok(Folded { state: folded.state.clone(), query: folded.query.clone(), position: folded.position });
            }
            METRICS.state_cache_misses.add(1, &[]);
        }
        let query = Arc::new(Query::of::<S, E>(initial, S::NEWEST_SUFFICES)?);
        Ok(Folded { state: initial.clone(), query, position: Position::START })
    }

    /// Returns the cached state if it is complete beyond `position`.
    pub(crate) fn newer<S: State>(&self, initial: &S, position: Position) -> Option<Folded<S>> {
        let entry = self.states.as_ref()?.get(&Probe { hash: self.hash(initial), initial })?;
        if entry.position <= position || entry.epoch != self.head_watcher.epoch() {
            return None;
        }
        let folded = entry.of::<S>()?;
        Some(Folded { state: folded.state.clone(), query: folded.query.clone(), position: folded.position })
    }

    /// Caches a state that was folded from the log of this epoch, unless the entry is newer.
    pub(crate) fn keep<S: State>(&self, initial: &S, state: &S, query: &Arc<Query>, position: Position, epoch: u64) {
        let Some(states) = &self.states else { return };
        let hash = self.hash(initial);
        let newer = states.get(&Probe { hash, initial }).is_some_and(|kept| kept.epoch == epoch && kept.position >= position);
        if newer || epoch != self.head_watcher.epoch() {
            return;
        }
        let bytes = (OVERHEAD + 2 * size_of::<S>() + 2 * (hashed_bytes(initial) + hashed_bytes(state))) as u64;
        let folded = Arc::new(Folded { state: state.clone(), query: query.clone(), position });
        let mut evicted = Evicted { by: hash, others: 0 };
        states.insert_with_lifecycle(
            Key { hash, initial: Arc::new(initial.clone()) },
            Entry { folded, position, bytes, epoch },
            &mut evicted,
        );
        METRICS.state_cache_evictions.add(evicted.others, &[]);
    }

    fn hash<S: State>(&self, initial: &S) -> u64 {
        self.hasher.hash_one((TypeId::of::<S>(), initial))
    }
}

impl Entry {
    fn of<S: State>(&self) -> Option<Arc<Folded<S>>> {
        self.folded.clone().downcast().ok()
    }
}

/// Estimates a state's size by the bytes that it hashes.
fn hashed_bytes(state: &impl Hash) -> usize {
    struct Counted(usize);
    impl Hasher for Counted {
        fn write(&mut self, bytes: &[u8]) {
            self.0 += bytes.len();
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut counted = Counted(0);
    state.hash(&mut counted);
    counted.0
}

/// An initial value of any state.
trait Initial: Any + Send + Sync {
    fn is(&self, other: &dyn Any) -> bool;
}

impl<S: State> Initial for S {
    fn is(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<S>() == Some(self)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let other: &dyn Any = &*other.initial;
        self.initial.is(other)
    }
}

impl Eq for Key {}

/// A key to look up, without a copy of its value.
struct Probe<'a, S> {
    hash: u64,
    initial: &'a S,
}

impl<S> Hash for Probe<'_, S> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<S: State> Equivalent<Key> for Probe<'_, S> {
    fn equivalent(&self, key: &Key) -> bool {
        self.hash == key.hash && key.initial.is(self.initial)
    }
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Entry> for Bytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.bytes
    }
}

#[derive(Clone)]
struct Evictions;

/// Counts the entries that an insertion evicts. The cache also reports the entry that is replaced, which is not an eviction.
#[derive(Default)]
struct Evicted {
    by: u64,
    others: u64,
}

impl Lifecycle<Key, Entry> for Evictions {
    type RequestState = Evicted;

    fn on_evict(&self, evicted: &mut Evicted, key: Key, _: Entry) {
        evicted.others += u64::from(key.hash != evicted.by);
    }
}

#[cfg(test)]
mod tests {
    use cart_events::{CartId, CartStream, DomainEvent};
    use disintegrate::StateQuery;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
    #[state_query(CartStream)]
    struct Texts {
        #[id]
        cart_id: CartId,
        texts: Vec<String>,
    }

    impl State for Texts {
        fn mutate(&mut self, _: CartStream, _: Position) {}
    }

    #[test]
    fn entries_stay_within_the_bytes() {
        let cache = StateCache::new(100_000, HeadWatcher::new());
        for texts in 0..1_000 {
            let initial = Texts { cart_id: CartId::new(), texts: vec![] };
            let state = Texts { texts: vec!["a text of twenty-odd bytes".to_owned(); texts % 50], ..initial.clone() };
            let query = cache.get::<_, DomainEvent>(&initial).map(|folded| folded.query);
            cache.keep(&initial, &state, &query.unwrap_or_else(|error| panic!("{error}")), Position(1), 0);
        }
        let states = cache.states.as_ref().map(|states| (states.weight(), states.len()));
        assert!(states.is_some_and(|(bytes, number)| bytes <= 100_000 && (20..200).contains(&number)), "{states:?}");
    }

    #[test]
    fn an_older_state_or_one_of_another_log_replaces_nothing() {
        let head_watcher = HeadWatcher::new();
        let cache = StateCache::new(100_000, head_watcher.clone());
        let initial = Texts { cart_id: CartId::new(), texts: vec![] };
        let position = || cache.get::<_, DomainEvent>(&initial).map(|folded| folded.position);
        let query = Arc::new(Query { items: vec![] });
        cache.keep(&initial, &initial, &query, Position(7), 0);
        cache.keep(&initial, &initial, &query, Position(5), 0);
        assert_eq!(position(), Ok(Position(7)));
        head_watcher.begin_epoch(Position(3));
        assert_eq!(position(), Ok(Position::START), "the entry is of the log before");
        cache.keep(&initial, &initial, &query, Position(9), 0);
        assert_eq!(position(), Ok(Position::START), "the command began before the reset");
        cache.keep(&initial, &initial, &query, Position(4), 1);
        assert_eq!(position(), Ok(Position(4)));
    }
}
