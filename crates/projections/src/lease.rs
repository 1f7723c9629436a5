//! Ownership of segments. A replica owns a segment while it is alive, by the database's clock.
//!
//! A process that dies or freezes sends no heartbeat, so its replica stops being alive. From then on it cannot write. Every write moves the
//! checkpoints of its segments in the same transaction. The write fails unless the replica owns all these segments and none of them is past
//! the batch's start.

use std::collections::BTreeMap;

use event_store::connection::{PooledConnection, with_timeout};
use event_store::{Pool, Position, StoreError};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::segment::SEGMENTS;

/// The segments of a build that a replica owns, with their positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnedSegments {
    /// Whether the build serves.
    pub(crate) serving: bool,
    pub(crate) positions: BTreeMap<i32, SegmentPosition>,
}

/// How far a segment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentPosition {
    /// The checkpoint when it was last read or written. It never moves back, except if the build was rebuilt, and then it has a new owner.
    pub(crate) stored: Position,
    /// The position up to which nothing is left to apply: at least `stored`.
    pub(crate) applied: Position,
}

impl SegmentPosition {
    pub(crate) fn stored(position: Position) -> Self {
        Self { stored: position, applied: position }
    }
}

impl OwnedSegments {
    pub(crate) fn lowest(&self) -> Option<Position> {
        self.positions.values().map(|segment| segment.applied).min()
    }

    pub(crate) fn highest(&self) -> Option<Position> {
        self.positions.values().map(|segment| segment.applied).max()
    }

    /// Whether the replica owns every segment of the build.
    pub(crate) fn is_all(&self) -> bool {
        self.positions.len() == SEGMENTS as usize
    }
}

/// Formats segments for the setting `projection.segments`: one character per segment, 1 if it is among them.
fn in_scope(segments: &[i32]) -> String {
    (0..SEGMENTS).map(|segment| if segments.contains(&segment) { '1' } else { '0' }).collect()
}

/// The outcome of moving checkpoints.
pub(crate) struct Advanced {
    /// Whether the replica owned all of the segments.
    pub(crate) moved: bool,
    /// The parked keys of the build.
    pub(crate) parked: Vec<Uuid>,
}

/// A replica's access to the checkpoints of one build.
#[derive(Clone, Copy)]
pub(crate) struct Leases<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) name: &'static str,
    pub(crate) build: &'static str,
    pub(crate) version: i32,
    pub(crate) replica: Uuid,
}

impl Leases<'_> {
    /// Acquires up to `count` segments that no living replica owns. Skips those that a frozen transaction still locks.
    pub(crate) async fn acquire(&self, count: usize) -> Result<Vec<(i32, SegmentPosition)>, StoreError> {
        let rows = with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            let rows = sqlx::query!(
                "WITH free AS (
                     SELECT c.segment FROM checkpoint c JOIN projection p USING (name, build)
                     WHERE c.name = $1 AND c.build = $2 AND p.version = $4 AND p.status IN ('serving', 'building')
                       AND (c.owner IS NULL OR NOT EXISTS (
                           SELECT FROM replica r WHERE r.name = c.name AND r.id = c.owner AND r.alive_until > clock_timestamp()))
                     ORDER BY c.segment LIMIT $5 FOR UPDATE OF c SKIP LOCKED
                 )
                 UPDATE checkpoint c SET owner = $3, updated_at = clock_timestamp() FROM free
                 WHERE c.name = $1 AND c.build = $2 AND c.segment = free.segment
                 RETURNING c.segment, c.position",
                self.name,
                self.build,
                self.replica,
                self.version,
                i64::try_from(count).unwrap_or(i64::MAX)
            )
            .fetch_all(&mut *connection)
            .await?;
            connection.done();
            Ok(rows)
        })
        .await?;
        Ok(rows.into_iter().map(|row| (row.segment, SegmentPosition::stored(Position(row.position)))).collect())
    }

    /// Releases segments and stores their positions.
    pub(crate) async fn release(&self, owned: &OwnedSegments) -> Result<(), StoreError> {
        let (segments, positions): (Vec<_>, Vec<_>) = owned.positions.iter().map(|(segment, at)| (*segment, at.applied.0)).unzip();
        with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            sqlx::query!(
                "UPDATE checkpoint c SET owner = NULL, position = greatest(c.position, k.position), updated_at = clock_timestamp()
                 FROM unnest($4::integer[], $5::bigint[]) AS k(segment, position)
                 WHERE c.name = $1 AND c.build = $2 AND c.owner = $3 AND c.segment = k.segment",
                self.name,
                self.build,
                self.replica,
                &segments,
                &positions
            )
            .execute(&mut *connection)
            .await?;
            connection.done();
            Ok(())
        })
        .await
    }

    /// Moves the checkpoints of segments that are at one position, in the transaction that writes their rows. Also sets search_path and
    /// the settings that `key_in_scope` reads.
    ///
    /// The stored position may be at most `from`: if an earlier commit succeeded without an answer, its batch is not applied again. It may
    /// be lower, if the events in between are none of the projection's.
    ///
    /// The parked keys in the answer stay the same until the transaction ends, because only the owner of their segments changes them.
    pub(crate) async fn advance(
        &self,
        transaction: &mut PgConnection,
        owned: &OwnedSegments,
        active: &[i32],
        from: Position,
        to: Position,
    ) -> Result<Advanced, sqlx::Error> {
        let stored = active.iter().filter_map(|segment| owned.positions.get(segment)).map(|at| at.stored).min();
        let advanced = sqlx::query!(
            r#"WITH moved AS (
                   UPDATE checkpoint SET position = $6, updated_at = clock_timestamp()
                   WHERE name = $1 AND build = $2 AND segment = ANY ($3) AND owner = $4 AND position BETWEEN $9 AND $5
                   RETURNING segment
               ), parked AS (
                   SELECT array_agg(key) AS keys FROM parked_key WHERE name = $1 AND build = $2
               ), set AS (
                   SELECT keys, set_config('search_path', $7, true), set_config('projection.segments', $8, true),
                          set_config('projection.parked', coalesce(array_to_string(keys, ','), ''), true)
                   FROM parked
               )
               SELECT (SELECT count(*) FROM moved) AS "moved!", keys FROM set"#,
            self.name,
            self.build,
            active,
            self.replica,
            from.0,
            to.0,
            format!("{}, public", self.build),
            in_scope(active),
            stored.map_or(0, |stored| stored.0)
        )
        .fetch_one(transaction)
        .await?;
        Ok(Advanced {
            moved: usize::try_from(advanced.moved).is_ok_and(|moved| moved == active.len()),
            parked: advanced.keys.unwrap_or_default(),
        })
    }

    /// Locks the checkpoint of a segment for a transaction about one of its keys, and limits `key_in_scope` to that key. Returns whether
    /// the replica owns the segment.
    pub(crate) async fn lock(&self, transaction: &mut PgConnection, segment: i32, key: Uuid) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar!(
            r#"WITH fence AS (
                   SELECT FROM checkpoint WHERE name = $1 AND build = $2 AND segment = $3 AND owner = $4 FOR UPDATE
               ), set AS (
                   SELECT set_config('search_path', $5, true), set_config('projection.segments', $6, true),
                          set_config('projection.key', $7, true)
               )
               SELECT EXISTS (SELECT FROM fence) AS "owned!" FROM set"#,
            self.name,
            self.build,
            segment,
            self.replica,
            format!("{}, public", self.build),
            in_scope(&[segment]),
            key.to_string()
        )
        .fetch_one(transaction)
        .await
    }
}
