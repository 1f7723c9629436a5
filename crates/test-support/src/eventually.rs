//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Waits until a condition holds, and answers what it yields.
///
/// # Panics
/// Where it does not within 30 seconds: `what` says what was waited for.
#[track_caller]
pub fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{caller}: waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
