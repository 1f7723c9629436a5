//! What is known: the states that were folded lately, each with the position up to which it is complete.
//!
//! A decision is taken on what is known at once, and the log's check decides: a state that is behind costs a round trip and never
//! correctness. So nothing here need be kept, and nothing is invalidated but by another log.

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

/// What an entry takes besides its two values and what they point to: the allocations' own, its place in the tables.
const OVERHEAD: usize = 256;

type States = Cache<Key, Entry, Bytes, DefaultHashBuilder, Evictions>;

/// States folded lately, by their type and the whole value they started from: two commands that differ only in a field that is no id
/// have two states. Bounded in bytes; what was not asked for the longest goes first (quick_cache's S3-FIFO, which one scan over many
/// carts does not empty).
#[derive(Clone)]
pub struct StateCache {
    /// `None` where nothing is to be kept.
    states: Option<Arc<States>>,
    hasher: DefaultHashBuilder,
    heads: HeadWatcher,
}

/// A state as it was last folded.
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
    /// The log it was folded from.
    epoch: u64,
}

impl StateCache {
    /// Keeps up to so many bytes; 0 keeps nothing.
    pub(crate) fn new(bytes: usize, heads: HeadWatcher) -> Self {
        let states =
            (bytes > 0).then(|| Arc::new(Cache::with(bytes / 1_024 + 1, bytes as u64, Bytes, DefaultHashBuilder::default(), Evictions)));
        if let Some(states) = &states {
            let states = Arc::downgrade(states);
            metrics::state_cache_size(move || states.upgrade().map(|states| states.weight()));
        }
        Self { states, hasher: DefaultHashBuilder::default(), heads }
    }

    /// Keeps nothing.
    pub(crate) fn nothing() -> Self {
        Self::new(0, HeadWatcher::new())
    }

    pub(crate) fn keeps(&self) -> bool {
        self.states.is_some()
    }

    /// What is known of the state that starts so; where nothing is, it starts empty and is complete up to the log's start.
    ///
    /// # Errors
    /// Where its query does not fit the log's schema.
    pub(crate) fn look<S: State, E: LogEvent>(&self, initial: &S) -> Result<Folded<S>, QueryError> {
        if let Some(states) = &self.states {
            let found = states.get(&Probe { hash: self.hash(initial), initial });
            if let Some(folded) = found.filter(|entry| entry.epoch == self.heads.epoch()).and_then(|entry| entry.of::<S>()) {
                METRICS.state_cache_hits.add(1, &[]);
                return Ok(Folded { state: folded.state.clone(), query: folded.query.clone(), position: folded.position });
            }
            METRICS.state_cache_misses.add(1, &[]);
        }
        let query = Arc::new(Query::of::<S, E>(initial, S::NEWEST_SUFFICES)?);
        Ok(Folded { state: initial.clone(), query, position: Position::START })
    }

    /// The same, where more is known than up to `position`.
    pub(crate) fn newer<S: State>(&self, initial: &S, position: Position) -> Option<Folded<S>> {
        let entry = self.states.as_ref()?.get(&Probe { hash: self.hash(initial), initial })?;
        if entry.position <= position || entry.epoch != self.heads.epoch() {
            return None;
        }
        let folded = entry.of::<S>()?;
        Some(Folded { state: folded.state.clone(), query: folded.query.clone(), position: folded.position })
    }

    /// Keeps a state that was folded from the log of this epoch, unless more is known already.
    pub(crate) fn keep<S: State>(&self, initial: &S, state: &S, query: &Arc<Query>, position: Position, epoch: u64) {
        let Some(states) = &self.states else { return };
        let hash = self.hash(initial);
        let newer = states.get(&Probe { hash, initial }).is_some_and(|kept| kept.epoch == epoch && kept.position >= position);
        if newer || epoch != self.heads.epoch() {
            return;
        }
        let bytes = (OVERHEAD + 2 * size_of::<S>() + 2 * (held(initial) + held(state))) as u64;
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

/// How much a state holds: what it hashes is what it holds, so no state need say it.
fn held(state: &impl Hash) -> usize {
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

/// The value a state starts from, whatever its type.
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

/// A key that is looked for, without a copy of its value.
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

/// What an entry takes the room of. The cache says so of the state that it replaces as well, which is no eviction.
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
    fn what_is_kept_stays_within_its_bytes_however_much_the_states_hold() {
        let known = StateCache::new(100_000, HeadWatcher::new());
        for texts in 0..1_000 {
            let initial = Texts { cart_id: CartId::new(), texts: vec![] };
            let state = Texts { texts: vec!["a text of twenty-odd bytes".to_owned(); texts % 50], ..initial.clone() };
            let query = known.look::<_, DomainEvent>(&initial).map(|folded| folded.query);
            known.keep(&initial, &state, &query.unwrap_or_else(|error| panic!("{error}")), Position(1), 0);
        }
        let states = known.states.as_ref().map(|states| (states.weight(), states.len()));
        assert!(states.is_some_and(|(bytes, number)| bytes <= 100_000 && (20..200).contains(&number)), "{states:?}");
    }

    #[test]
    fn an_older_state_does_not_replace_a_newer_one_nor_one_of_another_log_any() {
        let heads = HeadWatcher::new();
        let known = StateCache::new(100_000, heads.clone());
        let initial = Texts { cart_id: CartId::new(), texts: vec![] };
        let look = || known.look::<_, DomainEvent>(&initial).map(|folded| folded.position);
        let query = Arc::new(Query { items: vec![] });
        known.keep(&initial, &initial, &query, Position(7), 0);
        known.keep(&initial, &initial, &query, Position(5), 0);
        assert_eq!(look(), Ok(Position(7)));
        heads.reset(Position(3));
        assert_eq!(look(), Ok(Position::START), "it is of the log before");
        known.keep(&initial, &initial, &query, Position(9), 0);
        assert_eq!(look(), Ok(Position::START), "a command that began before the reset");
        known.keep(&initial, &initial, &query, Position(4), 1);
        assert_eq!(look(), Ok(Position(4)));
    }
}
