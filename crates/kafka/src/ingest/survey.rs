//! Changes of partitions that no event announces: offsets that an operator set, topics that were created again, and the ends of
//! transactions behind the last message.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use event_store::{LogEvent, NextOffset, SourceMessage, StoreError};
use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, KafkaResult},
};

use super::{
    first::{first_messages, gap},
    output::{Gap, Worker},
    source::Source,
};
use crate::client::{context::ClientLog, error::causes, inspect::Inspector};

/// How long a question about a partition's ends may take.
const ENDS_TIMEOUT: Duration = Duration::from_secs(3);

/// A question of a survey about a partition.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) source: Source,
    /// The next offset to read when the survey started.
    pub(crate) next: Option<i64>,
    /// The stored offset that the next batch expects.
    pub(crate) stored: Option<i64>,
    /// A message that was read. The survey compares it with the topic's message at that offset.
    pub(crate) anchor: Option<SourceMessage>,
    /// The last message that was read.
    pub(crate) last: Option<SourceMessage>,
    /// Whether the partition's ends are asked for.
    pub(crate) wants_ends: bool,
    /// Whether the partition has something behind the next offset that the consumer does not read.
    pub(crate) wants_gap: bool,
}

/// The result of a survey for a partition.
#[derive(Debug)]
pub(crate) struct Surveyed {
    pub(crate) question: Question,
    pub(crate) stored: Option<NextOffset>,
    /// The partition's first offset and the one after its last.
    pub(crate) ends: Option<(i64, i64)>,
    /// Whether the topic has the anchor. `None`: it was not compared.
    pub(crate) compared: Option<Compared>,
    /// The gap before the next message, and where it ends.
    pub(crate) gap: Option<(i64, Gap)>,
}

/// The comparison of a message that was read with the topic's message at its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    /// It is the same one, or retention or compaction deleted it.
    Same,
    /// It is another one: the topic was created again.
    Replaced {
        /// The offset of both.
        at: i64,
    },
}

/// Surveys partitions. A question without an answer stays `None`.
pub(crate) async fn survey<E: LogEvent>(worker: &Worker<E>, inspector: &Inspector, questions: Vec<Question>) -> Vec<Surveyed> {
    let mut stored = match stored_offsets(worker).await {
        Ok(stored) => stored,
        Err(error) => {
            tracing::debug!(error = causes(&error), "partitions not surveyed");
            return vec![];
        }
    };
    let surveyed = |question: Question| {
        let stored = stored.remove(&question.source);
        Surveyed { question, stored, ends: None, compared: None, gap: None }
    };
    let mut surveyed: Vec<_> = questions.into_iter().map(surveyed).collect();
    let asks = |one: &Surveyed| one.question.wants_ends || one.question.wants_gap || one.question.anchor.is_some();
    if !surveyed.iter().any(asks) {
        return surveyed;
    }
    let asked = inspector.ask(move |consumer| {
        let anchors = surveyed.iter().filter_map(|one| Some((one.question.source.clone(), one.question.anchor.clone()?)));
        let mut failure = None;
        let compared = compare(consumer, anchors, &mut failure)?;
        for one in &mut surveyed {
            one.compared = compared.get(&one.question.source).copied();
            look(consumer, one, &mut failure);
        }
        let is_answered = surveyed.iter().any(|one| one.compared.is_some() || one.ends.is_some());
        // A partition without a leader is asked for again. If no partition is answered, the client may need to be replaced.
        failure.filter(|_| !is_answered).map_or(Ok(surveyed), Err)
    });
    asked.await.unwrap_or_else(|error| {
        tracing::debug!(error = causes(&error), "partitions not surveyed");
        vec![]
    })
}

/// Compares messages that were read with those that the topics have at their offsets. Partitions whose leader does not answer are missing.
fn compare(
    consumer: &BaseConsumer<ClientLog>,
    last: impl Iterator<Item = (Source, SourceMessage)>,
    failure: &mut Option<KafkaError>,
) -> KafkaResult<HashMap<Source, Compared>> {
    let mut compared = HashMap::new();
    let mut by_topic: BTreeMap<String, BTreeMap<i32, SourceMessage>> = BTreeMap::new();
    for (source, message) in last {
        match consumer.fetch_watermarks(&source.topic, source.partition, ENDS_TIMEOUT) {
            Ok((low, high)) if (low..high).contains(&message.offset) => {
                by_topic.entry(source.topic.to_string()).or_default().insert(source.partition, message);
            }
            // Retention has deleted the message. There is nothing to compare with.
            Ok((low, _)) if low > message.offset => drop(compared.insert(source, Compared::Same)),
            // The partition ends before the message, so the stored offset is out of range.
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%source, %error, "partition not surveyed");
                *failure = Some(error);
            }
        }
    }
    for (topic, last) in by_topic {
        let offsets = last.iter().map(|(partition, last)| (*partition, last.offset)).collect();
        let found = first_messages(consumer, &topic, &offsets)?;
        for (partition, last) in last {
            let outcome = match found.get(&partition) {
                Some(Some(message)) if message.offset == last.offset && message.recognised() != last => {
                    Compared::Replaced { at: last.offset }
                }
                // Compaction may have deleted the message, too.
                Some(_) => Compared::Same,
                None => continue,
            };
            compared.insert(Source::new(&topic, partition), outcome);
        }
    }
    Ok(compared)
}

/// Reads the ends of a partition, and what lies before its next message.
fn look(consumer: &BaseConsumer<ClientLog>, one: &mut Surveyed, failure: &mut Option<KafkaError>) {
    let Question { source, next, wants_ends, wants_gap, .. } = &one.question;
    if !wants_ends && !wants_gap {
        return;
    }
    match consumer.fetch_watermarks(&source.topic, source.partition, ENDS_TIMEOUT) {
        Ok(ends) => one.ends = Some(ends),
        Err(error) => {
            tracing::debug!(%source, %error, "partition not surveyed");
            *failure = Some(error);
            return;
        }
    }
    if let (true, Some((low, _))) = (wants_gap, one.ends) {
        match gap(consumer, &source.topic, source.partition, next.unwrap_or(low)) {
            Ok(gap) => one.gap = gap,
            Err(error) => tracing::debug!(%source, %error, "partition not surveyed"),
        }
    }
}

/// Reads the stored offsets of the worker's topics.
pub(crate) async fn stored_offsets<E: LogEvent>(worker: &Worker<E>) -> Result<HashMap<Source, NextOffset>, StoreError> {
    let mut offsets = HashMap::new();
    for topic in worker.translations.keys() {
        let stored = worker.store.stored_offsets(&worker.group, topic).await?;
        offsets.extend(stored.into_iter().map(|(partition, offset)| (Source::new(topic, partition), offset)));
    }
    Ok(offsets)
}
