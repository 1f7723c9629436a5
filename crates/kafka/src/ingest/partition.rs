//! The messages of a partition between the consumer and the log.

use std::collections::VecDeque;

use rdkafka::{Message as _, Offset, message::OwnedMessage};

use super::out_of_range::OutOfRange;

/// The limits of a batch.
const BATCH_MESSAGES: usize = 1_000;
const BATCH_BYTES: usize = 4 << 20;
/// The limits of the queue while a batch is being written. Above the upper limit the consumer pauses, below the lower one it resumes. A
/// pause discards what librdkafka has fetched ahead, so it must be rare.
const MAX_QUEUED_MESSAGES: usize = 5_000;
const MAX_QUEUED_BYTES: usize = 4 << 20;
const MIN_QUEUED_MESSAGES: usize = 2_000;
const MIN_QUEUED_BYTES: usize = 1 << 20;
/// The approximate size of a message without its key and value, in bytes.
const MESSAGE_OVERHEAD: usize = 200;

/// A partition's stored offset, and the messages read after it.
#[derive(Default)]
pub(crate) struct Partition {
    /// The offset in the log, which the next batch moves. `None`: never translated.
    stored: Option<i64>,
    /// The lowest offset that is new. `None`: any.
    expected: Option<i64>,
    queue: VecDeque<OwnedMessage>,
    queued_bytes: usize,
    /// A batch is being written.
    pub(crate) is_writing: bool,
    /// The consumer does not fetch.
    pub(crate) is_paused: bool,
    /// The partition waits for an operator.
    pub(crate) blocked: Option<OutOfRange>,
}

impl Partition {
    pub(crate) fn new(stored: Option<i64>) -> Self {
        Self { stored, expected: stored, ..Self::default() }
    }

    pub(crate) fn stored(&self) -> Option<i64> {
        self.stored
    }

    /// Answers the next offset to read.
    pub(crate) fn next_to_read(&self) -> Option<i64> {
        self.expected
    }

    /// Answers the next offset to read, for librdkafka. A partition that was never translated is read from its beginning.
    pub(crate) fn offset(&self) -> Offset {
        self.expected.map_or(Offset::Beginning, Offset::Offset)
    }

    /// Queues a message, unless it was queued before.
    pub(crate) fn take(&mut self, message: OwnedMessage) {
        if self.blocked.is_some() || self.expected.is_some_and(|expected| message.offset() < expected) {
            return;
        }
        self.expected = Some(message.offset() + 1);
        self.queued_bytes += size(&message);
        self.queue.push_back(message);
    }

    /// Takes the next batch, unless one is being written or the queue is empty.
    pub(crate) fn next_batch(&mut self) -> Option<Vec<OwnedMessage>> {
        if self.is_writing || self.queue.is_empty() {
            return None;
        }
        let (mut batch, mut bytes) = (vec![], 0);
        while let Some(message) = self.queue.pop_front() {
            let size = size(&message);
            if !batch.is_empty() && (batch.len() == BATCH_MESSAGES || bytes + size > BATCH_BYTES) {
                self.queue.push_front(message);
                break;
            }
            bytes += size;
            batch.push(message);
        }
        self.queued_bytes -= bytes;
        self.is_writing = true;
        Some(batch)
    }

    /// Stores the offset of a batch that was written.
    pub(crate) fn written(&mut self, to: i64) {
        self.is_writing = false;
        self.stored = Some(to);
    }

    /// Drops the queue and reads again from the stored offset, which differs from the expected one.
    pub(crate) fn rewind(&mut self, stored: Option<i64>) {
        *self = Self { blocked: self.blocked.take(), is_paused: self.is_paused, ..Self::new(stored) };
    }

    /// Answers whether every message that was read is translated.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_writing && self.queue.is_empty()
    }

    pub(crate) fn wants_pause(&self) -> bool {
        !self.is_paused && (self.queue.len() >= MAX_QUEUED_MESSAGES || self.queued_bytes >= MAX_QUEUED_BYTES)
    }

    pub(crate) fn wants_resume(&self) -> bool {
        self.is_paused && self.queue.len() <= MIN_QUEUED_MESSAGES && self.queued_bytes <= MIN_QUEUED_BYTES
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
    fn messages_queue_while_a_batch_is_written() {
        let mut partition = Partition::new(None);
        assert_eq!(partition.offset(), Offset::Beginning);
        partition.take(message(0, 10));
        assert_eq!(offsets(&partition.next_batch().unwrap()), [0]);
        // Offsets have gaps.
        partition.take(message(5, 10));
        partition.take(message(6, 10));
        assert!(partition.next_batch().is_none());
        partition.written(1);
        assert_eq!(partition.stored(), Some(1));
        assert_eq!(offsets(&partition.next_batch().unwrap()), [5, 6]);
        assert_eq!(partition.offset(), Offset::Offset(7));
    }

    #[test]
    fn message_seen_before_is_dropped() {
        let mut partition = Partition::new(Some(5));
        for offset in [3, 4, 5, 6, 5, 6, 7] {
            partition.take(message(offset, 10));
        }
        assert_eq!(offsets(&partition.next_batch().unwrap()), [5, 6, 7]);
    }

    #[test]
    fn batch_is_bounded_and_never_empty() {
        let mut partition = Partition::new(None);
        (0..1_001).for_each(|offset| partition.take(message(offset, 10)));
        assert_eq!(partition.next_batch().unwrap().len(), 1_000);
        partition.written(1_000);
        assert_eq!(partition.next_batch().unwrap().len(), 1);

        let mut partition = Partition::new(None);
        (0..3).for_each(|offset| partition.take(message(offset, 3 << 20)));
        partition.take(message(3, 10 << 20));
        for offset in 0..4 {
            assert_eq!(offsets(&partition.next_batch().unwrap()), [offset]);
            partition.written(offset + 1);
        }
        assert_eq!(partition.queued_bytes, 0);
        assert!(partition.is_idle());
    }

    #[test]
    fn full_queue_pauses_and_resumes() {
        let mut partition = Partition::new(None);
        partition.take(message(0, 10));
        let _being_written = partition.next_batch();
        (1..=4_999).for_each(|offset| partition.take(message(offset, 10)));
        assert!(!partition.wants_pause());
        partition.take(message(5_000, 10));
        assert!(partition.wants_pause());
        partition.is_paused = true;
        let mut to = 1;
        while !partition.wants_resume() {
            partition.written(to);
            to += i64::try_from(partition.next_batch().unwrap().len()).unwrap();
        }
        assert_eq!(partition.queue.len(), 2_000);
    }

    #[test]
    fn rewound_partition_reads_from_the_stored_offset() {
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
