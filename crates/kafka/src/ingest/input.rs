//! The consumer's place in its group.

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

/// What the group decided.
pub(crate) enum Rebalance {
    /// These partitions are this consumer's. It reads none of them until the stored offsets are put into the assignment.
    Assigned(Vec<Source>),
    /// None is.
    Revoked,
}

/// What librdkafka calls.
pub(crate) struct Group {
    pub(crate) rebalances: mpsc::UnboundedSender<Rebalance>,
    pub(crate) status: Arc<Status>,
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        // The stored offsets are in the database, which may be away: too long a wait for a callback. So nothing is read at first, and the
        // translator assigns the partitions, with their offsets, when it has them.
        let (rebalance, done) = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let sources = partitions.elements().iter().map(|element| Source::new(element.topic(), element.partition())).collect();
                (Rebalance::Assigned(sources), consumer.assign(&TopicPartitionList::new()))
            }
            _ => (Rebalance::Revoked, consumer.unassign()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "the consumer did not take its assignment");
        }
        // The other end is gone only when the translator stops.
        let _ = self.rebalances.send(rebalance);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        // For lag tools only: where to read on stands in the log.
        if let Err(error) = result {
            tracing::debug!(%error, "offsets were not committed to Kafka");
        }
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
        self.status.logged(message);
    }

    fn stats(&self, statistics: Statistics) {
        connection("consumer", &statistics);
        self.status.connected(is_connected(&statistics));
        let ends: HashMap<_, _> = statistics
            .topics
            .iter()
            .flat_map(|(topic, found)| found.partitions.values().map(move |partition| (topic, partition)))
            // Offsets not heard of yet are negative.
            .filter(|(_, partition)| partition.partition >= 0 && partition.lo_offset >= 0 && partition.ls_offset >= 0)
            .map(|(topic, partition)| (Source::new(topic, partition.partition), (partition.lo_offset, partition.ls_offset)))
            .collect();
        self.status.ends(ends);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Each comes out of the stream of messages as well, where it is acted upon.
        self.status.heard(&error, reason);
    }
}
