//! A translator, as services start it.

use std::{collections::HashMap, sync::Arc};

use event_store::{EventStore, LogEvent};
use tokio_util::sync::CancellationToken;

use super::{
    config::TranslatorSettings, dead_letter::DeadLetters, error::TranslatorError, metrics, output::Worker, run, status::Status,
    translation::Translation,
};
use crate::client::error::StartError;

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
