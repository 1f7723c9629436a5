//! Writing a batch of one partition's messages into the log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use event_store::{
    Backoff, EventStore, LogEvent, Metadata, NextOffset, SourceMessage, SourcePartition, StoreError, Translated, correlation,
};
use futures::future::join_all;
use opentelemetry::KeyValue;
use tokio_util::sync::CancellationToken;

use super::{
    dead_letter::{self, DeadLetters},
    error::InvalidMessage,
    message::Message,
    metrics::METRICS,
    received::Received,
    source::Source,
    status::Status,
    translation::Translate,
};
use crate::client::{
    error::{SendError, causes},
    headers::Unread,
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
    Translated { to: i64, last: Option<SourceMessage> },
    /// Another translator or an operator moved the stored offset, to this.
    Moved { stored: Option<i64> },
    /// The consumer lost the partition, or the process stops. Nothing was written.
    Stopped,
}

struct Item<E> {
    message: Received,
    translated: Result<(E, Metadata), InvalidMessage>,
    /// Whether its dead letter is written.
    is_written: bool,
}

enum Failure {
    Store(StoreError),
    Timeout,
    DeadLetter(SendError),
}

/// The part of a topic that lies ahead of a partition that has no next message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Nothing but what is no message, such as the ends of transactions.
    Empty,
    /// Messages that cannot be decompressed, and why.
    Unreadable(String),
}

enum Attempted {
    Done(Outcome),
    /// The log rejected the data of an event.
    Rejected(StoreError),
}

impl<E> Worker<E> {
    /// Returns the topics that are read and those of their dead letters.
    pub(crate) fn topics(&self) -> Vec<String> {
        let mut topics: Vec<_> = self.translations.keys().flat_map(|topic| [topic.clone(), dead_letter::topic_of(topic)]).collect();
        topics.sort_unstable();
        topics
    }
}

