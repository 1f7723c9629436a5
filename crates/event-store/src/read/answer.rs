//! The answer of the log to a read or an append.

use sqlx::{Row, postgres::PgRow};

use crate::position::Position;

/// The most events that a query item finds in one answer. The functions `read_by_*` of the migrations have the same limit.
pub(crate) const LIMIT: usize = 128;

/// The events that query items found, and the head of the same snapshot.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) head: i64,
    pub(crate) found: Vec<Found>,
}

/// An event that a query item found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The number of the item in the call.
    pub(crate) item: usize,
    pub(crate) position: i64,
    pub(crate) payload: Vec<u8>,
    /// Whether the item's answer was cut after this event.
    pub(crate) more: bool,
}

impl Answer {
    /// Reads the rows of `append_events`.
    pub(crate) fn from_rows(rows: &[PgRow]) -> Result<Self, sqlx::Error> {
        let mut answer = Self { head: 0, found: Vec::with_capacity(rows.len()) };
        for row in rows {
            match row.try_get::<Option<i32>, _>(0)? {
                None => answer.head = row.try_get(1)?,
                Some(item) => answer.found.push(Found {
                    item: usize::try_from(item).unwrap_or_default(),
                    position: row.try_get(1)?,
                    payload: row.try_get(3)?,
                    more: row.try_get(4)?,
                }),
            }
        }
        answer.mark_cuts();
        Ok(answer)
    }

    /// Marks the last event of each item that may have found more.
    pub(crate) fn mark_cuts(&mut self) {
        self.found.sort_by_key(|found| (found.item, found.position));
        for of_item in self.found.chunk_by_mut(|one, next| one.item == next.item).filter(|of_item| of_item.len() >= LIMIT) {
            if let Some(last) = of_item.last_mut() {
                last.more = true;
            }
        }
    }

    /// Reduces the answer to what it was when the log ended at `at`. An answer that was cut later is complete up to there.
    pub(crate) fn end_at(&mut self, at: Position) {
        self.head = self.head.min(at.0);
        self.found.retain(|found| found.position <= at.0);
    }
}
