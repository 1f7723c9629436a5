//! Measures how fast a replica applies events. The heartbeat publishes it.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The time that a rate is averaged over. Longer if heartbeats are further apart.
const WINDOW: Duration = Duration::from_secs(5);

/// The shortest time to divide by: in less, one batch would look like many.
const SHORTEST: Duration = Duration::from_secs(1);

/// Counts applied events and batches, and averages them over the last heartbeats.
pub(crate) struct ThroughputMeter {
    total: Applied,
    /// The totals at the heartbeats of the window, oldest first.
    samples: VecDeque<(Instant, Applied)>,
}

#[derive(Clone, Copy, Default)]
struct Applied {
    events: u64,
    batches: u64,
}

/// Events and batches per second.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Throughput {
    events: f64,
    batches: f64,
}

impl ThroughputMeter {
    pub(crate) fn new(now: Instant) -> Self {
        Self { total: Applied::default(), samples: VecDeque::from([(now, Applied::default())]) }
    }

    /// Counts a batch.
    pub(crate) fn count(&mut self, events: usize) {
        self.total.events += events as u64;
        self.total.batches += 1;
    }

    /// Takes a sample and returns the average over the window. `None` if nothing was applied.
    pub(crate) fn sample(&mut self, now: Instant) -> Option<Throughput> {
        while self.samples.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.samples.pop_front();
        }
        let (since, before) = self.samples.front().copied().unwrap_or((now, self.total));
        self.samples.push_back((now, self.total));
        let seconds = now.duration_since(since).max(SHORTEST).as_secs_f64();
        let (events, batches) = (self.total.events - before.events, self.total.batches - before.batches);
        (batches > 0).then(|| Throughput { events: events as f64 / seconds, batches: batches as f64 / seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_averages_the_last_seconds() {
        let begun = Instant::now();
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut meter = ThroughputMeter::new(begun);
        assert_eq!(meter.sample(begun), None);
        // A heartbeat right after a batch does not exaggerate it.
        meter.count(30);
        assert_eq!(meter.sample(begun + Duration::from_millis(10)), Some(Throughput { events: 30.0, batches: 1.0 }));
        for second in 1..=10 {
            meter.count(60);
            meter.count(40);
            let throughput = meter.sample(after(second)).unwrap();
            if second >= 6 {
                assert_eq!(throughput, Throughput { events: 100.0, batches: 2.0 }, "{second}");
            }
        }
        assert_eq!(meter.sample(after(12)), Some(Throughput { events: 60.0, batches: 1.2 }));
        assert!(meter.sample(after(14)).is_some());
        assert_eq!(meter.sample(after(15)), None);
        assert_eq!(meter.sample(after(16)), None);
        // Heartbeats that are further apart than the window: the average since the last one.
        meter.count(500);
        assert_eq!(meter.sample(after(26)), Some(Throughput { events: 50.0, batches: 0.1 }));
        assert_eq!(meter.sample(after(46)), None);
    }
}
