//! What the translator waits for, and how far it is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rdkafka::error::KafkaError;

use super::source::Source;
use crate::client::brokers::Brokers;

/// Written by the translator's parts, read by readiness and metrics.
pub(crate) struct Status {
    brokers: Brokers,
    group: String,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// Whether any broker is connected.
    connected: bool,
    /// Topics that the brokers do not have; unknown at first.
    missing_topics: Option<Vec<String>>,
    /// Whether the group has told this consumer its partitions, once.
    joined: bool,
    partitions: BTreeMap<Source, Progress>,
    /// A partition's first offset and the one after its last, as last heard of.
    ends: HashMap<Source, (i64, i64)>,
}

#[derive(Default)]
struct Progress {
    /// The offset of the next message to translate, where there is one.
    next: Option<i64>,
    /// Why its batch is not in the log yet.
    trouble: Option<String>,
    /// Why it waits for an operator.
    stopped: Option<String>,
}

impl Status {
    pub(crate) fn new(brokers: &Brokers, group: &str) -> Self {
        Self { brokers: brokers.clone(), group: group.to_owned(), now: Mutex::default() }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connected(&self, connected: bool) {
        let before = std::mem::replace(&mut self.now().connected, connected);
        if connected {
            self.brokers.refusal.let_in();
        }
        match (before, connected) {
            (false, true) => tracing::info!(bootstrap_servers = self.brokers.bootstrap_servers, "connected to the brokers"),
            (true, false) => tracing::warn!(bootstrap_servers = self.brokers.bootstrap_servers, "no broker is connected any more"),
            _ => {}
        }
    }

    /// As librdkafka says it.
    pub(crate) fn logged(&self, message: &str) {
        self.brokers.refusal.logged(message);
    }

    /// The consumer was told of an error.
    pub(crate) fn heard(&self, error: &KafkaError, reason: &str) {
        self.brokers.refusal.heard(error, reason);
    }

    pub(crate) fn missing_topics(&self, topics: Vec<String>) {
        self.now().missing_topics = Some(topics);
    }

    pub(crate) fn ends(&self, ends: HashMap<Source, (i64, i64)>) {
        self.now().ends = ends;
    }

    /// These are this translator's partitions from now on.
    pub(crate) fn assigned(&self, partitions: impl IntoIterator<Item = (Source, Option<i64>)>) {
        let mut now = self.now();
        now.joined = true;
        now.partitions = partitions.into_iter().map(|(source, next)| (source, Progress { next, ..Progress::default() })).collect();
    }

    pub(crate) fn revoked(&self) {
        self.now().partitions.clear();
    }

    pub(crate) fn translated_to(&self, source: &Source, next: Option<i64>) {
        if let Some(progress) = self.now().partitions.get_mut(source) {
            progress.next = next;
            progress.trouble = None;
        }
    }

    /// A batch could not be written. Answers whether that is news.
    pub(crate) fn trouble(&self, source: &Source, why: &str) -> bool {
        let mut now = self.now();
        let Some(progress) = now.partitions.get_mut(source) else { return false };
        let news = progress.trouble.as_deref() != Some(why);
        progress.trouble = Some(why.to_owned());
        news
    }

    pub(crate) fn stop(&self, source: &Source, why: Option<String>) {
        if let Some(progress) = self.now().partitions.get_mut(source) {
            progress.stopped = why;
        }
    }

    pub(crate) fn ready(&self) -> Result<(), String> {
        let now = self.now();
        if !now.connected {
            return Err(format!("the broker at {}{}", self.brokers.bootstrap_servers, self.brokers.refusal));
        }
        match now.missing_topics.as_deref() {
            None => return Err("the brokers' list of topics".into()),
            Some([]) => {}
            Some([topic]) => return Err(format!("the topic {topic}, which does not exist")),
            Some(topics) => return Err(format!("the topics {}, which do not exist", topics.join(", "))),
        }
        if !now.joined {
            return Err(format!("its place in the consumer group {}", self.group));
        }
        let waiting: Vec<_> = now
            .partitions
            .iter()
            .filter_map(|(source, progress)| {
                let why = progress.stopped.as_ref().or(progress.trouble.as_ref())?;
                Some(format!("{source}: {why}"))
            })
            .collect();
        if waiting.is_empty() { Ok(()) } else { Err(waiting.join("; ")) }
    }

    /// By topic and partition, the offsets that are still to be translated.
    pub(crate) fn lags(&self) -> Vec<(String, i32, i64)> {
        let now = self.now();
        let lag = |(source, progress): (&Source, &Progress)| {
            let (first, end) = *now.ends.get(source)?;
            Some((source.topic.to_string(), source.partition, (end - progress.next.unwrap_or(first)).max(0)))
        };
        now.partitions.iter().filter_map(lag).collect()
    }

    /// By topic and partition, 1 where it waits for an operator.
    pub(crate) fn stopped(&self) -> Vec<(String, i32, i64)> {
        let now = self.now();
        now.partitions
            .iter()
            .map(|(source, progress)| (source.topic.to_string(), source.partition, i64::from(progress.stopped.is_some())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_says_what_is_waited_for() {
        let (status, source) = (Status::new(&Brokers::new("broker:9092", "test"), "counters"), Source::new("counts", 3));
        assert_eq!(status.ready(), Err("the broker at broker:9092".into()));
        status.connected(true);
        status.missing_topics(vec!["counts.dead-letters".into()]);
        assert_eq!(status.ready(), Err("the topic counts.dead-letters, which does not exist".into()));
        status.missing_topics(vec![]);
        assert_eq!(status.ready(), Err("its place in the consumer group counters".into()));
        status.assigned([(source.clone(), Some(7))]);
        assert_eq!(status.ready(), Ok(()));
        assert!(status.trouble(&source, "the log is not reachable"));
        assert!(!status.trouble(&source, "the log is not reachable"), "no news");
        assert_eq!(status.ready(), Err("counts/3: the log is not reachable".into()));
        status.translated_to(&source, Some(9));
        assert_eq!(status.ready(), Ok(()));
        status.stop(&source, Some("out of range".into()));
        assert_eq!(status.ready(), Err("counts/3: out of range".into()));
        assert_eq!(status.stopped(), [("counts".into(), 3, 1)]);
        status.ends([(source, (2, 12))].into());
        assert_eq!(status.lags(), [("counts".into(), 3, 3)]);
        status.revoked();
        assert_eq!(status.lags(), []);
    }
}
