//! The messages of a partition between the consumer and the log.

use std::collections::VecDeque;

use event_store::{NextOffset, SourceMessage};
use rdkafka::Offset;

use super::{blocked::Blocked, received::Received};

/// The limits of a batch and of the queue behind it, in messages. Above the upper limit of the queue the consumer pauses, below the lower one
/// it resumes. A pause discards what librdkafka has fetched ahead, so it must be rare.
const BATCH_MESSAGES: usize = 1_000;
const MAX_QUEUED_MESSAGES: usize = 5_000;
const MIN_QUEUED_MESSAGES: usize = 2_000;
/// The limit of memory for all partitions of a process, in bytes. Each may hold its share, in its batch and again in its queue.
const HELD_BYTES: usize = 16 << 20;
/// The limits of a share, in bytes.
const MIN_SHARE: usize = 128 << 10;
const MAX_SHARE: usize = 4 << 20;

/// Returns the share of each partition of a process.
pub(crate) fn share(partitions: usize) -> usize {
    (HELD_BYTES / 2 / partitions.max(1)).clamp(MIN_SHARE, MAX_SHARE)
}

/// A partition's stored offset, and the messages read after it.
pub(crate) struct Partition {
    /// The offset in the log, which the next batch moves. `None`: never translated.
    stored: Option<i64>,
    /// The last message before it that was read, if it is known.
    last: Option<SourceMessage>,
    /// The lowest offset that is new. `None`: any.
    expected: Option<i64>,
    queue: VecDeque<Received>,
    queued_bytes: usize,
    /// The limit of a batch and of the queue, in bytes.
    share: usize,
    /// A batch is being written.
    pub(crate) is_writing: bool,
    /// The consumer does not fetch.
    pub(crate) is_paused: bool,
    /// The newest message that was compared with the topic's own. If the topic is created again under a running consumer, it has another
    /// message at this offset. `None`: there is nothing to compare.
    anchor: Option<SourceMessage>,
    /// Whether the anchor was compared, so that the topic is known to be the one that was read before.
    is_compared: bool,
    /// The consumer waits at messages that it cannot read.
    pub(crate) is_stuck: bool,
    /// The partition waits for an operator.
    pub(crate) blocked: Option<Blocked>,
    /// The next offset to read when the partition was last surveyed.
    pub(crate) rested_at: Option<i64>,
}

impl Partition {
    pub(crate) fn new(stored: Option<NextOffset>, share: usize) -> Self {
        let (stored, last) = stored.map_or((None, None), |stored| (Some(stored.offset), stored.last));
        Self {
            is_compared: last.is_none(),
            anchor: last.clone(),
            is_stuck: false,
            stored,
            last,
            expected: stored,
            queue: VecDeque::new(),
            queued_bytes: 0,
            share,
            is_writing: false,
            is_paused: false,
            blocked: None,
            rested_at: None,
        }
    }

    pub(crate) fn stored(&self) -> Option<i64> {
        self.stored
    }

    /// Returns the last message before the stored offset that was read.
    pub(crate) fn last(&self) -> Option<&SourceMessage> {
        self.last.as_ref()
    }

    /// Returns the message to compare with the one that the topic has at its offset.
    pub(crate) fn anchor(&self) -> Option<&SourceMessage> {
        self.anchor.as_ref()
    }

    /// The anchor was compared and is the same, and `next` was read before that. Returns whether the partition may be read from now on.
    pub(crate) fn compared(&mut self, next: Option<SourceMessage>) -> bool {
        self.anchor = next;
        !std::mem::replace(&mut self.is_compared, true)
    }

    /// Returns whether the anchor was compared since the partition was assigned.
    pub(crate) fn is_compared(&self) -> bool {
        self.is_compared
    }

    /// Returns the next offset to read.
    pub(crate) fn next_to_read(&self) -> Option<i64> {
        self.expected
    }

    /// Returns the next offset to read, for librdkafka. A partition that was never translated is read from its beginning.
    pub(crate) fn offset(&self) -> Offset {
        self.expected.map_or(Offset::Beginning, Offset::Offset)
    }

    /// Returns whether the consumer may read it.
    pub(crate) fn may_be_read(&self) -> bool {
        self.blocked.is_none() && self.is_compared
    }

    /// Queues a message, unless it was queued before.
    pub(crate) fn take(&mut self, message: Received) {
        if !self.may_be_read() || self.expected.is_some_and(|expected| message.offset < expected) {
            return;
        }
        self.expected = Some(message.offset + 1);
        self.queued_bytes += message.bytes();
        self.queue.push_back(message);
    }

