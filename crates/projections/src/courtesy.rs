//! What a projection that is behind leaves to commands that append at the same time.

use std::time::Duration;

use event_store::Position;
use tokio::time::Instant;

/// A projection that is behind takes little at a time while commands append much, and rests after it, as long as it gains on the log all the
/// same: what it lost in a minute it has made good in four at the most, where it can. What it needs for that it takes. Once it is at the
/// log's end and there comes very much, it lets some gather: many small batches cost more than a few.
///
/// (`cargo dev bench projections`, two cores for all: 64 tasks that append without a pause do 0.60 to 0.63 of what they do alone while four
/// read models catch up so, and 0.46 where these apply whole batches, or small ones without a rest. Without the gathering they did 0.45
/// beside read models that follow, and with it 0.49 to 0.59.)
pub(crate) struct Courtesy {
    /// Positions that one batch takes at the most.
    batch: i64,
    /// Positions that one takes while it gives way.
    little: i64,
    /// When it was last looked where the log ends, and where it ended.
    looked: Instant,
    head: Position,
    /// Positions a second that were appended between the last two looks. Before there were two, it is taken for granted that it is much.
    appended: Option<f64>,
    /// The last batch had something to write.
    wrote: bool,
    /// When the next batch may begin for no more to be applied than has to be.
    due: Instant,
}

impl Courtesy {
    /// Short enough to be polite soon, and long enough that a few commands do not look like many.
    const LOOK: Duration = Duration::from_millis(250);
    /// Positions a second, of a hundred Add Items. Who appends less is not worth the projection's time.
    const MUCH: f64 = 200.0;
    /// Of a thousand.
    const VERY_MUCH: f64 = 2_000.0;
    /// Many of them, and little of what a reader waits for.
    const GATHERS: Duration = Duration::from_millis(20);
    /// Positions to apply for each that is appended.
    const GAINS: f64 = 1.25;
    /// For each moment that a batch is written, where there is so much time.
    const RESTS: u32 = 3;
    /// The next turn is not waited for much longer: see [`crate::replica::Replicas::turn_to_catch_up`].
    const LONGEST: Duration = Duration::from_millis(200);
    /// What was applied too slowly for longer than this is not made good by going without a rest.
    const OWED: Duration = Duration::from_secs(1);
    /// The part of a batch that is little.
    const LITTLE: i64 = 20;
    /// Smaller ones are small enough, and none is cut down to the one position that has failed alone.
    const LEAST: i64 = 10;

    /// Of a projection whose batches take so many positions at the most.
    pub(crate) fn new(batch: i64) -> Self {
        let now = Instant::now();
        Self { batch, little: Self::least(batch), looked: now, head: Position::START, appended: None, wrote: false, due: now }
    }

    fn least(batch: i64) -> i64 {
        (batch / Self::LITTLE).max(Self::LEAST)
    }

    /// Where the log ends.
    pub(crate) fn look(&mut self, head: Position) {
        let now = Instant::now();
        // Not looked yet, or another log than before, or an older one.
        if self.head == Position::START || head < self.head {
            self.appended = None;
        } else if now - self.looked < Self::LOOK {
            return;
        } else {
            let looks = (now - self.looked).div_duration_f64(Self::LOOK);
            let appended = (head.0 - self.head.0) as f64 / (now - self.looked).as_secs_f64();
            // A disk that stands still for a moment, or an announcement that comes late, is no reason to put all on it.
            self.appended = Some(self.appended.map_or(appended, |before| appended.max(before * 0.5_f64.powf(looks))));
        }
        (self.looked, self.head) = (now, head);
    }

    /// Whether the batch that was read has something to write. One that has not makes nobody wait, and goes as far for nothing.
    pub(crate) fn wrote(&mut self, something: bool) {
        self.wrote = something;
        if !something {
            self.owes_nothing();
        }
    }