impl<E: LogEvent> Worker<E> {
    /// Translates a batch of at least one message. It retries until the batch is written or `stop`.
    pub(crate) async fn translate(&self, source: &Source, from: Option<i64>, batch: Vec<Received>, stop: &CancellationToken) -> Outcome {
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
                    Attempted::Done(Outcome::Translated { to, .. }) => {
                        from = Some(to);
                        break;
                    }
                    Attempted::Done(outcome) => return outcome,
                    Attempted::Rejected(error) => (item.translated, item.is_written) = (Err(InvalidMessage(causes(&error))), false),
                }
            }
        }
        from.map_or(Outcome::Stopped, |to| Outcome::Translated { to, last: items.last().map(|item| item.message.recognised()) })
    }

    /// Moves the stored offset over a gap, which becomes a stub if messages are lost in it. It retries until that is written or `stop`.
    pub(crate) async fn skip(&self, source: &Source, from: Option<i64>, at: i64, to: i64, gap: &Gap, stop: &CancellationToken) -> Outcome {
        let (mut backoff, mut outcome_unknown, mut is_buried) = (Backoff::new(FIRST_DELAY, LONGEST_DELAY), false, *gap == Gap::Empty);
        loop {
            let failure = match self.bury_gap(source, from, at, to, gap, &mut is_buried).await {
                Ok(None) => match self.append(source, from, to.into(), &[]).await {
                    Ok(Translated::Appended { .. }) => return Outcome::Translated { to, last: None },
                    Ok(Translated::Moved { stored }) if outcome_unknown && stored == Some(to) => {
                        return Outcome::Translated { to, last: None };
                    }
                    Ok(Translated::Moved { stored }) => return Outcome::Moved { stored },
                    Err(failure) => failure,
                },
                Ok(Some(moved)) => return moved,
                Err(failure) => failure,
            };
            outcome_unknown |= !matches!(failure, Failure::DeadLetter(_));
            self.report(source, &failure);
            tokio::select! {
                () = stop.cancelled() => return Outcome::Stopped,
                () = backoff.wait() => {}
            }
        }
    }

    async fn bury_gap(
        &self,
        source: &Source,
        from: Option<i64>,
        at: i64,
        to: i64,
        gap: &Gap,
        is_buried: &mut bool,
    ) -> Result<Option<Outcome>, Failure> {
        let (Gap::Unreadable(why), false) = (gap, *is_buried) else { return Ok(None) };
        if let Some(moved) = self.moved(source, from).await? {
            return Ok(Some(moved));
        }
        let reason = format!("the messages from offset {at} to {} cannot be decompressed", to - 1);
        self.dead_letters.write_stub(source, at, &reason, why, None).await.map_err(Failure::DeadLetter)?;
        METRICS.dead_letters.add(1, &[KeyValue::new("topic", source.topic.to_string())]);
        *is_buried = true;
        Ok(None)
    }

    /// Returns the outcome of a batch whose stored offset is not the expected one.
    async fn moved(&self, source: &Source, from: Option<i64>) -> Result<Option<Outcome>, Failure> {
        let stored = self.store.stored_offsets(&self.group, &source.topic).await.map_err(Failure::Store)?;
        let stored = stored.get(&source.partition).map(|stored| stored.offset);
        Ok((stored != from).then_some(Outcome::Moved { stored }))
    }

    /// Writes messages, and retries while the log or the broker is away.
    async fn write(&self, source: &Source, from: Option<i64>, items: &mut [Item<E>], stop: &CancellationToken) -> Attempted {
        let Some(last) = items.last().map(|item| item.message.recognised()) else { return Attempted::Done(Outcome::Stopped) };
        let to = NextOffset { offset: last.offset + 1, last: Some(last) };
        let translated = || Attempted::Done(Outcome::Translated { to: to.offset, last: to.last.clone() });
        let (mut backoff, mut outcome_unknown) = (Backoff::new(FIRST_DELAY, LONGEST_DELAY), false);
        loop {
            let failure = match self.attempt(source, from, &to, items).await {
                Ok(Translated::Appended { .. }) => return translated(),
                // An earlier attempt wrote the batch, and its answer was lost.
                Ok(Translated::Moved { stored }) if outcome_unknown && stored == Some(to.offset) => return translated(),
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

    async fn attempt(&self, source: &Source, from: Option<i64>, to: &NextOffset, items: &mut [Item<E>]) -> Result<Translated, Failure> {
        // Dead letters first: after the offset has moved, no translator would write them. The batch is checked before: an operator may have
        // set another offset, and its dead letters are then not written.
        if items.iter().any(|item| item.translated.is_err() && !item.is_written)
            && let Some(Outcome::Moved { stored }) = self.moved(source, from).await?
        {
            return Ok(Translated::Moved { stored });
        }
        self.write_dead_letters(items).await.map_err(Failure::DeadLetter)?;
        let events: Vec<_> = items.iter().filter_map(|item| item.translated.clone().ok()).collect();
        self.append(source, from, to.clone(), &events).await
    }

    async fn append(&self, source: &Source, from: Option<i64>, to: NextOffset, events: &[(E, Metadata)]) -> Result<Translated, Failure> {
        let partition = SourcePartition { consumer: &self.group, topic: &source.topic, partition: source.partition };
        match tokio::time::timeout(CALL_TIMEOUT, self.store.append_from(partition, from, to, events)).await {
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
        let Received { source, offset, .. } = message;
        tracing::warn!(topic = &*source.topic, partition = source.partition, offset, reason, "dead letter");
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

    fn item(&self, message: Received) -> Item<E> {
        let translated = self.event(&message).map(|event| (event, metadata(&message)));
        Item { message, translated, is_written: false }
    }

    fn event(&self, message: &Received) -> Result<E, InvalidMessage> {
        if message.value_bytes > self.max_value_bytes {
            return Err(InvalidMessage(format!("the value has {} bytes; the maximum is {}", message.value_bytes, self.max_value_bytes)));
        }
        match message.headers.unread {
            Some(Unread::NameIsNotUtf8) => return Err(InvalidMessage("the name of a header is not UTF-8".into())),
            Some(Unread::TooLarge) => return Err(InvalidMessage("the key and the headers are too large".into())),
            None => {}
        }
        let value =
            message.value.as_deref().filter(|value| !value.is_empty()).ok_or_else(|| InvalidMessage("the value is empty".into()))?;
        let Source { topic, partition } = &message.source;
        let translate = self.translations.get(&**topic).ok_or_else(|| InvalidMessage("no translation for this topic".into()))?;
        translate(&Message { topic, partition: *partition, offset: message.offset, key: message.key.as_deref(), value })
    }
}

/// Returns the trace of the message's sender, or of this batch; its correlation id, or a new one; and the message as the cause.
fn metadata(message: &Received) -> Metadata {
    Metadata {
        traceparent: traceparent::of(&message.headers).map(str::to_owned).or_else(event_store::trace::current_traceparent),
        correlation_id: Some(
            message.headers.last(correlation::HEADER).and_then(correlation::valid).map_or_else(correlation::new, str::to_owned),
        ),
        causation_id: Some(format!("{}/{}", message.source, message.offset)),
        ..Metadata::default()
    }
}
