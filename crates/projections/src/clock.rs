//! Steps of the database's clock. No lease and no deadline depends on that clock. Ages in metrics and lists do, and pauses between attempts at
//! a to-do, holds of comparisons and the retention of done to-dos.

use std::time::Duration;

use sqlx::types::time::OffsetDateTime;
use tokio::time::Instant;

use crate::metrics::METRICS;

/// A smaller step is not worth a message.
const SMALLEST: Duration = Duration::from_secs(1);

/// The last reading of the database's clock.
#[derive(Default)]
pub(crate) struct DatabaseClock(Option<Reading>);

#[derive(Clone, Copy)]
struct Reading {
    asked: Instant,
    answered: Instant,
    time: OffsetDateTime,
}

impl DatabaseClock {
    /// Takes a time that the database has just answered. Logs and counts a step since the last one.
    pub(crate) fn read(&mut self, asked: Instant, time: OffsetDateTime) {
        let reading = Reading { asked, answered: Instant::now(), time };
        let step = self.0.map_or(0.0, |last| step(last, reading));
        self.0 = Some(reading);
        if step != 0.0 {
            METRICS.clock_steps.add(1, &[]);
            tracing::warn!(seconds = step, "database clock stepped");
        }
    }
}

/// Returns by how many seconds the clock moved more, or less, than this process's. Zero if that may be the time of the statements.
fn step(last: Reading, now: Reading) -> f64 {
    let moved = (now.time - last.time).as_seconds_f64();
    let least = now.asked.saturating_duration_since(last.answered).as_secs_f64() - SMALLEST.as_secs_f64();
    let most = (now.answered - last.asked).as_secs_f64() + SMALLEST.as_secs_f64();
    if moved < least {
        moved - least
    } else if moved > most {
        moved - most
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_is_told_from_a_slow_statement() {
        let begun = Instant::now();
        let reading = |asked, answered, time| Reading {
            asked: begun + Duration::from_secs(asked),
            answered: begun + Duration::from_secs(answered),
            time: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(time),
        };
        let first = reading(0, 0, 100_000);
        for (asked, answered, time) in [(1, 1, 100_001), (1, 9, 100_009), (1, 9, 100_001)] {
            assert_eq!(step(first, reading(asked, answered, time)), 0.0);
        }
        assert!((3_598.0..=3_600.0).contains(&step(first, reading(1, 1, 103_601))));
        assert!((-3_600.0..=-3_598.0).contains(&step(first, reading(1, 1, 96_401))));
    }
}
