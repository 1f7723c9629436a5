//! What a projection that is behind leaves to commands that append at the same time.

use std::time::Duration;

use tokio::time::Instant;

use crate::Position;

/// A projection that is behind takes little at a time while commands append much: the flush of an append waits for what a batch has to
/// write, and the next append for that flush. It costs the projection some of its speed, so it does so only as long as it still catches up.
///
/// (Four read models were made from a million events on two cores, in batches of 500 positions all the time and of 10,000: beside 64 tasks
/// that append without a pause, these did 0.6 and 0.3 of what they do alone; with nobody beside them the read models took 11 s and 7 s.)
pub(super) struct Courtesy {
    /// When it was last looked at how things stand, and how they stood.
    looked: Instant,
    head: Position,
    lag: i64,
    /// Commands append much.
    much: bool,
    /// The last batch had something to write.
    wrote: bool,
    /// Until then it takes all that it can, as it did not catch up otherwise; and for how long the next time.
    selfish_until: Instant,
    selfish_for: Duration,
}

impl Default for Courtesy {
    fn default() -> Self {
        let now = Instant::now();
        Self { looked: now, head: Position::START, lag: 0, much: false, wrote: false, selfish_until: now, selfish_for: Self::FIRST }
    }
}

impl Courtesy {
    const LOOK: Duration = Duration::from_secs(1);
    const FIRST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(60);
    /// Positions a second, of a hundred Add Items. Who appends less is not worth the projection's time.
    const MUCH: i64 = 200;
    /// It catches up where a second takes off so much of what it has before it: a million positions in some five minutes.
    const CATCHES_UP: i64 = 60;
    /// The part of a batch that is little.
    const LITTLE: i64 = 20;
    /// Smaller ones are small enough, and none is cut down to the one position that has failed alone.
    const LEAST: i64 = 10;

    /// So many positions are little.
    pub(super) fn share_of(batch: i64) -> i64 {
        (batch / Self::LITTLE).max(Self::LEAST)
    }

    /// Where the log ends, and what the next batch begins after.
    pub(super) fn look(&mut self, head: Position, from: Position) {
        let (now, lag) = (Instant::now(), head.0 - from.0);
        let seconds = (now - self.looked).as_secs_f64();
        if now - self.looked < Self::LOOK {
            return;
        }
        let (gave_way, known) = (self.much && now > self.selfish_until, self.head > Position::START);
        self.much = known && (head.0 - self.head.0) as f64 >= Self::MUCH as f64 * seconds;
        if gave_way && self.much {
            if lag <= self.lag - self.lag / Self::CATCHES_UP {
                self.selfish_for = Self::FIRST;
            } else {
                self.selfish_until = now + self.selfish_for;
                self.selfish_for = (self.selfish_for * 2).min(Self::LONGEST);
            }
        }
        (self.looked, self.head, self.lag) = (now, head, lag);
    }

    /// Whether the batch that was read has something to write. One that has not makes nobody wait.
    pub(super) fn wrote(&mut self, something: bool) {
        self.wrote = something;
    }

    /// Whether little is to be taken.
    pub(super) fn gives_way(&self) -> bool {
        self.much && self.wrote && Instant::now() >= self.selfish_until
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    /// A second passes in which so much is appended, and so much applied. Answers whether it gives way after it.
    async fn second(courtesy: &mut Courtesy, log: &mut (i64, i64), appended: i64, applied: i64) -> bool {
        time::advance(Duration::from_secs(1)).await;
        *log = (log.0 + appended, log.1 + applied);
        courtesy.look(Position(log.0), Position(log.1));
        courtesy.wrote(true);
        courtesy.gives_way()
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_way_while_much_is_appended_and_it_catches_up() {
        let (mut courtesy, mut log) = (Courtesy::default(), (1_000_000, 0));
        assert!(!second(&mut courtesy, &mut log, 5_000, 0).await, "it has not seen anything before");
        for _ in 0..10 {
            assert!(second(&mut courtesy, &mut log, 5_000, 50_000).await);
        }
        courtesy.wrote(false);
        assert!(!courtesy.gives_way(), "there was nothing to write");
        assert!(!second(&mut courtesy, &mut log, 100, 50_000).await, "a little");
        assert!(!second(&mut courtesy, &mut log, 0, 50_000).await);
    }

    #[tokio::test(start_paused = true)]
    async fn where_it_does_not_catch_up_it_takes_what_it_can_for_longer_and_longer() {
        let (mut courtesy, mut log) = (Courtesy::default(), (10_000_000, 0));
        second(&mut courtesy, &mut log, 30_000, 0).await;
        let mut gave_way = vec![];
        for _ in 0..300 {
            // Giving way, it comes on, and at that rate for an hour.
            let applied = if courtesy.gives_way() { 33_000 } else { 50_000 };
            gave_way.push(second(&mut courtesy, &mut log, 30_000, applied).await);
        }
        let first: Vec<_> = gave_way.iter().take(12).copied().collect();
        assert_eq!(first, [true, false, false, true, false, false, false, false, true, false, false, false]);
        assert!(gave_way.iter().filter(|gave| **gave).count() < 12, "{gave_way:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_it_has_caught_up_again_it_is_as_patient_as_before() {
        let (mut courtesy, mut log) = (Courtesy::default(), (1_000_000, 0));
        second(&mut courtesy, &mut log, 30_000, 0).await;
        for _ in 0..20 {
            second(&mut courtesy, &mut log, 30_000, 30_000).await;
        }
        while !second(&mut courtesy, &mut log, 5_000, 5_000).await {}
        assert!(second(&mut courtesy, &mut log, 5_000, 100_000).await);
        assert_eq!(courtesy.selfish_for, Courtesy::FIRST);
    }

    #[test]
    fn little_is_a_twentieth_and_not_too_little() {
        assert_eq!([10_000, 1_000, 100, 1].map(Courtesy::share_of), [500, 50, 10, 10]);
    }
}
