//! The condition of an append.

use std::sync::Arc;

use crate::{
    position::Position,
    query::{query_item::QueryItem, state_query::Query},
};

/// What must not have happened for an append to be written: an event that matches a query, after the position up to which it was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct AppendCondition(Vec<(Arc<Query>, Position)>);

impl AppendCondition {
    /// Its queries.
    pub(crate) fn queries(&self) -> impl Iterator<Item = &Arc<Query>> {
        self.0.iter().map(|(query, _)| query)
    }

    /// The items of its queries, each with the position after which it must find nothing.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&QueryItem, Position)> {
        self.0.iter().flat_map(|(query, after)| query.items.iter().map(|item| (item, *after)))
    }
}

impl FromIterator<(Arc<Query>, Position)> for AppendCondition {
    fn from_iter<T: IntoIterator<Item = (Arc<Query>, Position)>>(queries: T) -> Self {
        Self(queries.into_iter().collect())
    }
}
