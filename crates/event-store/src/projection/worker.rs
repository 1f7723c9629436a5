//! Working a build of a projection: whichever of its segments this replica holds, a batch at a time.

use std::{cmp::Reverse, ops::RangeInclusive, sync::Arc, time::Duration};

use opentelemetry::KeyValue;
use sqlx::{Connection, PgConnection};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

use super::{
    Projection, Settings,
    replica::{Alive, Build, Replica, Seen},
    segment::{segment_of, share},
};
use crate::{
    EventStore, Metadata, Position, Recorded, StoreError,
    event::decode,
    lease::{At, Held, Leases},
    metrics::METRICS,
    store::{Lent, in_time, within},
    trace,
};

/// A projection in this process, with what its workers share.
pub(super) struct Running<P: Projection> {
    pub(super) store: EventStore<P::Log>,
    pub(super) projection: P,
    pub(super) settings: Settings,
    pub(super) applied: Arc<watch::Sender<Position>>,
    pub(super) replica: Arc<Replica>,
    pub(super) types: Arc<[String]>,
}

/// The pause before something is tried again: doubled each time, and short again after a time that went well.
pub(super) struct Backoff {
    pause: Duration,
    max: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);

    pub(super) fn new(max: Duration) -> Self {
        Self { pause: Self::FIRST, max }
    }

    /// `started`: since when it went well.
    pub(super) async fn pause(&mut self, started: Instant) {
        // What went well for longer than the longest pause is not the same trouble any more.
        if started.elapsed() > self.max {
            self.pause = Self::FIRST;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(self.max);
    }
}

/// From zero: what comes about with its first fault was never seen to grow.
pub(super) fn count_faults<P: Projection>(more: u64) {
    METRICS.projection_faults.add(more, &[KeyValue::new("projection", P::NAME)]);
}

pub(super) fn say<P: Projection>(error: &StoreError) {
    count_faults::<P>(1);
    if error.is_unavailable() {
        tracing::warn!(projection = P::NAME, error = error as &dyn std::error::Error, "waiting for the log");
    } else {
        tracing::error!(projection = P::NAME, error = error as &dyn std::error::Error, "the projection stands still");
    }
}

/// Works a build for as long as there is one of this name and of this version, whenever that is.
pub(super) async fn work<P: Projection>(running: &Running<P>, alive: &Alive, build: &'static str, shutdown: &CancellationToken) {
    let mut backoff = Backoff::new(running.settings.max_backoff);
    let mut worker = Worker {
        running,
        alive,
        leases: Leases { pool: running.store.pool(), name: P::NAME, build, version: P::VERSION, replica: running.replica.id },
        held: Held::default(),
        changed: Instant::now(),
        cut_into: None,
        caught_up: false,
        window: running.settings.batch.max(1),
        ahead: None,
    };
    loop {
        let started = Instant::now();
        match worker.work(shutdown).await {
            Ok(()) => break,
            Err(error) => say::<P>(&error),
        }
        worker.drop_all();
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = backoff.pause(started) => {}
        }
    }
    // Where the database is away, others take them over when this replica is no longer alive.
    let held = std::mem::take(&mut worker.held);
    if !held.positions.is_empty() {
        let _ = worker.leases.hand_back(&held).await;
    }
    running.replica.tell(build, &Held::default());
}

struct Worker<'a, P: Projection> {
    running: &'a Running<P>,
    alive: &'a Alive,
    leases: Leases<'a>,
    held: Held,
    /// When this worker last took, handed back or lost segments: what was seen before that is not how things stand.
    changed: Instant,
    /// Every segment is held, and comes to one position, to be cut anew into so many.
    cut_into: Option<i32>,
    /// Everything held had once come to the head.
    caught_up: bool,
    /// Positions that the next batch takes at the most.
    window: i64,
    /// The batch after the one that is being written.
    ahead: Option<Ahead<P>>,
}

struct Ahead<P: Projection> {
    from: Position,
    to: Position,
    reading: AbortOnDropHandle<Result<Vec<Recorded<P::Event>>, StoreError>>,
}

