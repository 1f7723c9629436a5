//! The consumer: what librdkafka reports to the translator.

use std::{collections::HashMap, sync::Arc};

use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use tokio::sync::mpsc;

use super::{source::Source, status::Status};
use crate::client::{
    context,
    metrics::{connection, is_connected},
};

/// A change of the consumer's partitions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The consumer has these partitions. It reads them when the stored offsets are in its assignment.
    Assigned(Vec<Source>),
    /// The consumer has no partition.
    Revoked,
    /// A topic was deleted and created again.
    Recreated {
        /// The topic.
        topic: String,
    },
}

impl Change {
    /// Reads a line of librdkafka's log. librdkafka continues with the new topic at the old one's offset, and tells it in no other way. It
    /// logs the line before it fetches from the new topic.
    fn read_log(line: &str) -> Option<Self> {
        let (topic, ids) = line.split_once(" changed id from ")?;
        let (_, topic) = topic.split_once("Topic ")?;
        let (before, _) = ids.split_once(" to ")?;
        // The id of a topic that was not known before is zero, in Base64.
        let is_known = before.contains(|digit| digit != 'A');
        is_known.then(|| Self::Recreated { topic: topic.to_owned() })
    }
}

/// Takes what librdkafka reports.
pub(crate) struct Group {
    pub(crate) changes: mpsc::UnboundedSender<Change>,
    pub(crate) status: Arc<Status>,
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        // The offsets are in the database, which may be away: too long a wait for a callback. The assignment is empty until the translator
        // has the offsets.
        let (change, done) = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let sources = partitions.elements().iter().map(|element| Source::new(element.topic(), element.partition())).collect();
                (Change::Assigned(sources), consumer.assign(&TopicPartitionList::new()))
            }
            _ => (Change::Revoked, consumer.unassign()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "assignment refused");
        }
        // The receiver is dropped only when the translator stops.
        let _ = self.changes.send(change);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        // For lag tools only: the log stores the offsets.
        if let Err(error) = result {
            tracing::debug!(%error, "offsets not committed to Kafka");
        }
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
        self.status.read_log(message);
        if let Some(change) = Change::read_log(message) {
            // As in a rebalance.
            let _ = self.changes.send(change);
        }
    }

    fn stats(&self, statistics: Statistics) {
        connection("consumer", &statistics);
        self.status.connected(is_connected(&statistics));
        let ends: HashMap<_, _> = statistics
            .topics
            .iter()
            .flat_map(|(topic, found)| found.partitions.values().map(move |partition| (topic, partition)))
            // Unknown offsets are negative.
            .filter(|(_, partition)| partition.partition >= 0 && partition.lo_offset >= 0 && partition.ls_offset >= 0)
            .map(|(topic, partition)| (Source::new(topic, partition.partition), (partition.lo_offset, partition.ls_offset)))
            .collect();
        self.status.ends(ends);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The stream of messages yields each error, too, and the translator handles it there.
        self.status.read_error(&error, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recreated_topic_is_read_from_the_log() {
        let line = "[thrd:main]: Topic counts changed id from pzVJ0hrDRDOCJt5mnHyAAA to 6JwdG3wOQ8GwX0XlNTcaBg";
        assert_eq!(Change::read_log(line), Some(Change::Recreated { topic: "counts".into() }));
        for other in [
            "[thrd:main]: Topic counts changed id from AAAAAAAAAAAAAAAAAAAAAA to pzVJ0hrDRDOCJt5mnHyAAA",
            "[thrd:main]: Topic counts partition 0 Leader 1 epoch 0",
        ] {
            assert_eq!(Change::read_log(other), None);
        }
    }
}