    /// Takes the next batch, unless one is being written or the queue is empty.
    pub(crate) fn next_batch(&mut self) -> Option<Vec<Received>> {
        if self.is_writing || self.queue.is_empty() {
            return None;
        }
        let (mut batch, mut bytes) = (vec![], 0);
        while let Some(message) = self.queue.pop_front() {
            let size = message.bytes();
            if !batch.is_empty() && (batch.len() == BATCH_MESSAGES || bytes + size > self.share) {
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

    /// Stores the offset of a batch that was written, and its last message.
    pub(crate) fn written(&mut self, to: i64, last: Option<SourceMessage>) {
        self.is_writing = false;
        self.stored = Some(to);
        self.expected = self.expected.max(Some(to));
        self.last = last.or(self.last.take());
        if self.anchor.is_none() {
            self.anchor.clone_from(&self.last);
        }
    }

    /// Drops the queue and reads again from the stored offset, which differs from the expected one.
    pub(crate) fn rewind(&mut self, stored: Option<NextOffset>) {
        *self = Self { blocked: self.blocked.take(), is_paused: self.is_paused, ..Self::new(stored, self.share) };
    }

    /// Stops until an operator sets an offset, and drops the queue.
    pub(crate) fn block(&mut self, why: Blocked) {
        self.blocked = Some(why);
        self.queue.clear();
        self.queued_bytes = 0;
    }

    /// Returns whether every message that was read is translated.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_writing && self.queue.is_empty()
    }

    pub(crate) fn wants_pause(&self) -> bool {
        !self.is_paused && (self.queue.len() >= MAX_QUEUED_MESSAGES || self.queued_bytes >= self.share)
    }

    pub(crate) fn wants_resume(&self) -> bool {
        self.is_paused && self.queue.len() <= MIN_QUEUED_MESSAGES && self.queued_bytes <= self.share / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::received::for_test as message;

    fn new(stored: Option<i64>) -> Partition {
        Partition::new(stored.map(NextOffset::from), MAX_SHARE)
    }

    fn offsets(batch: &[Received]) -> Vec<i64> {
        batch.iter().map(|message| message.offset).collect()
    }

    #[test]
    fn messages_queue_while_a_batch_is_written() {
        let mut partition = new(None);
        assert_eq!(partition.offset(), Offset::Beginning);
        partition.take(message(0, 10));
        assert_eq!(offsets(&partition.next_batch().unwrap()), [0]);
        // Offsets have gaps.
        partition.take(message(5, 10));
        partition.take(message(6, 10));
        assert!(partition.next_batch().is_none());
        partition.written(1, None);
        assert_eq!(partition.stored(), Some(1));
        assert_eq!(offsets(&partition.next_batch().unwrap()), [5, 6]);
        assert_eq!(partition.offset(), Offset::Offset(7));
    }

    #[test]
    fn message_seen_before_is_dropped() {
        let mut partition = new(Some(5));
        for offset in [3, 4, 5, 6, 5, 6, 7] {
            partition.take(message(offset, 10));
        }
        assert_eq!(offsets(&partition.next_batch().unwrap()), [5, 6, 7]);
    }

    #[test]
    fn batch_is_bounded_and_never_empty() {
        let mut partition = new(None);
        (0..1_001).for_each(|offset| partition.take(message(offset, 10)));
        assert_eq!(partition.next_batch().unwrap().len(), 1_000);
        partition.written(1_000, None);
        assert_eq!(partition.next_batch().unwrap().len(), 1);

        let mut partition = new(None);
        (0..3).for_each(|offset| partition.take(message(offset, 900_000)));
        partition.share = 1 << 20;
        for offset in 0..3 {
            assert_eq!(offsets(&partition.next_batch().unwrap()), [offset]);
            partition.written(offset + 1, None);
        }
        assert_eq!(partition.queued_bytes, 0);
        assert!(partition.is_idle());
    }

    #[test]
    fn full_queue_pauses_and_resumes() {
        let mut partition = new(None);
        partition.take(message(0, 10));
        let _being_written = partition.next_batch();
        (1..=4_999).for_each(|offset| partition.take(message(offset, 10)));
        assert!(!partition.wants_pause());
        partition.take(message(5_000, 10));
        assert!(partition.wants_pause());
        partition.is_paused = true;
        let mut to = 1;
        while !partition.wants_resume() {
            partition.written(to, None);
            to += i64::try_from(partition.next_batch().unwrap().len()).unwrap();
        }
        assert_eq!(partition.queue.len(), 2_000);
    }

    #[test]
    fn partitions_share_what_a_process_may_hold() {
        for partitions in [1, 2, 12, 60] {
            assert!(2 * partitions * share(partitions) <= HELD_BYTES, "{partitions}");
        }
        let mut partition = Partition::new(None, share(12));
        let mut held = 0;
        while !partition.wants_pause() {
            partition.take(message(held, 10_000));
            held += 1;
        }
        assert!(usize::try_from(held).unwrap() <= share(12) / 10_000 + 1, "{held}");
    }

    #[test]
    fn offset_moves_over_what_is_no_message() {
        let mut partition = new(Some(5));
        partition.take(message(5, 10));
        let last = partition.next_batch().unwrap()[0].recognised();
        partition.written(6, Some(last.clone()));
        partition.written(9, None);
        assert_eq!((partition.stored(), partition.offset(), partition.last()), (Some(9), Offset::Offset(9), Some(&last)));
    }

    #[test]
    fn rewound_partition_reads_from_the_stored_offset() {
        let mut partition = new(Some(5));
        (5..9).for_each(|offset| partition.take(message(offset, 10)));
        let _refused = partition.next_batch();
        partition.rewind(Some(7.into()));
        assert!(partition.is_idle());
        assert_eq!((partition.stored(), partition.offset()), (Some(7), Offset::Offset(7)));
        partition.rewind(None);
        assert_eq!(partition.offset(), Offset::Beginning);
    }
}
