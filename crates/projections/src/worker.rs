//! Working a build of a projection: whichever of its segments this replica holds, a batch at a time.

use std::{cmp::Reverse, collections::BTreeMap, ops::RangeInclusive, time::Duration};

use event_store::{
    Position, StoreError,
    connection::{PooledConnection, with_timeout, with_timeout_of},
    trace,
};
use opentelemetry::KeyValue;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

use crate::{
    backoff::Backoff,
    batch::{self, Batch, Sorted, took_too_long},
    courtesy::Courtesy,
    lease::{At, Held, Leases},
    metrics::METRICS,
    parking::{self, Parking},
    projection::Projection,
    replica::{Alive, Build, Seen},
    running::{Running, say},
    segment::share,
    settings::{BATCH_TIMEOUT, LOCKED},
};

/// Works a build for as long as there is one of this name and of this version, whenever that is.
pub(crate) async fn work<P: Projection>(running: &Running<P>, alive: &Alive, build: &'static str, shutdown: &CancellationToken) {
    let mut backoff = Backoff::new(running.settings.max_backoff);
    let mut worker = Worker {
        running,
        alive,
        leases: Leases { pool: running.store.pool(), name: P::NAME, build, version: P::VERSION, replica: running.replica.id },
        held: Held::default(),
        changed: Instant::now(),
        cut_into: None,
        caught_up: false,
        limit: None,
        window: running.settings.batch,
        courtesy: Courtesy::new(running.settings.batch),
        ahead: None,
        stopped: BTreeMap::new(),
        retry_asked: false,
        written: false,
        look_at: None,
    };
    loop {
        let started = Instant::now();
        match worker.work(shutdown).await {
            Ok(()) => break,
            Err(error) => say::<P>(&error),
        }
        if std::mem::take(&mut worker.written) {
            backoff.went_well();
        }
        worker.drop_all();
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = backoff.pause(started) => {}
        }
        // What it holds it knows by a heartbeat from after that.
        alive.look();
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
    /// Up to where it may be worked at this moment, where not up to the head.
    limit: Option<Position>,
    /// Positions that the next batch takes at the most.
    window: i64,
    courtesy: Courtesy,
    /// The batch after the one that is being written.
    ahead: Option<Ahead<P>>,
    /// Segments that stand before an event which cannot be applied, and for which no key can be parked.
    stopped: BTreeMap<i32, Stopped>,
    /// An operator has asked for parked keys to be tried again.
    retry_asked: bool,
    /// Something was written since it last went wrong.
    written: bool,
    /// When it is looked again how everything stands, where that is before the next heartbeat.
    look_at: Option<Instant>,
}

struct Ahead<P: Projection> {
    from: Position,
    to: Position,
    reading: AbortOnDropHandle<Result<Batch<P::Event>, StoreError>>,
}

/// When a segment that stands is tried again, and the pause after that.
struct Stopped {
    until: Instant,
    pause: Duration,
}

/// What applying a batch came to.
enum Applied {
    /// It is applied, and the checkpoints are moved.
    Whole,
    /// A segment is another's now; nothing is written.
    Lost,
    /// There is an event that cannot be read after this position, and before it something to apply; nothing is written.
    UpTo(Position),
    /// The events, or the projection on them, are at fault; nothing is written.
    Refused(StoreError),
}

