//! Ownership of segments. A replica owns a segment while it has a row in `replica`.
//!
//! A process that dies or freezes sends no heartbeat, so another replica deletes its row and acquires its segments. From then on it cannot
//! write. Every write moves the checkpoints of its segments in the same transaction. The write fails unless the replica owns all these
//! segments, none of them is past the batch's start, and the server is the one that the batch was read from.
//!
//! Positions in memory belong to one log, as `log_identity()` names it. After a failover or a restore they are worthless. Each statement that
//! writes a position therefore compares the log that it writes to with the log that the position was read from.

use std::{collections::BTreeMap, sync::Arc};

use event_store::connection::{PooledConnection, with_timeout};
use event_store::{Pool, Position, StoreError};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::segment::SEGMENTS;

/// The segments of a build that a replica owns, with their positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnedSegments {
    /// The log that the positions were read from.
    pub(crate) log: Arc<str>,
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

    /// Whether the replica owns every segment of the build.
    pub(crate) fn is_all(&self) -> bool {
        self.positions.len() == SEGMENTS as usize
    }
}

/// Formats segments for the setting `projection.segments`: one character per segment, 1 if it is among them.
fn in_scope(segments: &[i32]) -> String {
    (0..SEGMENTS).map(|segment| if segments.contains(&segment) { '1' } else { '0' }).collect()
}

/// The error of a statement that met another server than the positions were read from, or one that has not come as far.
pub(crate) fn not_current(to: Position) -> StoreError {
    StoreError::NotCurrent(format!("it has not reached {to}, or has another log than the positions were read from"))
}

/// The outcome of moving checkpoints.
pub(crate) struct Advanced {
    /// Whether the server has the log that the positions were read from, up to the new position.
    pub(crate) current: bool,
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
    /// Acquires up to `count` segments of this log that no living replica owns. Skips those that a frozen transaction still locks.
    pub(crate) async fn acquire(&self, log: &str, count: usize) -> Result<Vec<(i32, SegmentPosition)>, StoreError> {
        let rows = with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            let rows = sqlx::query!(
                "WITH free AS (
                     SELECT c.segment FROM checkpoint c JOIN projection p USING (name, build)
                     WHERE c.name = $1 AND c.build = $2 AND p.version = $4 AND p.status IN ('serving', 'building')
                       AND (c.owner IS NULL OR NOT EXISTS (SELECT FROM replica r WHERE r.name = c.name AND r.id = c.owner))
                       AND log_identity() = $6
                     ORDER BY c.segment LIMIT $5 FOR UPDATE OF c SKIP LOCKED
                 )
                 UPDATE checkpoint c SET owner = $3, updated_at = clock_timestamp() FROM free
                 WHERE c.name = $1 AND c.build = $2 AND c.segment = free.segment
                 RETURNING c.segment, c.position",
                self.name,
                self.build,
                self.replica,
                self.version,
                i64::try_from(count).unwrap_or(i64::MAX),
                log
            )
            .fetch_all(&mut *connection)
            .await?;
            connection.done();
            Ok(rows)
        })
        .await?;
        Ok(rows.into_iter().map(|row| (row.segment, SegmentPosition::stored(Position(row.position)))).collect())
    }

    /// Releases segments. Stores their positions, if the server has the log that they were read from and has come as far.
    pub(crate) async fn release(&self, owned: &OwnedSegments) -> Result<(), StoreError> {
        let segments: Vec<_> = owned.positions.keys().copied().collect();
        let (stored, positions): (Vec<_>, Vec<_>) = owned.positions.values().map(|at| (at.stored.0, at.applied.0)).unzip();
        with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            sqlx::query!(
                "UPDATE checkpoint c
                 SET owner = NULL, updated_at = clock_timestamp(),
                     position = CASE WHEN c.position BETWEEN k.stored AND k.position AND k.position <= l.head AND l.current
                                THEN k.position ELSE c.position END
                 FROM unnest($4::integer[], $5::bigint[], $6::bigint[]) AS k(segment, stored, position),
                      (SELECT coalesce(max(event_id), 0) AS head, log_identity() = $7 AS current FROM event) AS l
                 WHERE c.name = $1 AND c.build = $2 AND c.owner = $3 AND c.segment = k.segment",
                self.name,
                self.build,
                self.replica,
                &segments,
                &stored,
                &positions,
                &*owned.log
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
    /// The commit is not flushed, because commands would wait behind the flush. If a crash of the server loses it, rows and checkpoints are
    /// lost together, the log has another identity, and the batch is applied again.
    ///
    /// The stored position may be at most `from`: if an earlier commit succeeded without an answer, its batch is not applied again. It may
    /// be lower, if the events in between are none of the projection's. The server must have the log up to `to`: on one that is behind, rows
    /// that are missing are not yet there.
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
            r#"WITH server AS (
                   SELECT log_identity() = $10 AND coalesce(max(event_id), 0) >= $6 AS current FROM event
               ), moved AS (
                   UPDATE checkpoint SET position = $6, updated_at = clock_timestamp()
                   WHERE name = $1 AND build = $2 AND segment = ANY ($3) AND owner = $4 AND position BETWEEN $9 AND $5
                     AND (SELECT current FROM server)
                   RETURNING segment
               ), parked AS (
                   SELECT array_agg(key) AS keys FROM parked_key WHERE name = $1 AND build = $2
               ), set AS (
                   SELECT keys, set_config('search_path', $7, true), set_config('projection.segments', $8, true),
                          set_config('projection.parked', coalesce(array_to_string(keys, ','), ''), true),
                          set_config('synchronous_commit', 'off', true)
                   FROM parked
               )
               SELECT (SELECT current FROM server) AS "current!", (SELECT count(*) FROM moved) AS "moved!", keys FROM set"#,
            self.name,
            self.build,
            active,
            self.replica,
            from.0,
            to.0,
            format!("{}, public", self.build),
            in_scope(active),
            stored.map_or(0, |stored| stored.0),
            &*owned.log
        )
        .fetch_one(transaction)
        .await?;
        Ok(Advanced {
            current: advanced.current,
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
