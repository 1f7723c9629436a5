//! Query items, and their form as arguments of the SQL functions: one array a column.

use sqlx::{Postgres, postgres::PgArguments};
use uuid::Uuid;

/// Matches events of these types that carry all of these ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueryItem {
    pub(crate) types: Vec<&'static str>,
    /// In the schema's order. `None` matches any value.
    pub(crate) ids: Vec<Option<Uuid>>,
    /// Whether only the newest such event is wanted.
    pub(crate) newest: bool,
}

impl QueryItem {
    pub(crate) fn matches(&self, event_type: &str, ids: &[Option<Uuid>]) -> bool {
        self.types.contains(&event_type) && self.ids.iter().zip(ids).all(|(wanted, carried)| wanted.is_none() || wanted == carried)
    }
}

/// Query items with the position each one starts after, column by column.
#[derive(Debug, Default)]
pub(crate) struct QueryColumns {
    types: Vec<String>,
    after: Vec<i64>,
    newest: Vec<bool>,
    ids: Vec<Vec<Option<Uuid>>>,
}

impl QueryColumns {
    /// Creates columns for a schema with this number of domain ids.
    pub(crate) fn new(ids: usize) -> Self {
        Self { ids: vec![vec![]; ids], ..Self::default() }
    }

    pub(crate) fn push(&mut self, item: &QueryItem, after: i64) {
        self.types.push(item.types.join(","));
        self.after.push(after);
        self.newest.push(item.newest);
        for (column, id) in self.ids.iter_mut().zip(&item.ids) {
            column.push(*id);
        }
    }

    pub(crate) fn bind<'q>(self, query: sqlx::query::Query<'q, Postgres, PgArguments>) -> sqlx::query::Query<'q, Postgres, PgArguments> {
        self.ids.into_iter().fold(query.bind(self.types).bind(self.after).bind(self.newest), sqlx::query::Query::bind)
    }
}

/// Returns `$1, $2, …`, beginning with number `first`.
pub(crate) fn placeholders(first: usize, count: usize) -> String {
    (first..first + count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}
