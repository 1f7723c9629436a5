//! From Kafka into the log, each message once.
//!
//! One consumer reads all topics of the process. What it reads of a partition gathers while a batch of that partition is on its way into
//! the log; each batch is one call, which appends the events and moves the partition's stored offset from where this consumer was reading,
//! or does neither. Partitions do not wait for each other.

mod batch;
mod group;
mod partition;
mod range;
mod run;
mod status;

use std::{collections::HashMap, fmt, sync::Arc};

use event_store::{EventStore, LogEvent};
use tokio_util::sync::CancellationToken;

use crate::{
    Message, Poison, StartError, TranslatorError, TranslatorSettings,
    dead_letter::{self, DeadLetters},
    metrics,
};
use batch::Worker;
pub(crate) use status::Status;

/// Makes an event of a message. Pure: a message that is delivered again, or whose batch is tried again, is translated again.
type Translate<E> = fn(&Message<'_>) -> Result<E, Poison>;

/// How the messages of a topic become events.
pub struct Translation<E> {
    topic: String,
    translate: Translate<E>,
}

impl<E> Translation<E> {
    /// The messages of this topic by this function. What the function refuses becomes a dead letter in the topic `<topic>.dead-letters`.
    pub fn new(topic: impl Into<String>, translate: fn(&Message<'_>) -> Result<E, Poison>) -> Self {
        Self { topic: topic.into(), translate }
    }
}

/// Translates topics into the log.
pub struct Translator<E> {
    settings: TranslatorSettings,
    worker: Arc<Worker<E>>,
}

impl<E: LogEvent> Translator<E> {
    /// A translator that does nothing until it runs.
    ///
    /// # Errors
    /// Where librdkafka does not take the settings.
    pub fn new(
        settings: TranslatorSettings,
        store: EventStore<E>,
        translations: impl IntoIterator<Item = Translation<E>>,
    ) -> Result<Self, StartError> {
        let translations: HashMap<_, _> = translations.into_iter().map(|one| (one.topic, one.translate)).collect();
        let status = Arc::new(Status::new(&settings.brokers, &settings.group));
        metrics::observe(&Arc::downgrade(&status));
        translations.keys().for_each(|topic| metrics::begin(topic));
        let dead_letters = DeadLetters::new(settings.dead_letters(), &settings.brokers)?;
        let (group, max_value_bytes) = (settings.group.clone(), settings.max_value_bytes);
        let worker = Arc::new(Worker { store, dead_letters, translations, group, max_value_bytes, status });
        Ok(Self { settings, worker })
    }

    /// What the translator waits for, to be asked while it runs.
    pub fn status(&self) -> TranslatorStatus {
        TranslatorStatus(self.worker.status.clone())
    }

    /// Translates until `shutdown`; then finishes the batches in hand and leaves the group. A broker or log that is away is waited for.
    ///
    /// # Errors
    /// Where it cannot go on: the settings are refused, or the consumer failed for good.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), TranslatorError> {
        run::run(&self.settings, self.worker, shutdown).await
    }
}

/// What a running translator waits for.
#[derive(Clone)]
pub struct TranslatorStatus(Arc<Status>);

impl TranslatorStatus {
    /// Whether every partition this translator has is being translated.
    ///
    /// # Errors
    /// What is waited for, as words for an operator.
    pub fn ready(&self) -> Result<(), String> {
        self.0.ready()
    }
}

impl<E> Worker<E> {
    /// The topics that are read, and those that take their dead letters.
    fn topics(&self) -> Vec<String> {
        let mut topics: Vec<_> = self.translations.keys().flat_map(|topic| [topic.clone(), dead_letter::topic_of(topic)]).collect();
        topics.sort_unstable();
        topics
    }
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
}

impl Source {
    pub(crate) fn new(topic: &str, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}
