//! A translator.

use std::{collections::HashMap, sync::Arc};

use event_store::{EventStore, LogEvent};
use tokio_util::sync::CancellationToken;

use super::{
    config::TranslatorSettings, dead_letter::DeadLetters, error::TranslatorError, metrics, output::Worker, run, status::Status,
    translation::Translation,
};
use crate::client::{error::StartError, inspect::Inspector};

/// Translates topics into the log.
pub struct Translator<E> {
    settings: TranslatorSettings,
    worker: Arc<Worker<E>>,
    inspector: Inspector,
}

impl<E: LogEvent> Translator<E> {
    /// Creates a translator. It does nothing until it runs.
    ///
    /// # Errors
    /// If librdkafka does not accept the settings.
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
        let inspector = Inspector::new(&settings.brokers)?;
        Ok(Self { settings, worker, inspector })
    }

    /// Returns a handle to the translator's status.
    pub fn status(&self) -> TranslatorStatus {
        TranslatorStatus(self.worker.status.clone())
    }

    /// Translates until `shutdown`, then finishes the running batches and leaves the group. It waits for a broker or a log that is away.
    ///
    /// # Errors
    /// If the settings are refused or the consumer fails for good.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), TranslatorError> {
        run::run(&self.settings, self.worker, self.inspector, shutdown).await
    }
}

/// The status of a running translator.
#[derive(Clone)]
pub struct TranslatorStatus(Arc<Status>);

impl TranslatorStatus {
    /// Checks that the translator translates. A partition that waits does not decide this, unless all wait.
    ///
    /// # Errors
    /// The reason why the translator waits, for an operator.
    pub fn ready(&self) -> Result<(), String> {
        self.0.ready()
    }

    /// Returns what each partition waits for that is not being translated, for an operator.
    pub fn waiting(&self) -> Vec<String> {
        self.0.waiting()
    }
}
