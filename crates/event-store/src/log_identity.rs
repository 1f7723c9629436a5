//! Which log a connection leads to, and which server of it.

/// The identity of the log behind a connection, as `log_identity()` answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogIdentity {
    /// The cluster, the database, and the id of the log.
    log: [String; 3],
    /// Grows with each failover, and with each restore to a point in time.
    timeline: u32,
    /// When the server started, and when it last recovered from a crash. A data directory is put back only while its server is stopped.
    started: String,
}

impl LogIdentity {
    /// Reads the answer of `log_identity()`: `cluster:timeline:database:log:started`. Returns `None` for a standby, which has no timeline of
    /// its own.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, ':');
        let (cluster, timeline) = (parts.next()?, u32::from_str_radix(parts.next()?, 16).ok()?);
        let (database, log, started) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { log: [cluster, database, log].map(str::to_owned), timeline, started: started.to_owned() })
    }

    pub(crate) fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Returns whether this is the same log on an older timeline: a server that was replaced.
    pub(crate) fn precedes(&self, other: &Self) -> bool {
        self.log == other.log && self.timeline < other.timeline
    }

    /// Returns whether this is the same log, on the same or a newer timeline.
    pub(crate) fn continues(&self, other: &Self) -> bool {
        self.log == other.log && self.timeline >= other.timeline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> LogIdentity {
        LogIdentity::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn identities_are_ordered_by_timeline_within_one_log() {
        let (first, second) = (identity("7:00000009:5:a:1700.5"), identity("7:0000000A:5:a:1700.5"));
        assert!(first.precedes(&second) && second.continues(&first) && !first.continues(&second) && !second.precedes(&first));
        let restarted = identity("7:00000009:5:a:1800.5");
        assert!(restarted != first && restarted.continues(&first) && !restarted.precedes(&first));
        for other in ["8:0000000A:5:a:1", "7:0000000A:6:a:1", "7:0000000A:5:b:1"].map(identity) {
            assert!(!first.precedes(&other) && !other.continues(&first));
        }
        assert_eq!(LogIdentity::parse("7:standby:5:a:1700.5"), None);
    }
}
