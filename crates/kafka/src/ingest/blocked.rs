//! Why a partition waits for an operator. It is blocked; it never jumps to another offset.

use super::source::Source;

/// Why a partition waits for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// The next offset to translate is outside of the partition.
    OutOfRange {
        /// The next offset to translate.
        next: i64,
        /// The partition's first offset.
        low: i64,
        /// The offset after its last.
        high: i64,
    },
    /// The partition has another message where the last one was read.
    Replaced {
        /// The offset of that message.
        at: i64,
    },
}

impl Blocked {
    /// Compares the next offset with the partition's ends. A partition that was never read starts at its beginning.
    pub(crate) fn out_of_range(next: Option<i64>, low: i64, high: i64) -> Option<Self> {
        next.filter(|next| *next < low || *next > high).map(|next| Self::OutOfRange { next, low, high })
    }

    /// Says what happened and what an operator can do.
    pub(crate) fn message(&self, group: &str, source: &Source) -> String {
        let Source { topic, partition } = source;
        let seek = format!("cartctl translations seek {topic} {partition} --group {group}");
        match self {
            Self::OutOfRange { next, low, high } => {
                let happened = if next > high {
                    format!("the partition ends at {high}: its topic was created again, or its brokers lost data")
                } else {
                    format!("the partition begins at {low}: retention deleted up to {} messages before they were translated", low - next)
                };
                format!(
                    "the next offset to translate is {next}, but {happened}. The partition is blocked. To continue at its beginning, run: \
                     {seek} --to {low}. To skip what it holds, use --to {high}"
                )
            }
            Self::Replaced { at } => format!(
                "the message at offset {at} is not the one that was read there: the topic was created again. The partition is blocked. To \
                 translate the new topic from its beginning, run: {seek} --beginning. To skip what it holds, use --end"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_is_in_range_from_the_first_to_after_the_last() {
        for next in [None, Some(10), Some(15), Some(20)] {
            assert_eq!(Blocked::out_of_range(next, 10, 20), None);
        }
        for next in [9, 21] {
            assert_eq!(Blocked::out_of_range(Some(next), 10, 20), Some(Blocked::OutOfRange { next, low: 10, high: 20 }));
        }
    }

    #[test]
    fn message_names_the_offset_and_the_command_to_continue() {
        let source = Source::new("counts", 3);
        let message = Blocked::OutOfRange { next: 120, low: 0, high: 40 }.message("counters", &source);
        assert!(message.contains("translate is 120,") && message.contains("ends at 40"), "{message}");
        assert!(message.contains("cartctl translations seek counts 3 --group counters --to 0."), "{message}");
        let message = Blocked::OutOfRange { next: 7, low: 10, high: 40 }.message("counters", &source);
        assert!(message.contains("translate is 7,") && message.contains("begins at 10"), "{message}");
        let message = Blocked::Replaced { at: 41 }.message("counters", &source);
        assert!(message.contains("at offset 41") && message.contains("cartctl translations seek counts 3 --group counters --beginning."));
    }
}
