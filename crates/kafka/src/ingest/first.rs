//! The first message from an offset on, read beside the translator's consumer.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    topic_partition_list::Offset,
};

use super::{output::Gap, received::Received};
use crate::client::context::ClientLog;

/// How long the first messages of a topic may take.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads the first message of each partition of a topic from an offset on; blocks. `None`: there is none up to the partition's end. A
/// partition whose leader does not answer in time is missing.
pub(crate) fn first_messages(
    consumer: &BaseConsumer<ClientLog>,
    topic: &str,
    from: &BTreeMap<i32, i64>,
) -> KafkaResult<BTreeMap<i32, Option<Received>>> {
    let mut found = BTreeMap::new();
    read(consumer, topic, from, |partition, first| {
        let message = if let First::Message(message) = first { Some(*message) } else { None };
        found.insert(partition, message);
    })?;
    Ok(found)
}

/// Returns what lies before the next message of a partition, from an offset on to the partition's end, and where it ends; blocks. `None`: a
/// message, or the broker does not answer in time.
pub(crate) fn gap(consumer: &BaseConsumer<ClientLog>, topic: &str, partition: i32, from: i64) -> KafkaResult<Option<(i64, Gap)>> {
    // The end comes first: what is written while the gap is read lies behind it.
    let (_, end) = consumer.fetch_watermarks(topic, partition, FIRST_TIMEOUT)?;
    let first = |at| {
        let mut found = None;
        read(consumer, topic, &BTreeMap::from([(partition, at)]), |_, first| found = Some(first))?;
        KafkaResult::Ok(found)
    };
    match first(from)? {
        Some(First::End) if end > from => Ok(Some((end, Gap::Empty))),
        Some(First::Unreadable(error)) => {
            // Messages are compressed together, and only their first offset is known. Reading from any of them fails.
            let is_readable = |at| Ok::<_, KafkaError>(!matches!(first(at)?, None | Some(First::Unreadable(_))));
            let (mut unreadable, mut step) = (from, 1);
            while unreadable + step < end && !is_readable(unreadable + step)? {
                (unreadable, step) = (unreadable + step, step * 2);
            }
            let mut readable = (unreadable + step).min(end);
            while readable - unreadable > 1 {
                let middle = unreadable + (readable - unreadable) / 2;
                if is_readable(middle)? { readable = middle } else { unreadable = middle }
            }
            Ok(Some((readable, Gap::Unreadable(error.to_string()))))
        }
        _ => Ok(None),
    }
}

enum First {
    Message(Box<Received>),
    End,
    Unreadable(RDKafkaErrorCode),
}

/// Reads each partition until its first message, its end, or, if it is the only one, an error that says that it is unreadable.
fn read(consumer: &BaseConsumer<ClientLog>, topic: &str, from: &BTreeMap<i32, i64>, mut each: impl FnMut(i32, First)) -> KafkaResult<()> {
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from {
        assignment.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    // The reading before may have left messages behind.
    while consumer.poll(Duration::ZERO).is_some() {}
    consumer.assign(&assignment)?;
    let (mut unread, started) = (from.clone(), Instant::now());
    while !unread.is_empty() && started.elapsed() < FIRST_TIMEOUT {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let message = Received::of(&message);
                let partition = message.source.partition;
                if *message.source.topic == *topic && unread.remove(&partition).is_some() {
                    each(partition, First::Message(Box::new(message)));
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) if unread.remove(&partition).is_some() => each(partition, First::End),
            Some(Err(error)) => {
                if let (Some(code @ (RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::BadMessage)), Some((partition, _)), 1) =
                    (error.rdkafka_error_code(), unread.first_key_value(), from.len())
                {
                    each(*partition, First::Unreadable(code));
                    break;
                }
            }
            None => {}
        }
    }
    consumer.unassign()
}
