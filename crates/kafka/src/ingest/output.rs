//! A batch of one partition's messages, on its way into the log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use event_store::{EventStore, LogEvent, Metadata, SourcePartition, StoreError, Translated};
use futures::future::join_all;
use opentelemetry::KeyValue;
use rand::Rng;
use rdkafka::{Message as _, message::OwnedMessage};
use tokio_util::sync::CancellationToken;

use super::{
    dead_letter::{self, DeadLetters},
    error::Poison,
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

/// What a call to the log may take before its answer is no longer waited for.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Between tries, where log or broker are away: doubling from the first to the last, jittered.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// Dead letters of a batch that are on their way at a time.
const DEAD_LETTERS_AT_A_TIME: usize = 100;

/// What every batch is translated with.
pub(crate) struct Worker<E> {
    pub(crate) store: EventStore<E>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) translations: HashMap<String, Translate<E>>,
    pub(crate) group: String,
    pub(crate) max_value_bytes: usize,
    pub(crate) status: Arc<Status>,
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is in the log, its dead letters are written, and the stored offset is this.
    Translated { to: i64 },
    /// Another translator has moved the stored offset, to this.
    Moved { stored: Option<i64> },
    /// This consumer lost the partition, or the process stops, before it could be written.
    Stopped,
}

struct Item<E> {
    message: OwnedMessage,
    translated: Result<(E, Metadata), Poison>,
    /// Its dead letter, where it needs one, is written.
    buried: bool,
}

enum Failure {
    Store(StoreError),
    Silent,
    DeadLetter(SendError),
}

enum Settled {
    As(Outcome),
    /// The log does not take these data.
    Refused(StoreError),
}

impl<E> Worker<E> {
    /// The topics that are read, and those that take their dead letters.
    pub(crate) fn topics(&self) -> Vec<String> {
        let mut topics: Vec<_> = self.translations.keys().flat_map(|topic| [topic.clone(), dead_letter::topic_of(topic)]).collect();
        topics.sort_unstable();
        topics
    }
}

