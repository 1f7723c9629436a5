//! Writing a batch of one partition's messages into the log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use event_store::{Backoff, EventStore, LogEvent, Metadata, SourcePartition, StoreError, Translated};
use futures::future::join_all;
use opentelemetry::KeyValue;
use rdkafka::{Message as _, message::OwnedMessage};
use tokio_util::sync::CancellationToken;

use super::{
    dead_letter::{self, DeadLetters},
    error::InvalidMessage,
    message::Message,
    metrics::METRICS,
    source::Source,
    status::Status,
    translation::Translate,
};
use crate::client::{
    error::{SendError, causes},
    traceparent,
};

/// How long a call to the log may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The first and the longest delay between attempts while the log or the broker is away.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// The number of dead letters of a batch that are sent at a time.
const DEAD_LETTERS_AT_A_TIME: usize = 100;

/// Translates batches. The batches of a translator share it.
pub(crate) struct Worker<E> {
    pub(crate) store: EventStore<E>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) translations: HashMap<String, Translate<E>>,
    pub(crate) group: String,
    pub(crate) max_value_bytes: usize,
    pub(crate) status: Arc<Status>,
}

/// The outcome of a batch.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The events are in the log, the dead letters are written, and this is the stored offset.
    Translated { to: i64 },
    /// Another translator moved the stored offset, to this.
    Moved { stored: Option<i64> },
    /// The consumer lost the partition, or the process stops. Nothing was written.
    Stopped,
}

struct Item<E> {
    message: OwnedMessage,
    translated: Result<(E, Metadata), InvalidMessage>,
    /// Whether its dead letter is written.
    is_written: bool,
}

enum Failure {
    Store(StoreError),
    Timeout,
    DeadLetter(SendError),
}

enum Attempted {
    Done(Outcome),
    /// The log rejected the data of an event.
    Rejected(StoreError),
}

impl<E> Worker<E> {
    /// Answers the topics that are read and those of their dead letters.
    pub(crate) fn topics(&self) -> Vec<String> {
        let mut topics: Vec<_> = self.translations.keys().flat_map(|topic| [topic.clone(), dead_letter::topic_of(topic)]).collect();
        topics.sort_unstable();
        topics
    }
}

impl<E: LogEvent> Worker<E> {
    /// Translates a batch of at least one message. It retries until the batch is written or `stop`.
    pub(crate) async fn translate(
        &self,
        source: &Source,
        from: Option<i64>,
        batch: Vec<OwnedMessage>,
        stop: &CancellationToken,
    ) -> Outcome {
        let mut items: Vec<_> = batch.into_iter().map(|message| self.item(message)).collect();
        let outcome = match self.write(source, from, &mut items, stop).await {
            Attempted::Done(outcome) => outcome,
            Attempted::Rejected(_) => self.one_by_one(source, from, &mut items, stop).await,
        };
        if matches!(outcome, Outcome::Translated { .. }) {
            let topic = [KeyValue::new("topic", source.topic.to_string())];
            let dead = items.iter().filter(|item| item.translated.is_err()).count();
            METRICS.batch.record(items.len() as u64, &topic);
            METRICS.messages.add((items.len() - dead) as u64, &topic);
            METRICS.dead_letters.add(dead as u64, &topic);
        }
        outcome
    }

    /// Writes the messages of a batch one by one, because the log rejected one of them. That one becomes a dead letter.
    async fn one_by_one(&self, source: &Source, from: Option<i64>, items: &mut [Item<E>], stop: &CancellationToken) -> Outcome {
        let mut from = from;
        for item in items.iter_mut() {
            loop {
                match self.write(source, from, std::slice::from_mut(item), stop).await {
                    Attempted::Done(Outcome::Translated { to }) => {
                        from = Some(to);
                        break;
                    }
                    Attempted::Done(outcome) => return outcome,
                    Attempted::Rejected(error) => (item.translated, item.is_written) = (Err(InvalidMessage(causes(&error))), false),
                }
            }
        }
        from.map_or(Outcome::Stopped, |to| Outcome::Translated { to })
    }

