//! What a call found.

use sqlx::{Row, postgres::PgRow};

use crate::position::Position;

/// What a call found, and the head of the snapshot it saw.
pub(crate) struct Answer {
    pub(crate) head: i64,
    pub(crate) found: Vec<Found>,
}

impl Answer {
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
        Ok(answer)
    }

    /// As it would have been when the log ended at `at`. An answer that was cut beyond that has all there is up to there.
    pub(crate) fn end_at(&mut self, at: Position) {
        self.head = self.head.min(at.0);
        self.found.retain(|found| found.position <= at.0);
    }
}

/// An event that a item found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Which of the call's items.
    pub(crate) item: usize,
    pub(crate) position: i64,
    pub(crate) payload: Vec<u8>,
    /// The item's answer was cut here: it has more.
    pub(crate) more: bool,
}