impl<E: LogEvent> Worker<E> {
    /// Translates a batch, of which there is at least one message: whatever it takes, until it is done, or `stop`.
    pub(crate) async fn translate(
        &self,
        source: &Source,
        from: Option<i64>,
        batch: Vec<OwnedMessage>,
        stop: &CancellationToken,
    ) -> Outcome {
        let mut items: Vec<_> = batch.into_iter().map(|message| self.item(message)).collect();
        let outcome = match self.settle(source, from, &mut items, stop).await {
            Settled::As(outcome) => outcome,
            Settled::Refused(_) => self.one_by_one(source, from, &mut items, stop).await,
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

    /// One of the batch is such that the log refuses it. It becomes a dead letter, and hurts no other.
    async fn one_by_one(&self, source: &Source, from: Option<i64>, items: &mut [Item<E>], stop: &CancellationToken) -> Outcome {
        let mut from = from;
        for item in items.iter_mut() {
            loop {
                match self.settle(source, from, std::slice::from_mut(item), stop).await {
                    Settled::As(Outcome::Translated { to }) => {
                        from = Some(to);
                        break;
                    }
                    Settled::As(outcome) => return outcome,
                    Settled::Refused(error) => (item.translated, item.buried) = (Err(Poison(causes(&error))), false),
                }
            }
        }
        from.map_or(Outcome::Stopped, |to| Outcome::Translated { to })
    }

    /// Tries until log and broker are there.
    async fn settle(&self, source: &Source, from: Option<i64>, items: &mut [Item<E>], stop: &CancellationToken) -> Settled {
        let Some(to) = items.last().map(|item| item.message.offset() + 1) else { return Settled::As(Outcome::Stopped) };
        let (mut pause, mut outcome_unknown) = (FIRST_PAUSE, false);
        loop {
            let failure = match self.attempt(source, from, to, items).await {
                Ok(Translated::Appended { .. }) => return Settled::As(Outcome::Translated { to }),
                // What an earlier try wrote before its answer was lost.
                Ok(Translated::Moved { stored }) if outcome_unknown && stored == Some(to) => {
                    return Settled::As(Outcome::Translated { to });
                }
                Ok(Translated::Moved { stored }) => return Settled::As(Outcome::Moved { stored }),
                Err(Failure::Store(error @ (StoreError::Rejected(_) | StoreError::Encode(_))))
                    if items.iter().any(|item| item.translated.is_ok()) =>
                {
                    return Settled::Refused(error);
                }
                Err(failure) => failure,
            };
            outcome_unknown |= !matches!(failure, Failure::DeadLetter(_));
            self.tell(source, &failure);
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::select! {
                () = stop.cancelled() => return Settled::As(Outcome::Stopped),
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LAST_PAUSE),
            }
        }
    }

    async fn attempt(&self, source: &Source, from: Option<i64>, to: i64, items: &mut [Item<E>]) -> Result<Translated, Failure> {
        // First the dead letters: once the offset has moved, nobody would write them any more.
        self.bury(items).await.map_err(Failure::DeadLetter)?;
        let events: Vec<_> = items.iter().filter_map(|item| item.translated.clone().ok()).collect();
        let partition = SourcePartition { consumer: &self.group, topic: &source.topic, partition: source.partition };
        match tokio::time::timeout(CALL_TIMEOUT, self.store.append_from(partition, from, to, &events)).await {
            Ok(answer) => answer.map_err(Failure::Store),
            Err(_) => Err(Failure::Silent),
        }
    }

    async fn bury(&self, items: &mut [Item<E>]) -> Result<(), SendError> {
        let mut outcome = Ok(());
        for items in items.chunks_mut(DEAD_LETTERS_AT_A_TIME) {
            // Each is waited for, so that none of those that are written is written again.
            let burials = join_all(items.iter().map(|item| self.bury_one(item))).await;
            for (item, burial) in items.iter_mut().zip(burials) {
                item.buried |= burial.is_ok();
                outcome = outcome.and(burial);
            }
        }
        outcome
    }

    async fn bury_one(&self, Item { message, translated, buried }: &Item<E>) -> Result<(), SendError> {
        let (Err(Poison(reason)), false) = (translated, buried) else { return Ok(()) };
        self.dead_letters.write(message, reason).await?;
        tracing::warn!(topic = message.topic(), partition = message.partition(), offset = message.offset(), reason, "dead letter");
        Ok(())
    }

    /// A fault is shown while it lasts, and logged when it is news.
    fn tell(&self, source: &Source, failure: &Failure) {
        METRICS.faults.add(1, &[KeyValue::new("topic", source.topic.to_string())]);
        let why = match failure {
            Failure::Store(error) => causes(error),
            Failure::Silent => format!("the log did not answer within {} seconds", CALL_TIMEOUT.as_secs()),
            Failure::DeadLetter(error) => causes(error),
        };
        if self.status.trouble(source, &why) {
            tracing::warn!(topic = &*source.topic, partition = source.partition, why, "a batch cannot be translated yet; trying again");
        }
    }

    fn item(&self, message: OwnedMessage) -> Item<E> {
        let translated = self.event(&message).map(|event| (event, metadata(&message)));
        Item { message, translated, buried: false }
    }

    fn event(&self, message: &OwnedMessage) -> Result<E, Poison> {
        let value = message.payload().filter(|value| !value.is_empty()).ok_or_else(|| Poison("the value is empty".into()))?;
        if value.len() > self.max_value_bytes {
            return Err(Poison(format!("the value has {} bytes; at most {} are read", value.len(), self.max_value_bytes)));
        }
        let translate = self.translations.get(message.topic()).ok_or_else(|| Poison("nothing translates this topic".into()))?;
        translate(&Message { topic: message.topic(), partition: message.partition(), offset: message.offset(), key: message.key(), value })
    }
}

/// The trace of what sent the message, or else of this batch; and which message it was.
fn metadata(message: &OwnedMessage) -> Metadata {
    Metadata {
        traceparent: traceparent::of(message).map(str::to_owned).or_else(event_store::trace::current_traceparent),
        correlation_id: None,
        causation_id: Some(format!("{}/{}/{}", message.topic(), message.partition(), message.offset())),
    }
}
