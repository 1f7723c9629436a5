//! Applies a build of a projection: reads the log once, and writes a batch for all owned segments that are at one position.

use std::{cmp::Reverse, collections::BTreeMap, ops::RangeInclusive, time::Duration};

use event_store::{
    Backoff, Position, StoreError,
    connection::{PooledConnection, with_timeout, with_timeout_of},
    trace,
};
use opentelemetry::KeyValue;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

use crate::{
    batch::{self, Batch, Sorted, took_too_long},
    lease::{Leases, OwnedSegments, SegmentPosition, not_current},
    metrics::METRICS,
    parking::{self, Parking},
    projection::{Kind, Projection},
    replica::{Build, ClusterView, HeartbeatGuard},
    running::{Running, report},
    segment::share,
    settings::{BATCH_TIMEOUT, LOCKED},
};

/// The most positions of a batch beside commands: a large transaction would slow them.
const BESIDE_COMMANDS: i64 = 500;
/// Beside commands, a batch with this many events is followed by a sleep as long as its write took.
const MANY: usize = 16;
/// The shortest time between two batches that reach the head. Events that are appended meanwhile share the next batch, because a batch costs
/// more per transaction than per event.
const PACE: Duration = Duration::from_millis(20);
/// The same if somebody would feel the pause: a query that waits for the projection, or the first to-do of an automation. Announcements of the
/// head come no faster, but a process also learns of it from its own reads.
const PROMPT: Duration = Duration::from_millis(5);
/// The longest such sleep.
const LONGEST_SLEEP: Duration = Duration::from_millis(200);

/// Works a build whenever one of this version exists, until shutdown.
pub(crate) async fn work<P: Projection>(
    running: &Running<P>,
    heartbeat: &HeartbeatGuard,
    build: &'static str,
    shutdown: &CancellationToken,
) {
    let mut backoff = running.settings.backoff();
    let mut worker = Worker {
        running,
        heartbeat,
        leases: Leases { pool: running.store.pool(), name: P::NAME, build, version: P::VERSION, replica: running.replica.id },
        owned: OwnedSegments::default(),
        changed: Instant::now(),
        rebalanced: false,
        caught_up: false,
        limit: None,
        ahead_of_log: false,
        window: running.settings.batch,
        last: (Position::START, Position::START),
        gains: true,
        ahead: None,
        blocked: BTreeMap::new(),
        retry_asked: false,
        written: false,
        stepped: Instant::now(),
        had_events: false,
        poll_at: None,
    };
    loop {
        let started = Instant::now();
        match worker.work(shutdown).await {
            Ok(()) => break,
            Err(error) => {
                report::<P>(&error);
                running.health().failed(build, batch::describe(&error));
            }
        }
        // After progress, or a long time without errors, the next error is a new one.
        if std::mem::take(&mut worker.written) || started.elapsed() > running.settings.max_backoff {
            backoff.reset();
        }
        worker.forget_segments();
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = backoff.wait() => {}
        }
        // A heartbeat after the error says which segments this replica still owns.
        heartbeat.request();
    }
    running.health().worked(build);
    // If the database is away, the segments are free when this replica stops being alive.
    let owned = std::mem::take(&mut worker.owned);
    if !owned.positions.is_empty() {
        let _ = worker.leases.release(&owned).await;
    }
    running.replica.publish(build, &OwnedSegments::default());
}

struct Worker<'a, P: Projection> {
    running: &'a Running<P>,
    heartbeat: &'a HeartbeatGuard,
    leases: Leases<'a>,
    owned: OwnedSegments,
    /// When the owned segments last changed. An older view of the cluster is out of date.
    changed: Instant,
    /// Whether a view since then was followed, and nothing is left to acquire.
    rebalanced: bool,
    /// Whether everything owned has once reached the head.
    caught_up: bool,
    /// The position that this build may not pass now, if any.
    limit: Option<Position>,
    /// Whether this build is ahead of the log.
    ahead_of_log: bool,
    /// The most positions of the next batch.
    window: i64,
    /// The start of the last batch and the head at that time, and whether this build gains on the log.
    last: (Position, Position),
    gains: bool,
    /// The next batch, read while the current one is written.
    ahead: Option<Ahead<P>>,
    /// Segments that are blocked before an event.
    blocked: BTreeMap<i32, Blocked>,
    /// Whether an operator asked to retry parked keys.
    retry_asked: bool,
    /// Whether something was written since the last error.
    written: bool,
    /// When the last batch began, and whether it had events.
    stepped: Instant,
    had_events: bool,
    /// When to request a heartbeat before the next regular one.
    poll_at: Option<Instant>,
}

