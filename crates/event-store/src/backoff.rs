//! Pauses between attempts.

use std::time::Duration;

use rand::Rng;

/// Exponential backoff with jitter, without an end.
///
/// Each delay is drawn from the upper half of a bound. The bound starts at `first`, doubles with each retry and stops at `longest`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    retries: u32,
}

impl Backoff {
    /// Creates a backoff whose first delay is at most `first` and whose later ones are at most `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, retries: 0 }
    }

    /// Draws the delay before a retry by its number, counted from 0.
    pub fn delay(&self, retry: u32) -> Duration {
        let bound = self.first.saturating_mul(1 << retry.min(20)).min(self.longest);
        bound.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Draws the delay before the next retry.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.delay(self.retries);
        self.retries = self.retries.saturating_add(1);
        delay
    }

    /// Sleeps until the next retry.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }

    /// Starts again from the first delay, after an attempt that succeeded.
    pub fn reset(&mut self) {
        self.retries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for bound in [100, 200, 400, 800, 1_000, 1_000] {
            let (delay, bound) = (backoff.next_delay(), Duration::from_millis(bound));
            assert!(delay >= bound / 2 && delay <= bound, "{delay:?} of {bound:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
        assert!(backoff.delay(u32::MAX) <= Duration::from_secs(1));
    }
}
