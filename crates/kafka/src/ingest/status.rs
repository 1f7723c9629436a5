//! The state of a translator, for readiness and metrics.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rdkafka::error::KafkaError;

use super::source::Source;
use crate::client::{brokers::Brokers, connected::LastConnected};

/// The state of a translator: the reason why it waits, and how far it is.
pub(crate) struct Status {
    brokers: Brokers,
    group: String,
    state: Mutex<State>,
    last_connected: LastConnected,
}

#[derive(Default)]
struct State {
    /// Whether any broker is connected.
    connected: bool,
    /// Topics that the brokers lack. `None`: not known yet.
    missing_topics: Option<Vec<String>>,
    /// Whether the group has assigned partitions once.
    joined: bool,
    partitions: BTreeMap<Source, Progress>,
    /// The first offset of each partition and the offset after its last.
    ends: HashMap<Source, (i64, i64)>,
}

#[derive(Default)]
struct Progress {
    /// The next offset to translate. `None`: never translated.
    next: Option<i64>,
    /// Why its batch is not written yet.
    failure: Option<String>,
    /// Why it waits for an operator.
    blocked: Option<String>,
}

impl State {
    fn waiting(&self) -> Vec<String> {
        let waiting = |(source, progress): (&Source, &Progress)| {
            let why = progress.blocked.as_ref().or(progress.failure.as_ref())?;
            Some(format!("{source}: {why}"))
        };
        self.partitions.iter().filter_map(waiting).collect()
    }
}