impl<P: Projection> Worker<'_, P> {
    async fn work(&mut self, shutdown: &CancellationToken) -> Result<(), StoreError> {
        let mut seen = self.running.replica.seen();
        seen.mark_changed();
        let mut heads = self.running.store.heads().subscribe();
        loop {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            let head = *heads.borrow_and_update();
            if seen.has_changed().unwrap_or(false) {
                let seen = seen.borrow_and_update().clone();
                self.arrange(&seen, head).await?;
            }
            if let Some(range) = self.next(head) {
                self.step(range, head).await?;
                if self.next(head).is_none() && !self.held.serving && !std::mem::replace(&mut self.caught_up, true) {
                    // To see at once whether it may go into service.
                    self.alive.look();
                }
                continue;
            }
            if let Some(segments) = self.cut_into.take() {
                self.cut(segments).await?;
                continue;
            }
            self.check(head).await?;
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = seen.changed() => match changed {
                    Ok(()) => seen.mark_changed(), // To be looked at above.
                    Err(_) => return Ok(()),
                },
                changed = heads.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    fn drop_all(&mut self) {
        self.held = Held::default();
        self.cut_into = None;
        self.ahead = None;
        self.changed();
    }

    fn changed(&mut self) {
        self.changed = Instant::now();
        self.caught_up = false;
        self.tell();
    }

    fn tell(&self) {
        self.running.replica.tell(self.leases.build, &self.held);
        if self.held.serving
            && let Some(lowest) = self.held.lowest()
        {
            self.running.applied.send_if_modified(|applied| std::mem::replace(applied, lowest) != lowest);
        }
    }

    /// Brings what is held into line with what was seen: takes this replica's share, hands back what is more.
    async fn arrange(&mut self, seen: &Seen, head: Position) -> Result<(), StoreError> {
        if seen.begun <= self.changed {
            return Ok(());
        }
        let Some(build) = seen.builds.get(self.leases.build).filter(|build| build.version == P::VERSION) else {
            // Retired, or made anew by another release.
            if !self.held.positions.is_empty() {
                let held = std::mem::take(&mut self.held);
                self.leases.hand_back(&held).await?;
                self.drop_all();
            }
            return Ok(());
        };
        self.adopt(build);
        self.measure(build, head);
        self.cut_into = None;
        if build.segments != build.wanted {
            // Brought into one hand first: whoever was at work on a segment, of whatever release, is fenced off.
            if build.before == 0 {
                if !self.held.all() {
                    let taken = self.leases.take_all(build.segments).await?;
                    tracing::info!(projection = P::NAME, build = self.leases.build, taken = taken.len(), "to be cut anew");
                    self.held.positions.extend(taken);
                    self.changed();
                }
                self.cut_into = self.held.all().then_some(build.wanted);
            }
            return Ok(());
        }
        if !build.wanted_by_some && build.before == 0 {
            // A replica of a release that is gone has asked for it last.
            self.want().await?;
        }
        let share = share(build.segments, build.others + 1, build.before);
        let mine = self.held.positions.len();
        if mine > share {
            let mut back = self.held.clone();
            let mut kept = 0;
            // The furthest stay: who takes what is behind catches up beside what is live.
            let mut order: Vec<_> = self.held.positions.iter().map(|(segment, at)| (Reverse(at.position), *segment)).collect();
            order.sort_unstable();
            for (_, segment) in order {
                if kept < share {
                    kept += 1;
                    back.positions.remove(&segment);
                } else {
                    self.held.positions.remove(&segment);
                }
            }
            self.ahead = None;
            self.leases.hand_back(&back).await?;
            self.changed();
        } else if mine < share && build.checkpoints.iter().any(|checkpoint| checkpoint.owner.is_none()) {
            let taken = self.leases.take(build.segments, share - mine).await?;
            if !taken.is_empty() {
                self.ahead = None;
                self.held.positions.extend(taken);
                self.changed();
            }
        }
        Ok(())
    }

    /// What the table says is this replica's: no more, and no less.
    fn adopt(&mut self, build: &Build) {
        let before = self.held.clone();
        if self.held.segments != build.segments {
            self.held.positions.clear();
        }
        self.held.segments = build.segments;
        self.held.serving = build.serving;
        for checkpoint in &build.checkpoints {
            if checkpoint.owner == Some(self.running.replica.id) {
                self.held.positions.entry(checkpoint.segment).or_insert_with(|| At::stored(checkpoint.position));
            } else {
                self.held.positions.remove(&checkpoint.segment);
            }
        }
        if self.held != before {
            self.ahead = None;
            self.tell();
        }
    }

    /// Asks for this release's number of segments.
    async fn want(&self) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE projection SET segments = $3 WHERE name = $1 AND build = $2 AND version = $4",
            P::NAME,
            self.leases.build,
            P::SEGMENTS,
            P::VERSION
        )
        .execute(self.leases.pool)
        .await?;
        Ok(())
    }

    /// Cuts the build anew where all of it stands at one position.
    async fn cut(&mut self, segments: i32) -> Result<(), StoreError> {
        let Some(at) = self.held.lowest() else { return Ok(()) };
        if self.leases.cut(&self.held, at, segments).await? {
            tracing::info!(projection = P::NAME, build = self.leases.build, position = %at, segments, "cut anew");
            self.held.segments = segments;
            self.held.positions = (0..segments).map(|segment| (segment, At::stored(at))).collect();
            self.ahead = None;
            self.changed();
        } else {
            self.drop_all();
        }
        self.alive.look();
        Ok(())
    }

    /// The log is never behind what was applied of it, unless it was restored.
    async fn check(&self, head: Position) -> Result<(), StoreError> {
        if let Some(highest) = self.held.highest()
            && highest > head
            && highest > self.running.store.head().await?
        {
            return Err(StoreError::Reset(format!(
                "{} has applied it up to {highest}, and it ends before that; restore both, or make the projection anew",
                P::NAME
            )));
        }
        Ok(())
    }

    fn measure(&self, build: &Build, head: Position) {
        let of = [KeyValue::new("projection", P::NAME), KeyValue::new("build", self.leases.build)];
        METRICS.projection_segments.record(u64::try_from(self.held.positions.len()).unwrap_or_default(), &of);
        let Some(lowest) = self.held.lowest() else { return };
        METRICS.projection_position.record(lowest.0, &of);
        METRICS.projection_lag.record((head.0 - lowest.0).max(0), &of);
        let mine = build.checkpoints.iter().filter(|checkpoint| self.held.positions.contains_key(&checkpoint.segment));
        let lag = mine.map(|checkpoint| checkpoint.lag).max().unwrap_or_default();
        METRICS.projection_lag_seconds.record(lag.as_secs_f64(), &of);
    }

    /// The next positions to apply: those after the segments that are furthest behind, up to where the next ones stand. So those join them
    /// there, and each position of the log is read once.
    fn next(&self, head: Position) -> Option<RangeInclusive<Position>> {
        let from = self.held.lowest()?;
        let end = if self.cut_into.is_some() { self.held.highest()? } else { head };
        let joined = self.held.positions.values().map(|at| at.position).filter(|position| *position > from).min().unwrap_or(end);
        let to = Position((from.0 + self.window).min(joined.0).min(end.0));
        (to > from).then_some(from..=to)
    }

    /// Applies what is between two positions to the segments that stand at the first of them.
    async fn step(&mut self, range: RangeInclusive<Position>, head: Position) -> Result<(), StoreError> {
        let (from, mut to) = range.into_inner();
        let active: Vec<i32> = self.held.positions.iter().filter(|(_, at)| at.position == from).map(|(segment, _)| *segment).collect();
        let mut batch = match self.ahead.take() {
            Some(ahead) if ahead.from == from && ahead.to <= to => {
                to = ahead.to;
                ahead.reading.await.unwrap_or(Err(StoreError::Closed))?
            }
            _ => read::<P>(&self.running.store, &self.running.types, from, to).await?,
        };
        // Where there is a whole batch more, it is read while this one is written. Where there is less it grows in that time.
        let after = Position(to.0 + self.window);
        if after <= head && active.len() == self.held.positions.len() && self.cut_into.is_none() {
            let (store, types) = (self.running.store.clone(), self.running.types.clone());
            let reading = tokio::spawn(async move { read::<P>(&store, &types, to, after).await });
            self.ahead = Some(Ahead { from: to, to: after, reading: AbortOnDropHandle::new(reading) });
        }
        // What is none of this projection's moves no checkpoint: the heartbeat writes that down. What is another segment's does, for who
        // waits for all segments would wait for the heartbeat.
        let written = !batch.is_empty();
        if written {
            let segments = self.held.segments;
            if active.len() != usize::try_from(segments).unwrap_or_default() {
                batch.retain(|event| P::key(event).is_none_or(|key| active.contains(&segment_of(key, segments))));
            }
            match self.apply(&batch, &active, from, to).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!(projection = P::NAME, build = self.leases.build, "segments are another's now");
                    self.drop_all();
                    self.alive.look();
                    return Ok(());
                }
                Err(error) if to.0 - from.0 > 1 && (took_too_long(&error) || !error.is_unavailable()) => {
                    self.ahead = None;
                    // Down to the event that cannot be applied, so that the error names it; or to what there is time for.
                    self.window = (to.0 - from.0) / if took_too_long(&error) { 2 } else { 10 };
                    self.window = self.window.max(1);
                    tracing::warn!(projection = P::NAME, after = %from, error = &error as &dyn std::error::Error, "a batch could not be applied: trying smaller ones");
                    return Ok(());
                }
                Err(error) => {
                    if !error.is_unavailable() {
                        tracing::error!(projection = P::NAME, position = %to, "the event cannot be applied");
                    }
                    return Err(error);
                }
            }
        }
        for at in self.held.positions.values_mut().filter(|at| at.position == from) {
            at.position = to;
            if written {
                at.stored = to;
            }
        }
        if self.window < self.running.settings.batch {
            self.window = (self.window * 2).min(self.running.settings.batch);
        }
        self.tell();
        Ok(())
    }

    /// Applies a batch and moves the checkpoints, both or neither. `false`: a segment is another's now.
    async fn apply(&self, batch: &[Recorded<P::Event>], active: &[i32], from: Position, to: Position) -> Result<bool, StoreError> {
        if batch.is_empty() {
            return in_time(async {
                let mut connection = Lent::from(self.leases.pool).await?;
                let moved = self.leases.advance(&mut connection, &self.held, active, from, to).await?;
                connection.done();
                Ok(moved)
            })
            .await;
        }
        let span = tracing::info_span!("project", otel.name = format!("project {}", P::NAME), events = batch.len(), position = %to);
        trace::follow(&span, batch.iter().map(|event| event.metadata.traceparent.as_deref()));
        let applying = within(BATCH_TIMEOUT, async {
            let mut lent = Lent::from(self.leases.pool).await?;
            let mut transaction = lent.begin().await?;
            // First, for it is also the fence: who lost a segment waits for nobody and writes nothing.
            let moved = self.leases.advance(&mut transaction, &self.held, active, from, to).await?;
            if moved {
                let connection: &mut PgConnection = &mut transaction;
                self.running.projection.apply(connection, batch).await?;
                transaction.commit().await?;
            } else {
                transaction.rollback().await?;
            }
            lent.done();
            Ok(moved)
        });
        if applying.instrument(span).await? {
            let of = [KeyValue::new("projection", P::NAME), KeyValue::new("build", self.leases.build)];
            METRICS.projection_events.add(batch.len() as u64, &of);
            METRICS.projection_batch.record(batch.len() as u64, &of);
            return Ok(true);
        }
        Ok(false)
    }
}

