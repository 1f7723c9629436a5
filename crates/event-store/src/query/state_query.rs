//! Query: which events a state folds, and so which events a decision's condition forbids.
//!
//! An event matches when its type is among the query's, and every id that *both* carry is equal. (disintegrate's in-memory
//! `StreamQuery::matches` wants the event to carry every id; its SQL does not. The SQL's reading is the useful one, and ours.)

use disintegrate::{Event, IdentifierValue, StateQuery, StreamQuery};
use uuid::Uuid;

use crate::{event::domain_ids, position::Position, query::query_item::QueryItem};

/// Query that can match nothing, or not what they seem to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// An id that none of the types carries would say nothing.
    #[error("the criteria name the id {0}, which none of their event types carries")]
    UnknownId(&'static str),
    /// The log has only uuid columns.
    #[error("the criteria's id {0} is no UUID")]
    NotUuid(&'static str),
}

/// The events of some types that carry some ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// One for each set of ids that types among the query's have in common with them.
    pub(crate) items: Vec<QueryItem>,
}

impl Query {
    /// The query of a state's query.
    ///
    /// # Errors
    /// Where the query names an id that none of its types carries, or one that is no UUID.
    pub fn of<S: StateQuery, E: Event>(state: &S, newest: bool) -> Result<Self, QueryError> {
        let order = domain_ids::<E>();
        let query: StreamQuery<Position, S::Event> = state.query();
        let mut items: Vec<QueryItem> = vec![];
        for filter in query.filters() {
            for ident in filter.identifiers().keys() {
                let carried = |name: &&&str| S::Event::SCHEMA.event_info(name).is_some_and(|info| info.has_domain_id(ident));
                if !filter.events().iter().any(|name| carried(&name)) {
                    return Err(QueryError::UnknownId(static_name(&order, ident.into_inner())));
                }
            }
            for event_type in filter.events() {
                if filter.excluded_events().as_ref().is_some_and(|excluded| excluded.contains(event_type)) {
                    continue;
                }
                let Some(info) = S::Event::SCHEMA.event_info(event_type) else { continue };
                let mut ids = vec![None; order.len()];
                for (ident, value) in &**filter.identifiers() {
                    let IdentifierValue::Uuid(id) = value else {
                        return Err(QueryError::NotUuid(static_name(&order, ident.into_inner())));
                    };
                    if info.has_domain_id(ident)
                        && let Some(slot) = order.iter().position(|name| *name == ident.into_inner()).and_then(|at| ids.get_mut(at))
                    {
                        *slot = Some(*id);
                    }
                }
                match items.iter_mut().find(|item| item.ids == ids) {
                    Some(item) => item.types.push(event_type),
                    None => items.push(QueryItem { types: vec![event_type], ids, newest }),
                }
            }
        }
        Ok(Self { items })
    }

    /// Whether an event of this type, with these ids in the schema's order, matches.
    pub(crate) fn matches(&self, event_type: &str, ids: &[Option<Uuid>]) -> bool {
        self.items.iter().any(|item| item.matches(event_type, ids))
    }
}

fn static_name(order: &[&'static str], name: &str) -> &'static str {
    order.iter().find(|known| **known == name).copied().unwrap_or("(unknown)")
}
