//! Whether the tasks of a projection do their work.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The tasks of a projection that fail at the moment: since when, and why.
#[derive(Default)]
pub(crate) struct Health(Mutex<BTreeMap<&'static str, (Instant, String)>>);

impl Health {
    /// Notes that a task failed. It fails until [`worked`](Self::worked).
    pub(crate) fn failed(&self, task: &'static str, error: String) {
        let mut failing = self.failing();
        let since = failing.get(task).map_or_else(Instant::now, |(since, _)| *since);
        failing.insert(task, (since, error));
    }

    /// Notes that a task has done its work, or had none.
    pub(crate) fn worked(&self, task: &'static str) {
        self.failing().remove(task);
    }

    /// Fails if a task has failed for too long.
    pub(crate) fn check(&self, now: Instant, patience: Duration) -> Result<(), String> {
        let failing = self.failing();
        let long = failing.iter().map(|(task, (since, error))| (task, now.saturating_duration_since(*since), error));
        match long.max_by_key(|(_, age, _)| *age).filter(|(_, age, _)| *age >= patience) {
            Some((task, age, error)) => Err(format!("{task} has failed for {} s: {error}", age.as_secs())),
            None => Ok(()),
        }
    }

    fn failing(&self) -> MutexGuard<'_, BTreeMap<&'static str, (Instant, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_fails_after_errors_without_progress() {
        let (health, begun, patience) = (Health::default(), Instant::now(), Duration::from_secs(10));
        health.failed("projection_a", "the pool is empty".to_owned());
        health.failed("to-dos", "the pool is empty".to_owned());
        health.worked("to-dos");
        assert_eq!(health.check(begun + Duration::from_secs(9), patience), Ok(()));
        // A later error does not begin the time again.
        health.failed("projection_a", "the log is not reachable".to_owned());
        let after = Instant::now() + Duration::from_secs(10);
        let error = health.check(after, patience).unwrap_err();
        assert!(error.starts_with("projection_a has failed for 1") && error.ends_with("the log is not reachable"), "{error}");
        health.worked("projection_a");
        assert_eq!(health.check(after, patience), Ok(()));
    }
}