impl Status {
    pub(crate) fn new(brokers: &Brokers, group: &str) -> Self {
        Self { brokers: brokers.clone(), group: group.to_owned(), state: Mutex::default(), last_connected: LastConnected::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connected(&self, connected: bool) {
        let before = std::mem::replace(&mut self.state().connected, connected);
        if connected {
            self.brokers.authentication.clear();
            self.last_connected.now();
        }
        match (before, connected) {
            (false, true) => tracing::info!(bootstrap_servers = self.brokers.bootstrap_servers, "connected to the brokers"),
            (true, false) => tracing::warn!(bootstrap_servers = self.brokers.bootstrap_servers, "disconnected from the brokers"),
            _ => {}
        }
    }

    /// A consumer was created. It has its own time to connect.
    pub(crate) fn created(&self) {
        self.last_connected.now();
    }

    /// Returns how long the consumer has had no broker.
    pub(crate) fn lost_for(&self) -> Duration {
        self.last_connected.lost_for()
    }

    /// Reads a line of librdkafka's log.
    pub(crate) fn read_log(&self, message: &str) {
        self.brokers.authentication.read_log(message);
    }

    /// Reads an error of the consumer.
    pub(crate) fn read_error(&self, error: &KafkaError, reason: &str) {
        self.brokers.authentication.read_error(error, reason);
    }

    pub(crate) fn missing_topics(&self, topics: Vec<String>) {
        self.state().missing_topics = Some(topics);
    }

    pub(crate) fn ends(&self, ends: HashMap<Source, (i64, i64)>) {
        self.state().ends = ends;
    }

    /// Replaces the partitions of this translator.
    pub(crate) fn assigned(&self, partitions: impl IntoIterator<Item = (Source, Option<i64>)>) {
        let mut state = self.state();
        state.joined = true;
        state.partitions = partitions.into_iter().map(|(source, next)| (source, Progress { next, ..Progress::default() })).collect();
    }

    pub(crate) fn revoked(&self) {
        self.state().partitions.clear();
    }

    pub(crate) fn translated_to(&self, source: &Source, next: Option<i64>) {
        if let Some(progress) = self.state().partitions.get_mut(source) {
            progress.next = next;
            progress.failure = None;
        }
    }

    /// Records that a batch was not written. Returns whether the reason is new.
    pub(crate) fn failed(&self, source: &Source, why: &str) -> bool {
        let mut state = self.state();
        let Some(progress) = state.partitions.get_mut(source) else { return false };
        let is_new = progress.failure.as_deref() != Some(why);
        progress.failure = Some(why.to_owned());
        is_new
    }

    pub(crate) fn block(&self, source: &Source, why: Option<String>) {
        if let Some(progress) = self.state().partitions.get_mut(source) {
            progress.blocked = why;
        }
    }

    pub(crate) fn ready(&self) -> Result<(), String> {
        let state = self.state();
        if !state.connected {
            return Err(format!("the broker at {}{}", self.brokers.bootstrap_servers, self.brokers.authentication));
        }
        match state.missing_topics.as_deref() {
            None => return Err("the brokers' list of topics".into()),
            Some([]) => {}
            Some([topic]) => return Err(format!("the topic {topic}, which does not exist")),
            Some(topics) => return Err(format!("the topics {}, which do not exist", topics.join(", "))),
        }
        if !state.joined {
            return Err(format!("the consumer group {}", self.group));
        }
        // One partition is an operator's matter. A process whose partitions all wait does no work.
        let waiting = state.waiting();
        if waiting.is_empty() || waiting.len() < state.partitions.len() { Ok(()) } else { Err(waiting.join("; ")) }
    }

    /// Returns what each partition waits for that is not being translated.
    pub(crate) fn waiting(&self) -> Vec<String> {
        self.state().waiting()
    }

    /// Returns the first offset of each partition and the offset after its last, as the brokers last said.
    pub(crate) fn known_ends(&self) -> HashMap<Source, (i64, i64)> {
        self.state().ends.clone()
    }

    /// Returns the lag of each partition, by topic and number.
    pub(crate) fn lags(&self) -> Vec<(String, i32, i64)> {
        let state = self.state();
        let lag = |(source, progress): (&Source, &Progress)| {
            let (first, end) = *state.ends.get(source)?;
            Some((source.topic.to_string(), source.partition, (end - progress.next.unwrap_or(first)).max(0)))
        };
        state.partitions.iter().filter_map(lag).collect()
    }

    /// Returns 1 for each partition that waits for an operator and 0 for the others, by topic and number.
    pub(crate) fn blocked(&self) -> Vec<(String, i32, i64)> {
        let state = self.state();
        state
            .partitions
            .iter()
            .map(|(source, progress)| (source.topic.to_string(), source.partition, i64::from(progress.blocked.is_some())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_says_what_the_translator_waits_for() {
        let (status, source) = (Status::new(&Brokers::new("broker:9092", "test"), "counters"), Source::new("counts", 3));
        assert_eq!(status.ready(), Err("the broker at broker:9092".into()));
        status.connected(true);
        status.missing_topics(vec!["counts.dead-letters".into()]);
        assert_eq!(status.ready(), Err("the topic counts.dead-letters, which does not exist".into()));
        status.missing_topics(vec![]);
        assert_eq!(status.ready(), Err("the consumer group counters".into()));
        status.assigned([(source.clone(), Some(7))]);
        assert_eq!(status.ready(), Ok(()));
        assert!(status.failed(&source, "the log is not reachable"));
        assert!(!status.failed(&source, "the log is not reachable"), "not new");
        assert_eq!(status.ready(), Err("counts/3: the log is not reachable".into()));
        status.translated_to(&source, Some(9));
        assert_eq!(status.ready(), Ok(()));
        status.block(&source, Some("out of range".into()));
        assert_eq!(status.ready(), Err("counts/3: out of range".into()));
        assert_eq!(status.blocked(), [("counts".into(), 3, 1)]);

        status.ends([(source, (2, 12))].into());
        assert_eq!(status.lags(), [("counts".into(), 3, 3)]);
        status.revoked();
        assert_eq!(status.lags(), []);
    }

    #[test]
    fn one_partition_does_not_decide_readiness() {
        let (status, one) = (Status::new(&Brokers::new("broker:9092", "test"), "counters"), Source::new("counts", 1));
        status.connected(true);
        status.missing_topics(vec![]);
        let two = Source::new("counts", 2);
        status.assigned([(one.clone(), None), (two.clone(), None)]);
        status.block(&one, Some("out of range".into()));
        assert_eq!((status.ready(), status.waiting()), (Ok(()), vec!["counts/1: out of range".to_owned()]));
        status.failed(&two, "the log is not reachable");
        assert_eq!(status.ready(), Err("counts/1: out of range; counts/2: the log is not reachable".into()));
    }
}