struct Ahead<P: Projection> {
    from: Position,
    to: Position,
    reading: AbortOnDropHandle<Result<Batch<P::Event>, StoreError>>,
}

/// When a blocked segment retries its event.
struct Blocked {
    until: Instant,
    backoff: Backoff,
}

/// The outcome of applying a batch.
enum Applied {
    /// Committed, and the checkpoints are moved.
    Whole,
    /// Nothing is written: another replica owns a segment.
    Lost,
    /// Nothing is written: an event after this position cannot be decoded, and those up to it come first.
    UpTo(Position),
    /// Nothing is written: the projection failed, or the server is another one.
    Failed(StoreError),
}

impl<P: Projection> Worker<'_, P> {
    async fn work(&mut self, shutdown: &CancellationToken) -> Result<(), StoreError> {
        let mut view = self.running.replica.view();
        view.mark_changed();
        let mut heads = self.running.store.head_watcher().subscribe();
        loop {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            let head = *heads.borrow_and_update();
            if view.has_changed().unwrap_or(false) {
                let view = view.borrow_and_update().clone();
                self.rebalance(&view, head).await?;
            }
            // A paused or held build writes nothing.
            if self.limit.is_none() && std::mem::take(&mut self.retry_asked) && !self.parking().retry_parked().await? {
                self.lost_ownership();
            }
            if let Some(range) = self.next(head) {
                // Events that are appended until then share a batch.
                if *range.end() == head && !self.is_due().await {
                    continue;
                }
                self.stepped = Instant::now();
                self.step(range, head).await?;
                if self.next(head).is_none() && !self.owned.serving && !std::mem::replace(&mut self.caught_up, true) {
                    // The build may be ready to serve.
                    self.heartbeat.request();
                }
                continue;
            }
            if self.rebalanced {
                self.running.health().worked(self.leases.build);
            }
            let again = self.blocked.values().map(|blocked| blocked.until).chain(self.poll_at).min();
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = view.changed() => match changed {
                    Ok(()) => view.mark_changed(), // Handled at the top of the loop.
                    Err(_) => return Ok(()),
                },
                changed = heads.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    if self.poll_at.take_if(|at| *at <= Instant::now()).is_some() {
                        self.heartbeat.request();
                    }
                }
            }
        }
    }

    /// Returns whether the next batch that reaches the head may begin. If not, waits until it may, or until a query waits for it.
    async fn is_due(&self) -> bool {
        let (waiting, is_waited_for) = self.running.replica.waiting();
        let is_prompt = is_waited_for || (P::KIND == Kind::Automation && !self.had_events);
        let due = self.stepped + if is_prompt { PROMPT } else { PACE };
        if due <= Instant::now() {
            return true;
        }
        tokio::select! {
            () = sleep_until(due) => {}
            () = waiting, if !is_prompt => {}
        }
        false
    }

    fn parking(&self) -> Parking<'_, P> {
        Parking { running: self.running, leases: self.leases, owned: &self.owned }
    }

    fn forget_segments(&mut self) {
        self.owned = OwnedSegments::default();
        self.ahead = None;
        self.owned_changed();
    }

    /// Forgets all segments, because another replica owns one of them. The next heartbeat says which are left.
    fn lost_ownership(&mut self) {
        tracing::info!(projection = P::NAME, build = self.leases.build, "lost segment ownership");
        self.forget_segments();
        self.heartbeat.request();
    }

    fn owned_changed(&mut self) {
        self.changed = Instant::now();
        self.rebalanced = false;
        self.caught_up = false;
        let owned = &self.owned;
        self.blocked.retain(|segment, _| owned.positions.contains_key(segment));
        self.publish();
    }

    fn publish(&self) {
        self.running.replica.publish(self.leases.build, &self.owned);
    }

    /// Acquires this replica's share of the segments, or releases what exceeds it.
    async fn rebalance(&mut self, view: &ClusterView, head: Position) -> Result<(), StoreError> {
        if view.begun <= self.changed {
            return Ok(());
        }
        if self.owned.log != view.log {
            // Another server, or a restored log: nothing that was read before holds.
            self.forget_segments();
            self.owned.log = view.log.clone();
            // This view is newer than that.
            self.changed = view.begun;
        }
        self.rebalanced = true;
        let Some(build) = view.builds.get(self.leases.build).filter(|build| build.version == P::VERSION) else {
            // The build is retired, or another release rebuilds it.
            let labels = self.labels();
            METRICS.projection_parked.record(0, &labels);
            METRICS.projection_blocked.record(0, &labels);
            Self::measure_none(&labels);
            if !self.owned.positions.is_empty() {
                let owned = std::mem::take(&mut self.owned);
                self.leases.release(&owned).await?;
                self.forget_segments();
            }
            return Ok(());
        };
        self.check_ahead(build);
        self.adopt(build);
        self.measure(build, head);
        self.limit = build.limit();
        self.retry_asked = build.retry_asked;
        let share = share(build.others + 1, build.before);
        let mine = self.owned.positions.len();
        if mine > share {
            let mut excess = self.owned.clone();
            // Keep those that are furthest: their new owner would have to catch up beside its live segments.
            let mut order: Vec<_> = self.owned.positions.iter().map(|(segment, at)| (Reverse(at.applied), *segment)).collect();
            order.sort_unstable();
            for (index, (_, segment)) in order.into_iter().enumerate() {
                let removed_from = if index < share { &mut excess } else { &mut self.owned };
                removed_from.positions.remove(&segment);
            }
            self.ahead = None;
            self.leases.release(&excess).await?;
            self.owned_changed();
        } else if mine < share && build.checkpoints.iter().any(|checkpoint| checkpoint.owner.is_none()) {
            let free = build.checkpoints.iter().filter(|checkpoint| checkpoint.owner.is_none()).count();
            let acquired = self.leases.acquire(&self.owned.log, share - mine).await?;
            let are_locked = acquired.len() < free.min(share - mine);
            self.poll_at = are_locked.then(|| Instant::now() + LOCKED);
            if !acquired.is_empty() {
                self.ahead = None;
                self.owned.positions.extend(acquired);
                self.owned_changed();
            }
            self.rebalanced = !are_locked;
            if are_locked {
                self.running.health().failed(self.leases.build, "segments of a dead replica are still locked".to_owned());
            }
        }
        Ok(())
    }

    /// Says once if this build is ahead of the log. Then it applies nothing until an operator rebuilds it.
    fn check_ahead(&mut self, build: &Build) {
        if let Some(head) = build.ahead_of.filter(|_| !self.ahead_of_log) {
            let (projection, build) = (P::NAME, self.leases.build);
            let help = format!("run `cartctl projections rebuild {projection}`");
            tracing::error!(projection, build, %head, help, "build is ahead of the log, which was restored without it: applying nothing");
        }
        self.ahead_of_log = build.ahead_of.is_some();
    }

    /// Takes over from the table which segments this replica owns.
    fn adopt(&mut self, build: &Build) {
        let before = self.owned.clone();
        // Nobody may take a build that is ahead of the log for one that has reached a position.
        self.owned.serving = build.serving && build.ahead_of.is_none();
        for checkpoint in &build.checkpoints {
            if checkpoint.owner == Some(self.running.replica.id) {
                self.owned.positions.entry(checkpoint.segment).or_insert_with(|| SegmentPosition::stored(checkpoint.position));
            } else {
                self.owned.positions.remove(&checkpoint.segment);
            }
        }
        if self.owned != before {
            self.ahead = None;
            let owned = &self.owned;
            self.blocked.retain(|segment, _| owned.positions.contains_key(segment));
            self.publish();
        }
    }

    fn labels(&self) -> [KeyValue; 2] {
        [KeyValue::new("projection", P::NAME), KeyValue::new("build", self.leases.build)]
    }

    fn measure(&self, build: &Build, head: Position) {
        let labels = self.labels();
        METRICS.projection_segments.record(u64::try_from(self.owned.positions.len()).unwrap_or_default(), &labels);
        let blocked = if self.ahead_of_log { self.owned.positions.len() } else { self.blocked.len() };
        METRICS.projection_blocked.record(u64::try_from(blocked).unwrap_or_default(), &labels);
        METRICS.projection_parked.record(u64::try_from(build.parked).unwrap_or_default(), &labels);
        let Some(lowest) = self.owned.lowest() else { return Self::measure_none(&labels) };
        METRICS.projection_position.record(lowest.0, &labels);
        METRICS.projection_lag.record((head.0 - lowest.0).max(0), &labels);
        let mine = build.checkpoints.iter().filter(|checkpoint| self.owned.positions.contains_key(&checkpoint.segment));
        let age = mine.map(|checkpoint| checkpoint.lag).max().unwrap_or_default();
        METRICS.projection_lag_age.record(age.as_secs_f64(), &labels);
    }

    /// Resets the gauges of a build without owned segments.
    fn measure_none(labels: &[KeyValue]) {
        METRICS.projection_segments.record(0, labels);
        METRICS.projection_lag.record(0, labels);
        METRICS.projection_lag_age.record(0.0, labels);
    }

    /// The owned segments with their positions, without those that are blocked until their next retry.
    fn ready(&self) -> impl Iterator<Item = (i32, Position)> {
        let now = Instant::now();
        let is_ready = move |segment: &i32| self.blocked.get(segment).is_none_or(|blocked| blocked.until <= now);
        self.owned.positions.iter().filter(move |(segment, _)| is_ready(segment)).map(|(segment, at)| (*segment, at.applied))
    }

    /// Returns the next positions to apply: from the segments that are furthest behind to the position of the next ones. There they join,
    /// so each position of the log is read once.
    fn next(&self, head: Position) -> Option<RangeInclusive<Position>> {
        let (_, from) = self.ready().min_by_key(|(_, position)| *position)?;
        let end = self.limit.map_or(head, |limit| limit.min(head));
        let joined = self.ready().map(|(_, position)| position).filter(|position| *position > from).min().unwrap_or(end);
        let retries = self.ready().any(|(segment, position)| position == from && self.blocked.contains_key(&segment));
        let window = match &self.ahead {
            // Only the event that blocks the segment.
            _ if retries => 1,
            // This batch is already read.
            Some(ahead) if ahead.from == from => ahead.to.0 - from.0,
            _ => self.batch_size(),
        };
        let to = Position((from.0 + window).min(joined.0).min(end.0));
        (to > from).then_some(from..=to)
    }

    /// Whether commands append, and nobody waits for this build to reach a position.
    fn is_beside_commands(&self) -> bool {
        self.limit.is_none() && self.running.store.head_watcher().grows()
    }

    /// The most positions of the next batch.
    fn batch_size(&self) -> i64 {
        if self.gains && self.is_beside_commands() { self.window.min(BESIDE_COMMANDS) } else { self.window }
    }

    /// Applies a range of positions to the segments that are at its start.
    async fn step(&mut self, range: RangeInclusive<Position>, head: Position) -> Result<(), StoreError> {
        let begun = Instant::now();
        let (from, to) = range.into_inner();
        // Five positions applied for four appended: so a build that is behind catches up.
        let (last, last_head) = std::mem::replace(&mut self.last, (from, head));
        self.gains = last == Position::START || 4 * (from.0 - last.0) >= 5 * (head.0 - last_head.0);
        let active: Vec<i32> = self.ready().filter(|(_, position)| *position == from).map(|(segment, _)| segment).collect();
        let mut batch = match self.ahead.take() {
            Some(ahead) if ahead.from == from && ahead.to == to => ahead.reading.await.unwrap_or(Err(StoreError::Closed))?,
            _ => batch::read::<P>(&self.running.store, &self.running.types, &self.owned.log, from, to).await?,
        };
        // Read the next batch while this one is written, if the log has a whole one.
        let after = Position(to.0 + self.batch_size());
        if after <= head && active.len() == self.owned.positions.len() {
            let (store, types, log) = (self.running.store.clone(), self.running.types.clone(), self.owned.log.clone());
            let reading = tokio::spawn(async move { batch::read::<P>(&store, &types, &log, to, after).await });
            self.ahead = Some(Ahead { from: to, to: after, reading: AbortOnDropHandle::new(reading) });
        }
        // If no event is the projection's, the heartbeat stores the position. If events are another segment's, the checkpoint moves now:
        // a query about all keys waits for every segment.
        let written = !batch.is_empty();
        self.had_events = written;
        let mut sleeps = Duration::ZERO;
        if written {
            batch.keep::<P>(&active);
            let is_alone = to.0 - from.0 == 1;
            let writing = Instant::now();
            match self.apply(&mut batch, &active, from, to).await {
                Ok(Applied::Whole) => {
                    // Leaves half of the time to commands, unless this build would fall behind, or is about to switch.
                    let can_sleep = self.gains || (self.owned.serving && to >= head);
                    if can_sleep && batch.events.len() >= MANY && self.is_beside_commands() {
                        sleeps = writing.elapsed().min(LONGEST_SLEEP);
                    }
                }
                Ok(Applied::Lost) => {
                    self.lost_ownership();
                    return Ok(());
                }
                Ok(Applied::UpTo(position)) => {
                    self.ahead = None;
                    self.window = position.0 - from.0;
                    return Ok(());
                }
                Ok(Applied::Failed(error)) | Err(error) if !is_alone && took_too_long(&error) => {
                    self.narrow((to.0 - from.0) / 2, from, &error);
                    return Ok(());
                }
                // Narrow down to the event that fails.
                Ok(Applied::Failed(error)) if !is_alone && !error.is_unavailable() => {
                    self.narrow((to.0 - from.0) / 10, from, &error);
                    return Ok(());
                }
                Ok(Applied::Failed(error)) | Err(error) if !error.is_unavailable() || took_too_long(&error) => {
                    self.ahead = None;
                    return self.cannot_apply(&batch, &active, from, to, error).await;
                }
                Ok(Applied::Failed(error)) | Err(error) => return Err(error),
            }
        }
        // Grow only after a batch of the full size succeeded.
        if to.0 - from.0 >= self.window {
            self.window = (self.window * 2).min(self.running.settings.batch);
        }
        self.reached(&active, to, written);
        if written {
            sleep(sleeps).await;
            self.running.settings.throttle(batch.events.len(), begun).await;
        }
        Ok(())
    }

    fn narrow(&mut self, window: i64, from: Position, error: &StoreError) {
        self.ahead = None;
        self.window = window.max(1);
        let build = self.leases.build;
        tracing::warn!(projection = P::NAME, build, after = %from, batch = self.window, error = error as &dyn std::error::Error, "batch failed, retrying in smaller ones");
    }

    /// Records that segments have reached a position. `written`: the checkpoints were moved.
    fn reached(&mut self, segments: &[i32], to: Position, written: bool) {
        self.written |= written;
        if written {
            self.running.health().worked(self.leases.build);
        }
        for segment in segments {
            self.blocked.remove(segment);
            if let Some(at) = self.owned.positions.get_mut(segment) {
                at.applied = to;
                if written {
                    at.stored = to;
                }
            }
        }
        self.publish();
        if written && self.owned.serving {
            self.running.applied.send_replace(to);
        }
    }

    /// Handles an event that fails alone: parks its key. If it has no key, or is not at fault itself, blocks the segments in which it fails.
    async fn cannot_apply(
        &mut self,
        batch: &Batch<P::Event>,
        active: &[i32],
        from: Position,
        to: Position,
        error: StoreError,
    ) -> Result<(), StoreError> {
        let mut error = Some(error);
        if let (Some(key), Some(error)) = (batch.key::<P>(), error.as_ref().filter(|error| batch::is_events_fault(error))) {
            match self.parking().park(key, error, active, from, to).await? {
                parking::Parked::Whole => {
                    METRICS.projection_faults.add(1, &[KeyValue::new("projection", P::NAME)]);
                    self.reached(active, to, true);
                    return Ok(());
                }
                parking::Parked::Lost => {
                    self.lost_ownership();
                    return Ok(());
                }
                parking::Parked::NotCurrent => return Err(not_current(to)),
                parking::Parked::TooMany => {}
            }
        }
        for segment in active {
            let error = match error.take() {
                // The event was already tried in this segment alone.
                Some(error) if active.len() == 1 => error,
                _ => {
                    let mut batch = batch.clone();
                    batch.keep::<P>(&[*segment]);
                    match self.apply(&mut batch, &[*segment], from, to).await? {
                        Applied::Whole => {
                            self.reached(&[*segment], to, true);
                            continue;
                        }
                        Applied::Failed(error) if !error.is_unavailable() || took_too_long(&error) => error,
                        Applied::Failed(error) => return Err(error),
                        Applied::Lost | Applied::UpTo(_) => {
                            self.lost_ownership();
                            return Ok(());
                        }
                    }
                }
            };
            let mut reason = batch::describe(&error);
            if took_too_long(&error) {
                reason = format!("the event alone takes longer to apply than a transaction may: {reason}");
            }
            match self.leases.block(*segment, to, &reason).await? {
                None => {
                    self.lost_ownership();
                    return Ok(());
                }
                Some(true) => {
                    let mut nothing = Batch::default();
                    match self.apply(&mut nothing, &[*segment], from, to).await? {
                        Applied::Whole => {}
                        Applied::Failed(error) => return Err(error),
                        Applied::Lost | Applied::UpTo(_) => {
                            self.lost_ownership();
                            return Ok(());
                        }
                    }
                    tracing::warn!(projection = P::NAME, build = self.leases.build, segment, position = %to, "skipped event as an operator decided");
                    self.reached(&[*segment], to, true);
                }
                Some(false) => {
                    METRICS.projection_faults.add(1, &[KeyValue::new("projection", P::NAME)]);
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(projection = P::NAME, build = self.leases.build, segment, position = %to, error, "segment blocked by an event");
                    let blocked = self.blocked.remove(segment);
                    let mut backoff = blocked.map_or_else(|| self.running.settings.backoff(), |blocked| blocked.backoff);
                    self.blocked.insert(*segment, Blocked { until: Instant::now() + backoff.next_delay(), backoff });
                }
            }
        }
        Ok(())
    }

    /// Applies a batch and moves the checkpoints, both or neither. Events of parked keys go to their queues.
    async fn apply(&self, batch: &mut Batch<P::Event>, active: &[i32], from: Position, to: Position) -> Result<Applied, StoreError> {
        if batch.is_empty() {
            return with_timeout(async {
                let mut connection = PooledConnection::from(self.leases.pool).await?;
                let advanced = self.leases.advance(&mut connection, &self.owned, active, from, to).await?;
                if !advanced.current {
                    return Ok(Applied::Failed(not_current(to)));
                }
                connection.done();
                Ok(if advanced.moved { Applied::Whole } else { Applied::Lost })
            })
            .await;
        }
        let span = tracing::info_span!("project", otel.name = format!("project {}", P::NAME), events = batch.events.len(), position = %to);
        trace::follow(&span, batch.events.iter().map(|event| event.metadata.traceparent.as_deref()));
        let applying = with_timeout_of(BATCH_TIMEOUT, async {
            let mut pooled = PooledConnection::from(self.leases.pool).await?;
            let mut transaction = pooled.begin().await?;
            // First, because it is the fence: a replica that lost a segment waits for no lock and writes nothing.
            let advanced = self.leases.advance(&mut transaction, &self.owned, active, from, to).await?;
            if !advanced.current {
                return Ok(Applied::Failed(not_current(to)));
            }
            let mut applied = if advanced.moved { Applied::Whole } else { Applied::Lost };
            if advanced.moved {
                match batch.sort::<P>(&advanced.parked, active) {
                    Sorted::Queue(queue) => self.leases.queue(&mut transaction, &queue).await?,
                    Sorted::Unreadable(_, error) if to.0 - from.0 == 1 => applied = Applied::Failed(error),
                    // First the events before it, then the event alone.
                    Sorted::Unreadable(position, _) => applied = Applied::UpTo(Position((position.0 - 1).max(from.0 + 1))),
                }
            }
            if matches!(applied, Applied::Whole) && !batch.events.is_empty() {
                let connection: &mut PgConnection = &mut transaction;
                if let Err(error) = self.running.projection.apply(connection, &batch.events).await {
                    applied = Applied::Failed(error.into());
                }
            }
            match applied {
                // A deferred constraint fails at the commit.
                Applied::Whole => {
                    if let Err(error) = transaction.commit().await {
                        return Ok(Applied::Failed(error.into()));
                    }
                }
                // The connection is broken. Its error says why, a rollback's would not.
                Applied::Failed(error) if error.is_unavailable() => return Ok(Applied::Failed(error)),
                _ => transaction.rollback().await?,
            }
            pooled.done();
            Ok(applied)
        });
        let applied = applying.instrument(span).await?;
        if matches!(applied, Applied::Whole) {
            self.running.count(self.leases.build, batch.events.len());
        }
        Ok(applied)
    }
}