    /// So many positions are little, where it is to give way.
    pub(crate) fn takes(&self) -> Option<i64> {
        (self.wrote && self.appended.is_none_or(|appended| appended >= Self::MUCH)).then_some(self.little)
    }

    /// For how long to rest after a batch of so many positions that took so long to write, of a projection that gives way. Where there is no
    /// time for that, more is taken at once, which is less work; where there is much, less is, so that nobody waits for long.
    pub(crate) fn rest(&mut self, positions: i64, writing: Duration) -> Duration {
        let Some(little) = self.takes() else {
            self.owes_nothing();
            return Duration::ZERO;
        };
        let now = Instant::now();
        let owed = now.checked_sub(Self::OWED).map_or(self.due, |longest| self.due.max(longest));
        let has = |appended| Duration::from_secs_f64(positions as f64 / (appended * Self::GAINS));
        let due = owed + self.appended.map_or(Self::LONGEST + Self::OWED, has);
        let left = due.saturating_duration_since(now);
        if left > writing {
            self.little = (little / 2).max(Self::least(self.batch));
        } else if left.is_zero() && positions >= little {
            self.little = (little * 2).min(self.batch);
        }
        let rest = left.min(writing * Self::RESTS).min(Self::LONGEST);
        self.due = due.min(now + rest);
        rest
    }

    /// It need not give way.
    pub(crate) fn owes_nothing(&mut self) {
        self.due = Instant::now();
    }