impl<P: Projection> Worker<'_, P> {
    async fn work(&mut self, shutdown: &CancellationToken) -> Result<(), StoreError> {
        let mut seen = self.running.replica.seen();
        seen.mark_changed();
        let mut heads = self.running.store.head_watcher().subscribe();
        loop {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            let head = *heads.borrow_and_update();
            if seen.has_changed().unwrap_or(false) {
                let seen = seen.borrow_and_update().clone();
                self.arrange(&seen, head).await?;
            }
            // What is paused, or held still to be compared, writes nothing.
            if self.limit.is_none() && std::mem::take(&mut self.retry_asked) {
                if !self.parking().retry_parked().await? {
                    self.lost();
                }
            }
            if let Some(range) = self.next(head) {
                self.step(range, head).await?;
                if self.next(head).is_none() && !self.held.serving && !std::mem::replace(&mut self.caught_up, true) {
                    // To see at once whether it may go into service.
                    self.alive.look();
                }
                continue;
            }
            // Not while one of them stands.
            if self.held.lowest() == self.held.highest()
                && let Some(segments) = self.cut_into.take()
            {
                self.cut(segments).await?;
                continue;
            }
            self.check(head).await?;
            let again = self.stopped.values().map(|stopped| stopped.until).chain(self.look_at).min();
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = seen.changed() => match changed {
                    Ok(()) => seen.mark_changed(), // To be looked at above.
                    Err(_) => return Ok(()),
                },
                changed = heads.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    if self.look_at.take_if(|at| *at <= Instant::now()).is_some() {
                        self.alive.look();
                    }
                }
            }
        }
    }

    fn parking(&self) -> Parking<'_, P> {
        Parking { running: self.running, leases: self.leases, held: &self.held }
    }

    fn drop_all(&mut self) {
        self.held = Held::default();
        self.cut_into = None;
        self.ahead = None;
        self.changed();
    }

    /// Another has one of the segments: how they stand is seen anew.
    fn lost(&mut self) {
        tracing::info!(projection = P::NAME, build = self.leases.build, "segments are another's now");
        self.drop_all();
        self.alive.look();
    }

    fn changed(&mut self) {
        self.changed = Instant::now();
        self.caught_up = false;
        let held = &self.held;
        self.stopped.retain(|segment, _| held.positions.contains_key(segment));
        self.tell();
    }

    fn tell(&self) {
        self.running.replica.tell(self.leases.build, &self.held);
    }

    /// Brings what is held into line with what was seen: takes this replica's share, hands back what is more.
    async fn arrange(&mut self, seen: &Seen, head: Position) -> Result<(), StoreError> {
        if seen.begun <= self.changed {
            return Ok(());
        }
        let Some(build) = seen.builds.get(self.leases.build).filter(|build| build.version == P::VERSION) else {
            // Retired, or made anew by another release.
            let of = [KeyValue::new("projection", P::NAME), KeyValue::new("build", self.leases.build)];
            METRICS.projection_parked.record(0, &of);
            METRICS.projection_stopped.record(0, &of);
            Self::measure_none(&of);
            if !self.held.positions.is_empty() {
                let held = std::mem::take(&mut self.held);
                self.leases.hand_back(&held).await?;
                self.drop_all();
            }
            return Ok(());
        };
        self.adopt(build);
        self.measure(build, head);
        self.limit = build.limit();
        self.retry_asked = build.retry_asked;
        self.cut_into = None;
        // Where one stands it cannot come to where the others are, and these would wait for it.
        if build.segments != build.wanted && self.limit.is_none() && !build.checkpoints.iter().any(|checkpoint| checkpoint.stopped) {
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
            let free = build.checkpoints.iter().filter(|checkpoint| checkpoint.owner.is_none()).count();
            let taken = self.leases.take(build.segments, share - mine).await?;
            self.look_at = (taken.len() < free.min(share - mine)).then(|| Instant::now() + LOCKED);
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
            let held = &self.held;
            self.stopped.retain(|segment, _| held.positions.contains_key(segment));
            self.tell();
        }
    }

    /// Asks for this release's number of segments.
    async fn want(&self) -> Result<(), StoreError> {
        with_timeout(async {
            let mut connection = PooledConnection::from(self.leases.pool).await?;
            sqlx::query!(
                "UPDATE projection SET segments = $3 WHERE name = $1 AND build = $2 AND version = $4",
                P::NAME,
                self.leases.build,
                P::SEGMENTS,
                P::VERSION
            )
            .execute(&mut *connection)
            .await?;
            connection.done();
            Ok(())
        })
        .await
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
        METRICS.projection_stopped.record(u64::try_from(self.stopped.len()).unwrap_or_default(), &of);
        METRICS.projection_parked.record(u64::try_from(build.parked).unwrap_or_default(), &of);
        let Some(lowest) = self.held.lowest() else { return Self::measure_none(&of) };
        METRICS.projection_position.record(lowest.0, &of);
        METRICS.projection_lag.record((head.0 - lowest.0).max(0), &of);
        let mine = build.checkpoints.iter().filter(|checkpoint| self.held.positions.contains_key(&checkpoint.segment));
        let lag = mine.map(|checkpoint| checkpoint.lag).max().unwrap_or_default();
        METRICS.projection_lag_seconds.record(lag.as_secs_f64(), &of);
    }

    /// Of a build of which nothing is held here: what was measured when there was is not so any more.
    fn measure_none(of: &[KeyValue]) {
        METRICS.projection_segments.record(0, of);
        METRICS.projection_lag.record(0, of);
        METRICS.projection_lag_seconds.record(0.0, of);
    }

    /// Where the segments stand that go on: all but those that stand before an event, until they are to be tried again.
    fn going(&self) -> impl Iterator<Item = (i32, Position)> {
        let now = Instant::now();
        let goes = move |segment: &i32| self.stopped.get(segment).is_none_or(|stopped| stopped.until <= now);
        self.held.positions.iter().filter(move |(segment, _)| goes(segment)).map(|(segment, at)| (*segment, at.position))
    }

    /// The next positions to apply: those after the segments that are furthest behind, up to where the next ones stand. So those join them
    /// there, and each position of the log is read once.
    fn next(&self, head: Position) -> Option<RangeInclusive<Position>> {
        let (_, from) = self.going().min_by_key(|(_, position)| *position)?;
        let end = if self.cut_into.is_some() { self.held.highest()? } else { self.limit.map_or(head, |limit| limit.min(head)) };
        let joined = self.going().map(|(_, position)| position).filter(|position| *position > from).min().unwrap_or(end);
        // What stands is tried with the event before which it does.
        let stands = self.going().any(|(segment, position)| position == from && self.stopped.contains_key(&segment));
        let window = match &self.ahead {
            _ if stands => 1,
            // It is read already.
            Some(ahead) if ahead.from == from => ahead.to.0 - from.0,
            _ => self.window_at(from, head),
        };
        let to = Position((from.0 + window).min(joined.0).min(end.0));
        (to > from).then_some(from..=to)
    }

    /// Somebody appends, this build is further behind than a batch, and nobody waits for it to come to a position.
    fn gives_way(&self, from: Position, head: Position) -> bool {
        let is_waited_for = self.limit.is_some() || self.cut_into.is_some();
        !is_waited_for && from.0 + self.running.settings.batch < head.0 && self.running.store.head_watcher().grows()
    }

    /// What a batch after this position takes at the most.
    fn window_at(&self, from: Position, head: Position) -> i64 {
        let takes = if self.gives_way(from, head) { self.courtesy.takes() } else { None };
        takes.map_or(self.window, |little| self.window.min(little))
    }

    /// Applies what is between two positions to the segments that stand at the first of them.
    async fn step(&mut self, range: RangeInclusive<Position>, head: Position) -> Result<(), StoreError> {
        let begun = Instant::now();
        let (from, to) = range.into_inner();
        self.courtesy.look(head);
        let active: Vec<i32> = self.going().filter(|(_, position)| *position == from).map(|(segment, _)| segment).collect();
        let mut batch = match self.ahead.take() {
            Some(ahead) if ahead.from == from && ahead.to == to => ahead.reading.await.unwrap_or(Err(StoreError::Closed))?,
            _ => batch::read::<P>(&self.running.store, &self.running.types, from, to).await?,
        };
        self.courtesy.wrote(!batch.is_empty());
        // Where there is as much again, it is read while this one is written. Where there is less it grows in that time.
        let after = Position(to.0 + self.window_at(to, head));
        if after <= head && active.len() == self.held.positions.len() && self.cut_into.is_none() {
            let (store, types) = (self.running.store.clone(), self.running.types.clone());
            let reading = tokio::spawn(async move { batch::read::<P>(&store, &types, to, after).await });
            self.ahead = Some(Ahead { from: to, to: after, reading: AbortOnDropHandle::new(reading) });
        }
        // What is none of this projection's moves no checkpoint: the heartbeat writes that down. What is another segment's does, for who
        // waits for all segments would wait for the heartbeat.
        let written = !batch.is_empty();
        let mut turn = None;
        let mut rest = Duration::ZERO;
        if written {
            batch.keep::<P>(&active, self.held.segments);
            let alone = to.0 - from.0 == 1;
            let gives_way = self.gives_way(to, head);
            turn = if gives_way { self.running.replicas.turn_to_catch_up().await } else { None };
            let writing = Instant::now();
            match self.apply(&mut batch, &active, from, to).await {
                Ok(Applied::Whole) if gives_way => rest = self.courtesy.rest(to.0 - from.0, writing.elapsed()),
                Ok(Applied::Whole) => {
                    self.courtesy.owes_nothing();
                    if to >= head {
                        rest = self.courtesy.gathers();
                    }
                }
                Ok(Applied::Lost) => {
                    self.lost();
                    return Ok(());
                }
                Ok(Applied::UpTo(position)) => {
                    self.ahead = None;
                    self.window = position.0 - from.0;
                    return Ok(());
                }
                Ok(Applied::Refused(error)) | Err(error) if !alone && took_too_long(&error) => {
                    self.narrow((to.0 - from.0) / 2, from, &error);
                    return Ok(());
                }
                // Down to the event that cannot be applied.
                Ok(Applied::Refused(error)) if !alone && !error.is_unavailable() => {
                    self.narrow((to.0 - from.0) / 10, from, &error);
                    return Ok(());
                }
                Ok(Applied::Refused(error)) if !error.is_unavailable() => {
                    self.ahead = None;
                    drop(turn);
                    return self.cannot_apply(&batch, &active, from, to, error).await;
                }
                Ok(Applied::Refused(error)) | Err(error) => return Err(error),
            }
        }
        // A size that was not tried is not known to be one that goes.
        if to.0 - from.0 >= self.window {
            self.window = (self.window * 2).min(self.running.settings.batch);
        }
        self.reached(&active, to, written);
        if written {
            // Within its turn: who works while another rests leaves nothing to the commands.
            sleep(rest).await;
            drop(turn);
            self.running.settings.slow_down(batch.events.len(), begun).await;
        }
        Ok(())
    }

    fn narrow(&mut self, window: i64, from: Position, error: &StoreError) {
        self.ahead = None;
        self.window = window.max(1);
        tracing::warn!(projection = P::NAME, after = %from, error = error as &dyn std::error::Error, "a batch could not be applied: trying smaller ones");
    }

    /// Segments have come to a position, and it is written down or nothing was to be.
    fn reached(&mut self, segments: &[i32], to: Position, written: bool) {
        self.written |= written;
        for segment in segments {
            self.stopped.remove(segment);
            if let Some(at) = self.held.positions.get_mut(segment) {
                at.position = to;
                if written {
                    at.stored = to;
                }
            }
        }
        self.tell();
        if written && self.held.serving {
            self.running.applied.send_replace(to);
        }
    }

    /// An event fails alone. It parks its key, and the rest goes on; where it has none, or is not what is at fault, the segments that it
    /// fails in stand before it, and the others go on.
    async fn cannot_apply(
        &mut self,
        batch: &Batch<P::Event>,
        active: &[i32],
        from: Position,
        to: Position,
        error: StoreError,
    ) -> Result<(), StoreError> {
        let mut error = Some(error);
        if let (Some(key), Some(poison)) = (batch.key::<P>(), error.as_ref().filter(|error| batch::is_poison(error))) {
            match self.parking().park(key, poison, active, from, to).await? {
                parking::Parked::Whole => {
                    METRICS.projection_faults.add(1, &[KeyValue::new("projection", P::NAME)]);
                    self.reached(active, to, true);
                    return Ok(());
                }
                parking::Parked::Lost => {
                    self.lost();
                    return Ok(());
                }
                parking::Parked::TooMany => {}
            }
        }
        for segment in active {
            let error = match error.take() {
                // It was tried with this one alone.
                Some(error) if active.len() == 1 => error,
                _ => {
                    let mut batch = batch.clone();
                    batch.keep::<P>(&[*segment], self.held.segments);
                    match self.apply(&mut batch, &[*segment], from, to).await? {
                        Applied::Whole => {
                            self.reached(&[*segment], to, true);
                            continue;
                        }
                        Applied::Refused(error) if !error.is_unavailable() => error,
                        Applied::Refused(error) => return Err(error),
                        Applied::Lost | Applied::UpTo(_) => {
                            self.lost();
                            return Ok(());
                        }
                    }
                }
            };
            match self.leases.stop(&self.held, *segment, to, &batch::words(&error)).await? {
                None => {
                    self.lost();
                    return Ok(());
                }
                Some(true) => {
                    let mut nothing = Batch::default();
                    if !matches!(self.apply(&mut nothing, &[*segment], from, to).await?, Applied::Whole) {
                        self.lost();
                        return Ok(());
                    }
                    tracing::warn!(projection = P::NAME, build = self.leases.build, segment, position = %to, "skipped, as an operator decided");
                    self.reached(&[*segment], to, true);
                }
                Some(false) => {
                    METRICS.projection_faults.add(1, &[KeyValue::new("projection", P::NAME)]);
                    tracing::error!(
                        projection = P::NAME,
                        build = self.leases.build,
                        segment,
                        position = %to,
                        error = &error as &dyn std::error::Error,
                        "the event cannot be applied: the segment stands before it, and tries again"
                    );
                    let max = self.running.settings.max_backoff;
                    let pause = self.stopped.get(segment).map_or(Backoff::FIRST, |stopped| stopped.pause);
                    self.stopped.insert(*segment, Stopped { until: Instant::now() + pause, pause: (pause * 2).min(max) });
                }
            }
        }
        Ok(())
    }

    /// Applies a batch and moves the checkpoints, both or neither. What is a parked key's queues.
    async fn apply(&self, batch: &mut Batch<P::Event>, active: &[i32], from: Position, to: Position) -> Result<Applied, StoreError> {
        if batch.is_empty() {
            return with_timeout(async {
                let mut connection = PooledConnection::from(self.leases.pool).await?;
                let advanced = self.leases.advance(&mut connection, &self.held, active, from, to).await?;
                connection.done();
                Ok(if advanced.moved { Applied::Whole } else { Applied::Lost })
            })
            .await;
        }
        let span = tracing::info_span!("project", otel.name = format!("project {}", P::NAME), events = batch.events.len(), position = %to);
        trace::follow(&span, batch.events.iter().map(|event| event.metadata.traceparent.as_deref()));
        let applying = with_timeout_of(BATCH_TIMEOUT, async {
            let mut lent = PooledConnection::from(self.leases.pool).await?;
            let mut transaction = lent.begin().await?;
            // First, for it is also the fence: who lost a segment waits for nobody and writes nothing.
            let advanced = self.leases.advance(&mut transaction, &self.held, active, from, to).await?;
            let mut applied = if advanced.moved { Applied::Whole } else { Applied::Lost };
            if advanced.moved {
                match batch.sort::<P>(&advanced.parked, active, self.held.segments) {
                    Sorted::Queue(queue) => self.leases.queue(&mut transaction, &queue).await?,
                    Sorted::Unreadable(_, error) if to.0 - from.0 == 1 => applied = Applied::Refused(error),
                    // What comes before it first; else it alone.
                    Sorted::Unreadable(position, _) => applied = Applied::UpTo(Position((position.0 - 1).max(from.0 + 1))),
                }
            }
            if matches!(applied, Applied::Whole) && !batch.events.is_empty() {
                let connection: &mut PgConnection = &mut transaction;
                if let Err(error) = self.running.projection.apply(connection, &batch.events).await {
                    applied = Applied::Refused(error.into());
                }
            }
            match applied {
                // A constraint may be checked as late as here.
                Applied::Whole => {
                    if let Err(error) = transaction.commit().await {
                        return Ok(Applied::Refused(error.into()));
                    }
                }
                // The connection is of no use any more, and its error says why.
                Applied::Refused(error) if error.is_unavailable() => return Ok(Applied::Refused(error)),
                _ => transaction.rollback().await?,
            }
            lent.done();
            Ok(applied)
        });
        let applied = applying.instrument(span).await?;
        if matches!(applied, Applied::Whole) {
            self.running.count(self.leases.build, batch.events.len());
        }
        Ok(applied)
    }
}
