//! Who works what: segments of a build, each held by a replica for as long as that is alive, by the database's clock.
//!
//! A process that dies or freezes ceases to be alive by saying nothing. It can write nothing any more then: every write moves the checkpoints
//! of its segments, in the same transaction, and only where it is the owner of them all, as they are cut, and none has gone beyond from where
//! it writes.

use std::collections::BTreeMap;

use event_store::{
    Position, StoreError,
    connection::{PooledConnection, with_timeout},
};
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

/// The segments of a build that a replica holds, and up to where there is nothing left to apply in each: at least what the table says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Into how many segments the build is cut.
    pub(crate) segments: i32,
    /// Whether it is the build in service.
    pub(crate) serving: bool,
    pub(crate) positions: BTreeMap<i32, At>,
}

/// Where a segment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    /// Where the table had it when it was last read or written: it has not moved back since, unless the build was begun anew, and then it
    /// is not this one that goes on.
    pub(crate) stored: Position,
    /// Up to where there is nothing left to apply.
    pub(crate) position: Position,
}

impl At {
    pub(crate) fn stored(position: Position) -> Self {
        Self { stored: position, position }
    }
}

impl Held {
    pub(crate) fn lowest(&self) -> Option<Position> {
        self.positions.values().map(|at| at.position).min()
    }

    pub(crate) fn highest(&self) -> Option<Position> {
        self.positions.values().map(|at| at.position).max()
    }

    pub(crate) fn all(&self) -> bool {
        self.positions.len() == usize::try_from(self.segments).unwrap_or_default()
    }

    /// These of its segments, as `projection_holds` takes them: a character for each segment there is.
    fn in_hand(&self, active: &[i32]) -> String {
        (0..self.segments).map(|segment| if active.contains(&segment) { '1' } else { '0' }).collect()
    }

    /// Segments and their positions, as the columns that SQL takes.
    pub(crate) fn columns(&self) -> (Vec<i32>, Vec<i64>) {
        self.positions.iter().map(|(segment, at)| (*segment, at.position.0)).unzip()
    }
}

/// What moving checkpoints came to.
pub(crate) struct Advanced {
    /// Whether all of them were this replica's to move.
    pub(crate) moved: bool,
    /// The keys that are parked in the build.
    pub(crate) parked: Vec<Uuid>,
}

/// One replica's hold on the segments of one build.
#[derive(Clone, Copy)]
pub(crate) struct Leases<'a> {
    pub(crate) pool: &'a PgPool,
    pub(crate) name: &'static str,
    pub(crate) build: &'static str,
    pub(crate) version: i32,
    pub(crate) replica: Uuid,
}

