//! The statement of a read: the head, and what each lookup finds, in one snapshot.
//!
//! Lookups of the same kind share one part of the statement. So a process has a handful of statements, each planned once per connection, and
//! a part takes any number of lookups.

use std::fmt::Write as _;

use sqlx::{Postgres, Row, postgres::PgArguments, query::Query};
use uuid::Uuid;

use crate::{
    position::Position,
    query::query_item::QueryItem,
    read::answer::{Answer, Found},
};

/// A query item, and the position after which it searches.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) item: QueryItem,
    pub(crate) after: Position,
}

/// Lookups that differ only in their positions and ids.
struct Part<'a> {
    types: &'a [&'static str],
    newest: bool,
    /// The number of the first id that is given. `None` if no id is.
    leading: Option<usize>,
    after: Vec<i64>,
    ids: Vec<Vec<Option<Uuid>>>,
    /// For each lookup, its read and its number in that read.
    owners: Vec<(usize, usize)>,
}

/// The statement for several reads.
pub(crate) struct Statement<'a> {
    parts: Vec<Part<'a>>,
    sql: String,
    reads: usize,
}

impl<'a> Statement<'a> {
    /// Builds the statement for these reads. `order` names the log's domain ids.
    pub(crate) fn of(reads: &[&'a [Lookup]], order: &[&'static str]) -> Self {
        let mut parts: Vec<Part<'a>> = vec![];
        for (read, lookups) in reads.iter().enumerate() {
            for (own, Lookup { item, after }) in lookups.iter().enumerate() {
                let leading = item.ids.iter().position(Option::is_some);
                let is_alike = |part: &Part<'_>| part.leading == leading && part.newest == item.newest && part.types == item.types;
                let at = parts.iter().position(is_alike).unwrap_or_else(|| {
                    let (after, ids, owners) = (vec![], vec![vec![]; order.len()], vec![]);
                    parts.push(Part { types: &item.types, newest: item.newest, leading, after, ids, owners });
                    parts.len() - 1
                });
                if let Some(part) = parts.get_mut(at) {
                    part.after.push(after.0);
                    part.ids.iter_mut().zip(&item.ids).for_each(|(column, id)| column.push(*id));
                    part.owners.push((read, own));
                }
            }
        }
        // In a fixed order, so that the same kinds are the same statement.
        parts.sort_by_key(|part| (part.leading, part.newest));
        let sql = sql(&parts, order);
        Self { parts, sql, reads: reads.len() }
    }

    /// Returns the query, to be sent.
    pub(crate) fn query(&self) -> Query<'_, Postgres, PgArguments> {
        self.parts.iter().fold(sqlx::query(&self.sql), |query, part| {
            let query = query.bind(part.types).bind(&part.after);
            part.ids.iter().fold(query, Query::bind)
        })
    }

    /// Splits the rows into an answer for each read.
    pub(crate) fn answers(&self, rows: &[sqlx::postgres::PgRow]) -> Result<Vec<Answer>, sqlx::Error> {
        let mut answers: Vec<_> = (0..self.reads).map(|_| Answer::default()).collect();
        let mut head = 0;
        for row in rows {
            let Some(part) = row.try_get::<Option<i32>, _>(0)? else {
                head = row.try_get(2)?;
                continue;
            };
            let (part, lookup) =
                (usize::try_from(part).unwrap_or_default(), usize::try_from(row.try_get::<i64, _>(1)? - 1).unwrap_or_default());
            let owner = self.parts.get(part).and_then(|part| part.owners.get(lookup));
            if let Some((read, item)) = owner
                && let Some(answer) = answers.get_mut(*read)
            {
                answer.found.push(Found { item: *item, position: row.try_get(2)?, payload: row.try_get(3)?, more: false });
            }
        }
        for answer in &mut answers {
            answer.head = head;
            answer.mark_cuts();
        }
        Ok(answers)
    }
}

fn sql(parts: &[Part<'_>], order: &[&'static str]) -> String {
    let mut sql = "SELECT NULL::integer, NULL::bigint, coalesce(max(event_id), 0), NULL::bytea FROM event".to_owned();
    let columns = order.join(", ");
    for (n, part) in parts.iter().enumerate() {
        let function = if part.newest { "newest_by" } else { "read_by" };
        let leading = part.leading.and_then(|id| order.get(id)).copied().unwrap_or("type");
        let types = 1 + n * (2 + order.len());
        let ids: String = (0..order.len()).map(|id| format!(", ${}::uuid[]", types + 2 + id)).collect();
        // Writing to a string never fails.
        let _ = write!(
            sql,
            " UNION ALL SELECT {n}, q.lookup, e.event_id, e.payload \
             FROM unnest(${}::bigint[]{ids}) WITH ORDINALITY AS q(after, {columns}, lookup) \
             CROSS JOIN LATERAL {function}_{leading}(${types}::text[], q.after, {}) e",
            types + 1,
            order.iter().map(|id| format!("q.{id}")).collect::<Vec<_>>().join(", ")
        );
    }
    sql
}
