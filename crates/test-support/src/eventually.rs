//! Waits for conditions. Tests never wait for a fixed time.

use std::time::{Duration, Instant};

/// A busy machine takes long. Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a condition yields a value, and returns the value.
///
/// # Panics
/// If it yields none within two minutes. The message contains `what`.
#[track_caller]
pub fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(started.elapsed() < PATIENCE, "{caller}: waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
