//! An offset that its partition does not have: a fault, and never a jump.

use super::source::Source;

/// Where to read on stands outside of what the partition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutOfRange {
    /// The offset to read on from.
    next: i64,
    /// The partition's first offset.
    low: i64,
    /// The offset after its last.
    high: i64,
}

impl OutOfRange {
    /// Compares where to read on with the partition's ends. One never read starts wherever its beginning is.
    pub(crate) fn found(next: Option<i64>, low: i64, high: i64) -> Option<Self> {
        next.filter(|next| *next < low || *next > high).map(|next| Self { next, low, high })
    }

    /// What happened, and what an operator can do about it.
    pub(crate) fn message(&self, group: &str, source: &Source) -> String {
        let Self { next, low, high } = self;
        let happened = if next > high {
            format!(
                "the next message to translate is the one at offset {next}, but the partition ends at {high}: its topic was made anew, or its \
                 brokers lost data"
            )
        } else {
            format!(
                "the next message to translate is the one at offset {next}, but the partition begins at {low}: {} messages or fewer were \
                 deleted by the topic's retention before they were translated",
                low - next
            )
        };
        let update = format!(
            "UPDATE source_offset SET next_offset = {low}, updated_at = clock_timestamp() WHERE consumer = {} AND topic = {} AND partition = {};",
            quoted(group),
            quoted(&source.topic),
            source.partition
        );
        format!(
            "{happened}. The partition is stopped; the others go on. To go on from its beginning, run as the owner of the database: {update} \
             To leave out what it holds now, with next_offset = {high}. It is noticed within seconds"
        )
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_in_range_from_the_first_to_the_one_after_the_last() {
        for next in [None, Some(10), Some(15), Some(20)] {
            assert_eq!(OutOfRange::found(next, 10, 20), None);
        }
        for next in [9, 21] {
            assert_eq!(OutOfRange::found(Some(next), 10, 20), Some(OutOfRange { next, low: 10, high: 20 }));
        }
    }

    #[test]
    fn the_message_names_both_and_the_statement_to_go_on() {
        let source = Source::new("counts", 3);
        let message = OutOfRange { next: 120, low: 0, high: 40 }.message("it's", &source);
        assert!(message.contains("offset 120") && message.contains("ends at 40"), "{message}");
        let statement = "UPDATE source_offset SET next_offset = 0, updated_at = clock_timestamp() \
                         WHERE consumer = 'it''s' AND topic = 'counts' AND partition = 3;";
        assert!(message.contains(statement), "{message}");
        let message = OutOfRange { next: 7, low: 10, high: 40 }.message("counters", &source);
        assert!(message.contains("offset 7") && message.contains("begins at 10"), "{message}");
    }
}
