//! Who works what: leases on checkpoints, by the database's clock.
//!
//! A process that dies or freezes loses its lease by letting it run out. It can write nothing any more then: every write moves the
//! checkpoint, in the same transaction, from where this owner left it, and only while it is the owner.

use std::time::Duration;

use sqlx::{PgConnection, PgPool, postgres::types::PgInterval};
use uuid::Uuid;

use crate::Position;

/// A segment of a build, held by this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) build: String,
    pub(crate) segment: i32,
    pub(crate) building: bool,
    /// As it stands in the table.
    pub(crate) stored: Position,
    /// Up to where there is nothing left to apply: at least `stored`.
    pub(crate) position: Position,
}

/// One process's leases on one projection.
pub(crate) struct Leases<'a> {
    pub(crate) pool: &'a PgPool,
    pub(crate) name: &'static str,
    pub(crate) version: i32,
    pub(crate) owner: Uuid,
    pub(crate) duration: Duration,
}

impl Leases<'_> {
    fn interval(&self) -> PgInterval {
        PgInterval { months: 0, days: 0, microseconds: i64::try_from(self.duration.as_micros()).unwrap_or(i64::MAX) }
    }

    /// Renews what is held, and takes what nobody holds. Also writes down how far what is held has come.
    pub(crate) async fn renew(&self, held: &[Held]) -> Result<Vec<Held>, sqlx::Error> {
        let builds: Vec<_> = held.iter().map(|h| h.build.clone()).collect();
        let segments: Vec<_> = held.iter().map(|h| h.segment).collect();
        let stored: Vec<_> = held.iter().map(|h| h.stored.0).collect();
        let positions: Vec<_> = held.iter().map(|h| h.position.0).collect();
        let rows = sqlx::query!(
            r#"WITH free AS (
                   SELECT c.name, c.build, c.segment, p.status = 'building' AS building
                   FROM checkpoint c JOIN projection p USING (name, build)
                   WHERE c.name = $1 AND p.version = $2 AND p.status IN ('serving', 'building')
                     AND (c.owner IS NULL OR c.owner = $3 OR c.lease_until < clock_timestamp())
                   FOR UPDATE OF c SKIP LOCKED
               ), known AS (
                   SELECT * FROM unnest($5::text[], $6::integer[], $7::bigint[], $8::bigint[]) AS k(build, segment, stored, position)
               )
               UPDATE checkpoint c
               SET owner = $3, lease_until = clock_timestamp() + $4, updated_at = clock_timestamp(),
                   -- What another has moved since is not ours to move.
                   position = CASE WHEN c.owner = $3 AND c.position = k.stored THEN k.position ELSE c.position END
               FROM free LEFT JOIN known k ON k.build = free.build AND k.segment = free.segment
               WHERE c.name = free.name AND c.build = free.build AND c.segment = free.segment
               RETURNING c.build, c.segment, c.position, free.building AS "building!""#,
            self.name,
            self.version,
            self.owner,
            self.interval(),
            &builds,
            &segments,
            &stored,
            &positions,
        )
        .fetch_all(self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Held {
                build: row.build,
                segment: row.segment,
                building: row.building,
                stored: Position(row.position),
                position: Position(row.position),
            })
            .collect())
    }

    /// Moves a checkpoint within the transaction that writes what it stands for. Answers whether it is still this process's to move.
    pub(crate) async fn advance(&self, transaction: &mut PgConnection, held: &Held, to: Position) -> Result<bool, sqlx::Error> {
        let moved = sqlx::query!(
            "UPDATE checkpoint SET position = $6, lease_until = clock_timestamp() + $7, updated_at = clock_timestamp()
             WHERE name = $1 AND build = $2 AND segment = $3 AND owner = $4 AND position = $5",
            self.name,
            held.build,
            held.segment,
            self.owner,
            held.stored.0,
            to.0,
            self.interval(),
        )
        .execute(transaction)
        .await?;
        Ok(moved.rows_affected() == 1)
    }

    /// Gives everything back, so that another need not wait for the leases to run out.
    pub(crate) async fn release(&self) -> Result<(), sqlx::Error> {
        sqlx::query!("UPDATE checkpoint SET owner = NULL, lease_until = NULL WHERE name = $1 AND owner = $2", self.name, self.owner)
            .execute(self.pool)
            .await?;
        Ok(())
    }
}
