//! The condition of an append.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    position::Position,
    query::{query_item::QueryItem, state_query::Query},
};

/// The condition of an append: no event matches one of its queries after that query's position.
///
/// This is the append condition of the [DCB specification](https://dcb.events/specification/), with a position for each query.
#[derive(Debug, Clone, Default)]
pub(crate) struct AppendCondition(Vec<(Arc<Query>, Position)>);

impl AppendCondition {
    pub(crate) fn queries(&self) -> impl Iterator<Item = &Arc<Query>> {
        self.0.iter().map(|(query, _)| query)
    }

    /// Returns the items of all queries, each with the position after which it must find nothing.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&QueryItem, Position)> {
        self.0.iter().flat_map(|(query, after)| query.items.iter().map(|item| (item, *after)))
    }

    /// Returns the first id that a query names: the id's number in the schema, and its value.
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
    fn first_id_is_that_of_the_first_query_with_an_id() {
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