impl Leases<'_> {
    /// Takes segments that nobody alive holds: so many at the most. One that a frozen transaction still has locked is passed over.
    pub(crate) async fn take(&self, segments: i32, count: usize) -> Result<Vec<(i32, At)>, StoreError> {
        let rows = with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            let rows = sqlx::query!(
                "WITH free AS (
                 SELECT c.segment FROM checkpoint c JOIN projection p USING (name, build)
                 WHERE c.name = $1 AND c.build = $2 AND c.segments = $5 AND p.version = $4 AND p.status IN ('serving', 'building')
                   AND (c.owner IS NULL OR NOT EXISTS (
                       SELECT FROM replica r WHERE r.name = c.name AND r.id = c.owner AND r.alive_until > clock_timestamp()))
                 ORDER BY c.segment LIMIT $6 FOR UPDATE OF c SKIP LOCKED
             )
             UPDATE checkpoint c SET owner = $3, updated_at = clock_timestamp() FROM free
             WHERE c.name = $1 AND c.build = $2 AND c.segment = free.segment
             RETURNING c.segment, c.position",
                self.name,
                self.build,
                self.replica,
                self.version,
                segments,
                i64::try_from(count).unwrap_or(i64::MAX)
            )
            .fetch_all(&mut *connection)
            .await?;
            connection.done();
            Ok(rows)
        })
        .await?;
        Ok(rows.into_iter().map(|row| (row.segment, At::stored(Position(row.position)))).collect())
    }

    /// Takes every segment, whoever has it: its owner can write nothing any more. One that is in the middle of a transaction is passed over.
    pub(crate) async fn take_all(&self, segments: i32) -> Result<Vec<(i32, At)>, StoreError> {
        let rows = with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            let rows = sqlx::query!(
                "WITH others AS (
                 SELECT c.segment FROM checkpoint c JOIN projection p USING (name, build)
                 WHERE c.name = $1 AND c.build = $2 AND c.segments = $5 AND p.version = $4 AND p.status IN ('serving', 'building')
                   AND c.owner IS DISTINCT FROM $3
                 FOR UPDATE OF c SKIP LOCKED
             )
             UPDATE checkpoint c SET owner = $3, updated_at = clock_timestamp() FROM others
             WHERE c.name = $1 AND c.build = $2 AND c.segment = others.segment
             RETURNING c.segment, c.position",
                self.name,
                self.build,
                self.replica,
                self.version,
                segments
            )
            .fetch_all(&mut *connection)
            .await?;
            connection.done();
            Ok(rows)
        })
        .await?;
        Ok(rows.into_iter().map(|row| (row.segment, At::stored(Position(row.position)))).collect())
    }

    /// Hands segments back, and writes down how far they have come.
    pub(crate) async fn hand_back(&self, held: &Held) -> Result<(), StoreError> {
        let (segments, positions) = held.columns();
        with_timeout(async {
            let mut connection = PooledConnection::from(self.pool).await?;
            sqlx::query!(
                "UPDATE checkpoint c SET owner = NULL, position = greatest(c.position, k.position), updated_at = clock_timestamp()
             FROM unnest($5::integer[], $6::bigint[]) AS k(segment, position)
             WHERE c.name = $1 AND c.build = $2 AND c.segments = $3 AND c.owner = $4 AND c.segment = k.segment",
                self.name,
                self.build,
                held.segments,
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

    /// Moves the checkpoints of segments that stand at one position, within the transaction that writes what it stands for; and tells that
    /// transaction in which schema it writes, and about which segments it is. Answers whether they are all still this replica's to move.
    ///
    /// The position may not be beyond `from`: a batch whose commit was lost out of sight and came about all the same is not applied again.
    /// It may be before it, for what lay in between was nothing to apply.
    ///
    /// The keys that are parked in the build come with the answer, and are told to the transaction too: nobody else parks one in these
    /// segments, or takes it out, before it ends.
    pub(crate) async fn advance(
        &self,
        transaction: &mut PgConnection,
        held: &Held,
        active: &[i32],
        from: Position,
        to: Position,
    ) -> Result<Advanced, sqlx::Error> {
        let stored = active.iter().filter_map(|segment| held.positions.get(segment)).map(|at| at.stored).min();
        let advanced = sqlx::query!(
            r#"WITH moved AS (
                   UPDATE checkpoint SET position = $7, updated_at = clock_timestamp()
                   WHERE name = $1 AND build = $2 AND segments = $3 AND segment = ANY ($4) AND owner = $5
                     AND position BETWEEN $10 AND $6
                   RETURNING segment
               ), held_back AS (
                   SELECT array_agg(key) AS keys FROM parked WHERE name = $1 AND build = $2
               ), set AS (
                   SELECT keys, set_config('search_path', $8, true), set_config('projection.segments', $9, true),
                          set_config('projection.parked', coalesce(array_to_string(keys, ','), ''), true)
                   FROM held_back
               )
               SELECT (SELECT count(*) FROM moved) AS "moved!", keys FROM set"#,
            self.name,
            self.build,
            held.segments,
            active,
            self.replica,
            from.0,
            to.0,
            format!("{}, public", self.build),
            held.in_hand(active),
            stored.map_or(0, |stored| stored.0)
        )
        .fetch_one(transaction)
        .await?;
        Ok(Advanced {
            moved: usize::try_from(advanced.moved).is_ok_and(|moved| moved == active.len()),
            parked: advanced.keys.unwrap_or_default(),
        })
    }

    /// Keeps a segment in hand for the rest of a transaction, which is about one of its keys alone. Answers whether it is still this
    /// replica's.
    pub(crate) async fn hold(&self, transaction: &mut PgConnection, held: &Held, segment: i32, key: Uuid) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar!(
            r#"WITH fence AS (
                   SELECT FROM checkpoint
                   WHERE name = $1 AND build = $2 AND segments = $3 AND segment = $4 AND owner = $5 FOR UPDATE
               ), set AS (
                   SELECT set_config('search_path', $6, true), set_config('projection.segments', $7, true),
                          set_config('projection.key', $8, true)
               )
               SELECT EXISTS (SELECT FROM fence) AS "held!" FROM set"#,
            self.name,
            self.build,
            held.segments,
            segment,
            self.replica,
            format!("{}, public", self.build),
            held.in_hand(&[segment]),
            key.to_string()
        )
        .fetch_one(transaction)
        .await
    }

    /// Cuts a build anew, all of whose segments this replica holds at one position. Answers whether it did: not where another has taken one.
    pub(crate) async fn cut(&self, held: &Held, at: Position, segments: i32) -> Result<bool, StoreError> {
        with_timeout(async {
            let mut lent = PooledConnection::from(self.pool).await?;
            let mut transaction = lent.begin().await?;
            let fenced = sqlx::query!(
                "DELETE FROM checkpoint WHERE name = $1 AND build = $2 AND segments = $3 AND owner = $4 AND position <= $5",
                self.name,
                self.build,
                held.segments,
                self.replica,
                at.0
            )
            .execute(&mut *transaction)
            .await?;
            let all = usize::try_from(fenced.rows_affected()).is_ok_and(|rows| rows == held.positions.len());
            if all {
                sqlx::query!(
                    "INSERT INTO checkpoint (name, build, segment, segments, position, owner)
                     SELECT $1, $2, segment, $3, $4, $5 FROM generate_series(0, $3::integer - 1) AS segment",
                    self.name,
                    self.build,
                    segments,
                    at.0,
                    self.replica
                )
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await?;
            } else {
                transaction.rollback().await?;
            }
            lent.done();
            Ok(all)
        })
        .await
    }
}
