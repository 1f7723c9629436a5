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

/// A decision of the consumer group.
pub(crate) enum Rebalance {
    /// The consumer has these partitions. It reads them when the stored offsets are in its assignment.
    Assigned(Vec<Source>),
    /// The consumer has no partition.
    Revoked,
}

/// Takes what librdkafka reports.
pub(crate) struct Group {
    pub(crate) rebalances: mpsc::UnboundedSender<Rebalance>,
    pub(crate) status: Arc<Status>,
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        // The offsets are in the database, which may be away: too long a wait for a callback. The assignment is empty until the translator
        // has the offsets.
        let (rebalance, done) = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let sources = partitions.elements().iter().map(|element| Source::new(element.topic(), element.partition())).collect();
                (Rebalance::Assigned(sources), consumer.assign(&TopicPartitionList::new()))
            }
            _ => (Rebalance::Revoked, consumer.unassign()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "assignment refused");
        }
        // The receiver is dropped only when the translator stops.
        let _ = self.rebalances.send(rebalance);
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
