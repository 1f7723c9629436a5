//! How far the translators of a group are behind, all of them together.

use std::collections::{BTreeMap, HashMap};

use event_store::{EventStore, LogEvent, StoreError, stored_offsets};

use crate::client::inspect::{InspectError, Inspector, ends};

/// How far the translators of a group are behind on a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicLag {
    /// Offsets that are not translated yet.
    pub lag: i64,
    /// Its partitions, which is the largest number of translators that can share it.
    pub partitions: usize,
}

/// The lag could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LagError {
    /// The log did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The brokers did not answer.
    #[error(transparent)]
    Brokers(#[from] InspectError),
}

/// Compares the stored offsets of a group with the ends of its topics.
///
/// # Errors
/// If the log or the brokers do not answer.
pub async fn lags<E: LogEvent>(
    inspector: &Inspector,
    store: &EventStore<E>,
    group: &str,
    topics: Vec<String>,
) -> Result<BTreeMap<String, TopicLag>, LagError> {
    let stored = stored_offsets(store.pool()).await?;
    let stored: HashMap<_, _> =
        stored.into_iter().filter(|one| one.group == group).map(|one| ((one.topic, one.partition), one.next_offset)).collect();
    let ends = inspector.ask(move |consumer| {
        topics.into_iter().map(|topic| ends(consumer, &topic).map(|ends| (topic, ends))).collect::<Result<Vec<_>, _>>()
    });
    let lag = |(topic, ends): (String, BTreeMap<i32, (i64, i64)>)| {
        // A partition that was never translated is translated from its beginning.
        let lag = |(partition, (low, high)): (&i32, &(i64, i64))| {
            (high - stored.get(&(topic.clone(), *partition)).copied().unwrap_or(*low)).max(0)
        };
        let lag = TopicLag { lag: ends.iter().map(lag).sum(), partitions: ends.len() };
        (topic, lag)
    };
    Ok(ends.await?.into_iter().map(lag).collect())
}
