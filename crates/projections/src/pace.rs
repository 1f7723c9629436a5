//! How fast a replica applies the events of a build, told with its heartbeat.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// What a pace is taken over: the time before a heartbeat, or since the one before that where this is longer ago.
const WINDOW: Duration = Duration::from_secs(5);

/// Within less than this, one batch would look like many.
const SHORTEST: Duration = Duration::from_secs(1);

/// What was applied so far, now and at the heartbeats of the window.
pub(crate) struct Pace {
    now: Applied,
    then: VecDeque<(Instant, Applied)>,
}

#[derive(Clone, Copy, Default)]
struct Applied {
    events: u64,
    batches: u64,
}

/// Events, and batches of them, that were applied in a second.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct PerSecond {
    events: f64,
    batches: f64,
}

impl Pace {
    /// Of what is applied from now on.
    pub(crate) fn begin(now: Instant) -> Self {
        Self { now: Applied::default(), then: VecDeque::from([(now, Applied::default())]) }
    }

    pub(crate) fn count(&mut self, events: usize) {
        self.now.events += events as u64;
        self.now.batches += 1;
    }

    /// The pace at a heartbeat; none where nothing was applied.
    pub(crate) fn at(&mut self, now: Instant) -> Option<PerSecond> {
        while self.then.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.then.pop_front();
        }
        let (since, then) = self.then.front().copied().unwrap_or((now, self.now));
        self.then.push_back((now, self.now));
        let seconds = now.duration_since(since).max(SHORTEST).as_secs_f64();
        let (events, batches) = (self.now.events - then.events, self.now.batches - then.batches);
        (batches > 0).then(|| PerSecond { events: events as f64 / seconds, batches: batches as f64 / seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_that_of_the_last_seconds_and_none_where_nothing_was_applied() {
        let begun = Instant::now();
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut pace = Pace::begin(begun);
        assert_eq!(pace.at(begun), None);
        // A heartbeat that comes at once does not make much of a batch.
        pace.count(30);
        assert_eq!(pace.at(begun + Duration::from_millis(10)), Some(PerSecond { events: 30.0, batches: 1.0 }));
        for second in 1..=10 {
            pace.count(60);
            pace.count(40);
            let pace = pace.at(after(second)).unwrap();
            if second >= 6 {
                assert_eq!(pace, PerSecond { events: 100.0, batches: 2.0 }, "{second}");
            }
        }
        assert_eq!(pace.at(after(12)), Some(PerSecond { events: 60.0, batches: 1.2 }));
        assert!(pace.at(after(14)).is_some());
        assert_eq!(pace.at(after(15)), None);
        assert_eq!(pace.at(after(16)), None);
        // Heartbeats that are further apart than the window: since the last one.
        pace.count(500);
        assert_eq!(pace.at(after(26)), Some(PerSecond { events: 50.0, batches: 0.1 }));
        assert_eq!(pace.at(after(46)), None);
    }
}
