//! A batch: appends that may share a call.
//!
//! The log checks all conditions of a call before it writes the call's events. So two appends may share a call only if neither writes an
//! event that the other's condition matches. The later one waits for the next call.

use std::{collections::HashMap, sync::Arc};

use uuid::Uuid;

use crate::{append::pending::Append, query::state_query::Query};

/// A domain id's number in the schema, and its value.
type Id = (usize, Uuid);
/// An append's number in the batch, and an event's number in the append.
type EventIndex = (usize, usize);

/// A batch, with indexes of what its appends write and what their conditions match.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) appends: Vec<Append>,
    /// Query items as (query, number in the query), by the item's first id. `None` holds the items without an id.
    items: HashMap<Option<Id>, Vec<(Arc<Query>, usize)>>,
    /// The events, by each of their ids.
    events: HashMap<Id, Vec<EventIndex>>,
}

impl Batch {
    /// Returns whether an append may join.
    pub(crate) fn admits(&self, append: &Append) -> bool {
        let written_is_forbidden = append.events.iter().any(|event| {
            let forbids =
                |(query, n): &(Arc<Query>, usize)| query.items.get(*n).is_some_and(|item| item.matches(event.event_type, &event.ids));
            ids(&event.ids).map(Some).chain([None]).any(|key| self.items.get(&key).into_iter().flatten().any(forbids))
        });
        let forbidden_is_written = append.condition.items().any(|(item, _)| match ids(&item.ids).next() {
            Some(key) => self
                .events
                .get(&key)
                .into_iter()
                .flatten()
                .any(|at| self.appends.get(at.0).and_then(|a| a.events.get(at.1)).is_some_and(|e| item.matches(e.event_type, &e.ids))),
            None => self.appends.iter().flat_map(|a| &a.events).any(|e| item.matches(e.event_type, &e.ids)),
        });
        !written_is_forbidden && !forbidden_is_written
    }

    /// Adds an append.
    pub(crate) fn push(&mut self, append: Append) {
        let at = self.appends.len();
        for query in append.condition.queries() {
            for (n, item) in query.items.iter().enumerate() {
                self.items.entry(ids(&item.ids).next()).or_default().push((query.clone(), n));
            }
        }
        for (n, event) in append.events.iter().enumerate() {
            for key in ids(&event.ids) {
                self.events.entry(key).or_default().push((at, n));
            }
        }
        self.appends.push(append);
    }
}

fn ids(ids: &[Option<Uuid>]) -> impl Iterator<Item = Id> {
    ids.iter().enumerate().filter_map(|(n, id)| id.map(|id| (n, id)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{append::pending::NewEvent, position::Position, query::query_item::QueryItem};

    const TYPES: [&str; 3] = ["A", "B", "C"];

    fn some_ids() -> impl Strategy<Value = Vec<Option<Uuid>>> {
        proptest::collection::vec(proptest::option::of((1..4_u128).prop_map(Uuid::from_u128)), 3)
    }

    fn append() -> impl Strategy<Value = (Vec<QueryItem>, Vec<NewEvent>)> {
        let item = (proptest::sample::subsequence(TYPES.to_vec(), 1..=2), some_ids()).prop_map(|(types, ids)| QueryItem {
            types,
            ids,
            newest: false,
        });
        let event = (proptest::sample::select(TYPES.to_vec()), some_ids()).prop_map(|(event_type, ids)| NewEvent {
            event_type,
            payload: vec![],
            ids,
        });
        (proptest::collection::vec(item, 0..3), proptest::collection::vec(event, 1..3))
    }

    proptest! {
        /// The indexes find what comparing every pair finds.
        #[test]
        fn a_batch_admits_only_appends_that_do_not_conflict(appends in proptest::collection::vec(append(), 1..8)) {
            let mut batch = Batch::default();
            for (items, events) in appends {
                let meets = batch.appends.iter().any(|other| {
                    items.iter().any(|l| other.events.iter().any(|e| l.matches(e.event_type, &e.ids)))
                        || other.condition.items().any(|(l, _)| events.iter().any(|e| l.matches(e.event_type, &e.ids)))
                });
                let append = Append {
                    id: Uuid::nil(),
                    condition: [(Arc::new(Query { items }), Position::START)].into_iter().collect(),
                    events,
                    metadata: String::new(),
                    epoch: 0,
                    queued: std::time::Instant::now(),
                    send_state: Arc::default(),
                    reply: tokio::sync::oneshot::channel().0,
                };
                prop_assert_eq!(batch.admits(&append), !meets);
                if !meets {
                    batch.push(append);
                }
            }
        }
    }
}
