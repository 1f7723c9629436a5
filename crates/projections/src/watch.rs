//! Leases that others hold, timed by this process's own monotonic clock. The database's clock may step.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// Leases by what changes when a holder renews them. Each is kept with its length and since when this process sees it.
pub(crate) struct Watch<L>(HashMap<L, (Duration, Instant)>);

impl<L> Default for Watch<L> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<L: Eq + Hash> Watch<L> {
    /// Notes the leases, and their lengths, that a read found which began at this time. Forgets those that it did not find.
    pub(crate) fn saw(&mut self, at: Instant, leases: impl IntoIterator<Item = (L, Duration)>) {
        let mut before = std::mem::take(&mut self.0);
        let known = |lease: (L, Duration)| {
            let since = before.remove(&lease.0).map_or(at, |(_, since)| since);
            (lease.0, (lease.1, since))
        };
        self.0 = leases.into_iter().map(known).collect();
    }

    /// Returns the leases that were not renewed for their length.
    pub(crate) fn expired(&self, now: Instant) -> impl Iterator<Item = &L> {
        self.0.iter().filter(move |(_, (length, since))| *since + *length <= now).map(|(lease, _)| lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_expires_when_it_is_not_renewed_for_its_length() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        let expired = |watch: &Watch<(&'static str, u64)>, now| watch.expired(now).copied().collect::<Vec<_>>();
        let of = |name, beats| ((name, beats), Duration::from_secs(3));
        for second in 0..=2 {
            watch.saw(after(second), [of("dead", 7), of("alive", second)]);
        }
        assert!(expired(&watch, after(2)).is_empty());
        assert_eq!(expired(&watch, after(3)), [("dead", 7)]);
        // It comes back, with any other count.
        watch.saw(after(3), [of("dead", 1), of("alive", 3)]);
        assert!(expired(&watch, after(5)).is_empty());
        assert_eq!(expired(&watch, after(6)).len(), 2);
    }
}
