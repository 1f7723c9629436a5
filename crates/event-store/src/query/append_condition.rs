//! The condition of an append.

use std::sync::Arc;

use uuid::Uuid;

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

    /// The first id that one of its queries names: the id's number in the schema, and its value.
    pub(crate) fn first_id(&self) -> Option<(usize, Uuid)> {
        self.items().find_map(|(item, _)| item.ids.iter().enumerate().find_map(|(n, id)| id.map(|id| (n, id))))
    }
}

impl FromIterator<(Arc<Query>, Position)> for AppendCondition {
    fn from_iter<T: IntoIterator<Item = (Arc<Query>, Position)>>(queries: T) -> Self {
        Self(queries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_id_is_the_first_states_even_if_others_come_earlier_in_the_schema() {
        let (cart, product) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let query = |ids: [Option<Uuid>; 2]| {
            let items = vec![QueryItem { types: vec!["A"], ids: ids.to_vec(), newest: false }];
            (Arc::new(Query { items }), Position::START)
        };
        let condition = |queries: &[(Arc<Query>, Position)]| queries.iter().cloned().collect::<AppendCondition>();
        let (cart_query, product_query) = (query([None, Some(cart)]), query([Some(product), None]));
        assert_eq!(condition(&[cart_query.clone(), product_query]).first_id(), Some((1, cart)));
        assert_eq!(condition(&[query([None, None]), cart_query]).first_id(), Some((1, cart)));
        assert_eq!(condition(&[query([None, None])]).first_id(), None);
    }
}