    /// For how long to rest after a batch that came to the log's end, for more than a few events to be there for the next.
    pub(crate) fn gathers(&self) -> Duration {
        if self.wrote && self.appended.is_some_and(|appended| appended >= Self::VERY_MUCH) { Self::GATHERS } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    /// What a minute of catching up comes to.
    #[derive(Debug)]
    struct Minute {
        applied_for_each_appended: f64,
        /// The part of the time in which it writes.
        writes: f64,
        /// Of the last batch.
        positions: i64,
    }

    /// A batch takes 2 ms and so many microseconds for each of its positions to be written, after others' turns of so many milliseconds,
    /// while so many positions a second are appended.
    async fn minute(appended: i64, microseconds: u64, others: u64) -> Minute {
        let (started, mut courtesy) = (Instant::now(), Courtesy::new(10_000));
        let (mut applied, mut wrote, mut positions) = (0, Duration::ZERO, 0);
        while started.elapsed() < Duration::from_secs(60) {
            courtesy.look(Position(10_000_000 + (appended as f64 * started.elapsed().as_secs_f64()) as i64));
            courtesy.wrote(true);
            positions = courtesy.takes().unwrap_or(10_000);
            let writing = Duration::from_millis(2) + Duration::from_micros(microseconds).mul_f64(positions as f64);
            time::advance(Duration::from_millis(others) + writing).await;
            (applied, wrote) = (applied + positions, wrote + writing);
            time::advance(courtesy.rest(positions, writing)).await;
        }
        let elapsed = started.elapsed();
        Minute {
            applied_for_each_appended: applied as f64 / (appended as f64 * elapsed.as_secs_f64()),
            writes: wrote.as_secs_f64() / elapsed.as_secs_f64(),
            positions,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_time_it_rests_three_times_as_long_as_it_writes() {
        let it = minute(1_000, 10, 0).await;
        assert!(it.applied_for_each_appended > 10.0 && (0.24..0.27).contains(&it.writes) && it.positions == 500, "{it:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_takes_what_it_needs_to_apply_five_positions_for_four_that_are_appended() {
        for (appended, others) in [(20_000, 0), (30_000, 0), (60_000, 0), (10_000, 30), (30_000, 30)] {
            let it = minute(appended, 10, others).await;
            assert!((1.2..1.5).contains(&it.applied_for_each_appended) && it.writes < 0.9, "{appended} beside {others}: {it:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_that_cannot_be_it_takes_all_that_it_can() {
        let it = minute(90_000, 10, 0).await;
        assert!(it.writes > 0.98 && it.positions == 10_000, "{it:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_way_to_nobody_who_appends_little_and_where_it_has_nothing_to_write() {
        let it = minute(199, 10, 0).await;
        assert!(it.writes > 0.99 && it.positions == 10_000, "{it:?}");
        let mut courtesy = Courtesy::new(10_000);
        assert_eq!(courtesy.takes(), None);
        courtesy.wrote(true);
        assert_eq!(courtesy.takes(), Some(500));
        courtesy.wrote(false);
        assert_eq!(courtesy.takes(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_took_long_is_not_followed_by_a_long_rest() {
        let mut courtesy = Courtesy::new(10_000);
        courtesy.wrote(true);
        let rest = courtesy.rest(10_000, Duration::from_secs(10));
        assert_eq!(rest, Courtesy::LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn before_it_knows_how_much_is_appended_it_gives_way_and_nothing_gathers() {
        let mut courtesy = Courtesy::new(10_000);
        courtesy.look(Position(1_000_000));
        courtesy.wrote(true);
        assert_eq!((courtesy.takes(), courtesy.gathers()), (Some(500), Duration::ZERO));
        assert_eq!(courtesy.rest(500, Duration::from_millis(10)), Duration::from_millis(30));
        time::advance(Courtesy::LOOK).await;
        courtesy.look(Position(1_000_000));
        assert_eq!(courtesy.takes(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_in_which_nothing_is_seen_to_come_does_not_end_it_and_another_log_is_looked_at_anew() {
        let mut courtesy = Courtesy::new(10_000);
        courtesy.wrote(true);
        let mut look = async |head| {
            time::advance(Courtesy::LOOK).await;
            courtesy.look(Position(head));
            courtesy.takes().is_some()
        };
        // At 1,000 a second.
        assert!(look(1_000).await && look(1_250).await);
        let still = [look(1_250).await, look(1_250).await, look(1_250).await];
        assert_eq!(still, [true, true, false]);
        assert!(look(2_250).await);
        // Nor does it last, whenever that is looked at.
        time::advance(Courtesy::LOOK * 20).await;
        assert!(!look(2_251).await);
        assert!(!look(2_252).await && look(100).await, "an older one");
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_went_without_giving_way_is_not_owed() {
        let mut courtesy = Courtesy::new(10_000);
        courtesy.look(Position(1));
        time::advance(Courtesy::LOOK).await;
        courtesy.look(Position(2_501));
        courtesy.wrote(true);
        // 10,000 a second: 625 positions have 50 ms.
        let writing = Duration::from_millis(40);
        let owed = |courtesy: &mut Courtesy| courtesy.rest(625, writing).is_zero();
        assert!(owed(&mut courtesy), "250 ms are");
        courtesy.owes_nothing();
        assert_eq!(courtesy.rest(625, writing), Duration::from_millis(50));
        time::advance(Duration::from_secs(1)).await;
        assert!(owed(&mut courtesy), "a second is");
        courtesy.wrote(false);
        courtesy.wrote(true);
        assert!(!owed(&mut courtesy));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_of_the_log_some_gather_where_very_much_is_appended() {
        for (appended, gathers) in [(499, Duration::ZERO), (500, Courtesy::GATHERS)] {
            let mut courtesy = Courtesy::new(10_000);
            courtesy.look(Position(1));
            time::advance(Courtesy::LOOK).await;
            courtesy.look(Position(1 + appended));
            courtesy.wrote(true);
            assert_eq!(courtesy.gathers(), gathers);
            courtesy.wrote(false);
            assert_eq!(courtesy.gathers(), Duration::ZERO);
        }
    }

    #[test]
    fn little_is_a_twentieth_and_not_too_little() {
        assert_eq!([10_000, 1_000, 100, 1].map(Courtesy::least), [500, 50, 10, 10]);
    }
}
