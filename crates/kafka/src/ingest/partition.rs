//! A partition while this consumer has it.

use std::collections::VecDeque;

use rdkafka::{Message as _, Offset, message::OwnedMessage};

use super::out_of_range::OutOfRange;

/// What one call carries at the most.
const BATCH_MESSAGES: usize = 1_000;
const BATCH_BYTES: usize = 4 << 20;
/// Held back while a batch is on its way. Past this the consumer is told to pause, and below the lower mark to go on: a pause throws away
/// what librdkafka has fetched ahead, so it must be rare.
const HELD_MESSAGES: usize = 5_000;
const HELD_BYTES: usize = 4 << 20;
const LOW_MESSAGES: usize = 2_000;
const LOW_BYTES: usize = 1 << 20;
/// What a message costs besides its bytes, about.
const MESSAGE_OVERHEAD: usize = 200;

/// A partition's place in the log, and what was read of it beyond that.
#[derive(Default)]
pub(crate) struct Partition {
    /// The offset stored in the log: from where the next batch moves it. `None`: never read.
    stored: Option<i64>,
    /// The least offset that the consumer may hand over next; a lower one was seen. `None`: any.
    expected: Option<i64>,
    held: VecDeque<OwnedMessage>,
    held_bytes: usize,
    /// A batch is on its way.
    pub(crate) working: bool,
    /// The consumer does not fetch more of it.
    pub(crate) paused: bool,
    /// It waits for an operator.
    pub(crate) stopped: Option<OutOfRange>,
}

impl Partition {
    pub(crate) fn new(stored: Option<i64>) -> Self {
        Self { stored, expected: stored, ..Self::default() }
    }

    pub(crate) fn stored(&self) -> Option<i64> {
        self.stored
    }

    /// Where the consumer has to read on.
    pub(crate) fn next_to_read(&self) -> Option<i64> {
        self.expected
    }

    /// As librdkafka is told it: a partition never read is read from its beginning.
    pub(crate) fn offset(&self) -> Offset {
        self.expected.map_or(Offset::Beginning, Offset::Offset)
    }

    /// Takes a message, unless it was seen before.
    pub(crate) fn take(&mut self, message: OwnedMessage) {
        if self.stopped.is_some() || self.expected.is_some_and(|expected| message.offset() < expected) {
            return;
        }
        self.expected = Some(message.offset() + 1);
        self.held_bytes += size(&message);
        self.held.push_back(message);
    }

    /// The next batch, where none is on its way and there is something to translate.
    pub(crate) fn next_batch(&mut self) -> Option<Vec<OwnedMessage>> {
        if self.working || self.held.is_empty() {
            return None;
        }
        let (mut batch, mut bytes) = (vec![], 0);
        while let Some(message) = self.held.pop_front() {
            let size = size(&message);
            if !batch.is_empty() && (batch.len() == BATCH_MESSAGES || bytes + size > BATCH_BYTES) {
                self.held.push_front(message);
                break;
            }
            bytes += size;
            batch.push(message);
        }
        self.held_bytes -= bytes;
        self.working = true;
        Some(batch)
    }

    /// The batch is in the log.
    pub(crate) fn appended(&mut self, to: i64) {
        self.working = false;
        self.stored = Some(to);
    }

    /// The stored offset is another than this consumer thought: what it holds is not to be translated, and it reads anew from there.
    pub(crate) fn rewind(&mut self, stored: Option<i64>) {
        *self = Self { stopped: self.stopped.take(), paused: self.paused, ..Self::new(stored) };
    }

    /// Whether nothing that was read of it is still to be translated.
    pub(crate) fn is_idle(&self) -> bool {
        !self.working && self.held.is_empty()
    }

    pub(crate) fn wants_pause(&self) -> bool {
        !self.paused && (self.held.len() >= HELD_MESSAGES || self.held_bytes >= HELD_BYTES)
    }

    pub(crate) fn wants_resume(&self) -> bool {
        self.paused && self.held.len() <= LOW_MESSAGES && self.held_bytes <= LOW_BYTES
    }
}

fn size(message: &OwnedMessage) -> usize {
    MESSAGE_OVERHEAD + message.payload().map_or(0, <[u8]>::len) + message.key().map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;

    use super::*;

    fn message(offset: i64, bytes: usize) -> OwnedMessage {
        OwnedMessage::new(Some(vec![b' '; bytes]), None, "counts".into(), Timestamp::NotAvailable, 0, offset, None)
    }

    fn offsets(batch: &[OwnedMessage]) -> Vec<i64> {
        batch.iter().map(|message| message.offset()).collect()
    }

    #[test]
    fn messages_gather_while_a_batch_is_on_its_way() {
        let mut partition = Partition::new(None);
        assert_eq!(partition.offset(), Offset::Beginning);
        partition.take(message(0, 10));
        assert_eq!(offsets(&partition.next_batch().unwrap()), [0]);
        // Offsets have gaps.
        partition.take(message(5, 10));
        partition.take(message(6, 10));
        assert!(partition.next_batch().is_none());
        partition.appended(1);
        assert_eq!(partition.stored(), Some(1));
        assert_eq!(offsets(&partition.next_batch().unwrap()), [5, 6]);
        assert_eq!(partition.offset(), Offset::Offset(7));
    }

    #[test]
    fn what_was_seen_is_not_taken_again() {
        let mut partition = Partition::new(Some(5));
        for offset in [3, 4, 5, 6, 5, 6, 7] {
            partition.take(message(offset, 10));
        }
        assert_eq!(offsets(&partition.next_batch().unwrap()), [5, 6, 7]);
    }

    #[test]
    fn a_batch_is_bounded_in_messages_and_bytes_and_never_empty() {
        let mut partition = Partition::new(None);
        (0..1_001).for_each(|offset| partition.take(message(offset, 10)));
        assert_eq!(partition.next_batch().unwrap().len(), 1_000);
        partition.appended(1_000);
        assert_eq!(partition.next_batch().unwrap().len(), 1);

        let mut partition = Partition::new(None);
        (0..3).for_each(|offset| partition.take(message(offset, 3 << 20)));
        partition.take(message(3, 10 << 20));
        for offset in 0..4 {
            assert_eq!(offsets(&partition.next_batch().unwrap()), [offset]);
            partition.appended(offset + 1);
        }
        assert_eq!(partition.held_bytes, 0);
        assert!(partition.is_idle());
    }

    #[test]
    fn a_partition_that_is_read_faster_than_translated_is_paused_and_resumed() {
        let mut partition = Partition::new(None);
        partition.take(message(0, 10));
        let _on_its_way = partition.next_batch();
        (1..=4_999).for_each(|offset| partition.take(message(offset, 10)));
        assert!(!partition.wants_pause());
        partition.take(message(5_000, 10));
        assert!(partition.wants_pause());
        partition.paused = true;
        let mut to = 1;
        while !partition.wants_resume() {
            partition.appended(to);
            to += i64::try_from(partition.next_batch().unwrap().len()).unwrap();
        }
        assert_eq!(partition.held.len(), 2_000);
    }

    #[test]
    fn a_rewound_partition_reads_from_what_is_stored() {
        let mut partition = Partition::new(Some(5));
        (5..9).for_each(|offset| partition.take(message(offset, 10)));
        let _refused = partition.next_batch();
        partition.rewind(Some(7));
        assert!(partition.is_idle());
        assert_eq!((partition.stored(), partition.offset()), (Some(7), Offset::Offset(7)));
        partition.rewind(None);
        assert_eq!(partition.offset(), Offset::Beginning);
    }
}