    /// Writes messages, and retries while the log or the broker is away.
    async fn write(&self, source: &Source, from: Option<i64>, items: &mut [Item<E>], stop: &CancellationToken) -> Attempted {
        let Some(to) = items.last().map(|item| item.message.offset() + 1) else { return Attempted::Done(Outcome::Stopped) };
        let (mut backoff, mut outcome_unknown) = (Backoff::new(FIRST_DELAY, LONGEST_DELAY), false);
        loop {
            let failure = match self.attempt(source, from, to, items).await {
                Ok(Translated::Appended { .. }) => return Attempted::Done(Outcome::Translated { to }),
                // An earlier attempt wrote the batch, and its answer was lost.
                Ok(Translated::Moved { stored }) if outcome_unknown && stored == Some(to) => {
                    return Attempted::Done(Outcome::Translated { to });
                }
                Ok(Translated::Moved { stored }) => return Attempted::Done(Outcome::Moved { stored }),
                Err(Failure::Store(error @ (StoreError::Rejected(_) | StoreError::Encode(_))))
                    if items.iter().any(|item| item.translated.is_ok()) =>
                {
                    return Attempted::Rejected(error);
                }
                Err(failure) => failure,
            };
            outcome_unknown |= !matches!(failure, Failure::DeadLetter(_));
            self.report(source, &failure);
            tokio::select! {
                () = stop.cancelled() => return Attempted::Done(Outcome::Stopped),
                () = backoff.wait() => {}
            }
        }
    }

    async fn attempt(&self, source: &Source, from: Option<i64>, to: i64, items: &mut [Item<E>]) -> Result<Translated, Failure> {
        // Dead letters first: after the offset has moved, no translator would write them.
        self.write_dead_letters(items).await.map_err(Failure::DeadLetter)?;
        let events: Vec<_> = items.iter().filter_map(|item| item.translated.clone().ok()).collect();
        let partition = SourcePartition { consumer: &self.group, topic: &source.topic, partition: source.partition };
        match tokio::time::timeout(CALL_TIMEOUT, self.store.append_from(partition, from, to, &events)).await {
            Ok(answer) => answer.map_err(Failure::Store),
            Err(_) => Err(Failure::Timeout),
        }
    }

    async fn write_dead_letters(&self, items: &mut [Item<E>]) -> Result<(), SendError> {
        let mut outcome = Ok(());
        for items in items.chunks_mut(DEAD_LETTERS_AT_A_TIME) {
            // Each is waited for, so that a retry does not write it again.
            let writes = join_all(items.iter().map(|item| self.write_dead_letter(item))).await;
            for (item, written) in items.iter_mut().zip(writes) {
                item.is_written |= written.is_ok();
                outcome = outcome.and(written);
            }
        }
        outcome
    }

    async fn write_dead_letter(&self, Item { message, translated, is_written }: &Item<E>) -> Result<(), SendError> {
        let (Err(InvalidMessage(reason)), false) = (translated, is_written) else { return Ok(()) };
        self.dead_letters.write(message, reason).await?;
        tracing::warn!(topic = message.topic(), partition = message.partition(), offset = message.offset(), reason, "dead letter");
        Ok(())
    }

    /// Counts a failure, shows it in the status, and logs it when it is new.
    fn report(&self, source: &Source, failure: &Failure) {
        METRICS.faults.add(1, &[KeyValue::new("topic", source.topic.to_string())]);
        let why = match failure {
            Failure::Store(error) => causes(error),
            Failure::Timeout => format!("the log did not answer within {} s", CALL_TIMEOUT.as_secs()),
            Failure::DeadLetter(error) => causes(error),
        };
        if self.status.failed(source, &why) {
            tracing::warn!(topic = &*source.topic, partition = source.partition, why, "batch delayed");
        }
    }

    fn item(&self, message: OwnedMessage) -> Item<E> {
        let translated = self.event(&message).map(|event| (event, metadata(&message)));
        Item { message, translated, is_written: false }
    }

    fn event(&self, message: &OwnedMessage) -> Result<E, InvalidMessage> {
        let value = message.payload().filter(|value| !value.is_empty()).ok_or_else(|| InvalidMessage("the value is empty".into()))?;
        if value.len() > self.max_value_bytes {
            return Err(InvalidMessage(format!("the value has {} bytes; the maximum is {}", value.len(), self.max_value_bytes)));
        }
        let translate = self.translations.get(message.topic()).ok_or_else(|| InvalidMessage("no translation for this topic".into()))?;
        translate(&Message { topic: message.topic(), partition: message.partition(), offset: message.offset(), key: message.key(), value })
    }
}

/// Answers the trace of the message's sender, or of this batch, and the message as the cause.
fn metadata(message: &OwnedMessage) -> Metadata {
    Metadata {
        traceparent: traceparent::of(message).map(str::to_owned).or_else(event_store::trace::current_traceparent),
        causation_id: Some(format!("{}/{}/{}", message.topic(), message.partition(), message.offset())),
        ..Metadata::default()
    }
}