/// How long a batch may take to be read or written. Longer than the role's transaction_timeout, which says why it ends.
const BATCH_TIMEOUT: Duration = Duration::from_secs(40);

/// Whether the database gave up on a transaction or statement because it took too long: a smaller batch may not.
fn took_too_long(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("25P04" | "57014")))
}

async fn read<P: Projection>(
    store: &EventStore<P::Log>,
    types: &[String],
    after: Position,
    to: Position,
) -> Result<Vec<Recorded<P::Event>>, StoreError> {
    let rows = within(BATCH_TIMEOUT, async {
        let mut connection = store.lend().await?;
        let rows = sqlx::query!(
            r#"SELECT event_id, payload, inserted_at, metadata AS "metadata: sqlx::types::Json<Metadata>" FROM event
           WHERE event_id > $1 AND event_id <= $2 AND event_type = ANY ($3) ORDER BY event_id"#,
            after.0,
            to.0,
            types
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        Ok(rows)
    })
    .await?;
    let mut batch = Vec::with_capacity(rows.len());
    for row in rows {
        let event: P::Log = decode(row.event_id, &row.payload)?;
        if let Ok(event) = event.try_into() {
            batch.push(Recorded { position: Position(row.event_id), event, metadata: row.metadata.0, recorded_at: row.inserted_at });
        }
    }
    Ok(batch)
}
