//! The query of a state.

use disintegrate::{Event, IdentifierValue, StateQuery, StreamQuery};
use uuid::Uuid;

use crate::{event::domain_ids, position::Position, query::query_item::QueryItem};

/// A state's query does not fit the log's schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No event type of the query carries this id, so the id would select nothing.
    #[error("the query names the id {0}, which none of its event types carries")]
    UnknownId(&'static str),
    /// The id is not a UUID. The log has only uuid columns.
    #[error("the query's id {0} is no UUID")]
    NotUuid(&'static str),
}

/// Matches the events of some types that carry some ids.
///
/// An event matches if its type is in the query and every id that both carry is equal. (disintegrate's in-memory `StreamQuery::matches`
/// wants the event to carry every id of the query; its SQL does not. Cartlog follows the SQL.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// One item for each set of ids that some of the query's types carry.
    pub(crate) items: Vec<QueryItem>,
}

impl Query {
    /// Builds the query of a state.
    ///
    /// # Errors
    /// If the query names an id that none of its types carries, or an id that is not a UUID.
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
