//! The loop of a translator: messages go from the consumer to their partition, and from there in batches into the log.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use event_store::{Backoff, LogEvent, StoreError, trace};
use futures::StreamExt;
use opentelemetry::KeyValue;
use rdkafka::{
    Message as _, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{Consumer as _, StreamConsumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, OwnedMessage},
};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    config::TranslatorSettings,
    error::TranslatorError,
    input::{Group, Rebalance},
    metrics::METRICS,
    out_of_range::OutOfRange,
    output::{Outcome, Worker},
    partition::Partition,
    source::Source,
};
use crate::client::{error::causes, inspect::topic_exists, traceparent};

/// How often the loop checks what no event announces.
const TICK: Duration = Duration::from_secs(1);
/// How often a blocked partition is inspected.
const INSPECT_INTERVAL: Duration = Duration::from_secs(3);
/// How long a question to the broker may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long leaving the group may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run<E: LogEvent>(
    settings: &TranslatorSettings,
    worker: Arc<Worker<E>>,
    shutdown: CancellationToken,
) -> Result<(), TranslatorError> {
    let (sender, mut rebalances) = mpsc::unbounded_channel();
    let group = Group { rebalances: sender, status: worker.status.clone() };
    let consumer: Consumer = StreamConsumer::from_config_and_context(&settings.consumer(), group).map_err(TranslatorError::Consumer)?;
    let topics: Vec<_> = worker.translations.keys().map(String::as_str).collect();
    consumer.subscribe(&topics).map_err(TranslatorError::Consumer)?;
    tracing::info!(group = settings.group, ?topics, "translator started");

    let consumer = Arc::new(consumer);
    let mut running = Running::new(consumer.clone(), worker);
    let outcome = running.until(&shutdown, &consumer, &mut rebalances).await;
    running.finish().await;
    drop(running);
    leave(consumer).await;
    outcome
}

type Consumer = StreamConsumer<Group>;

/// Leaves the group. Dropping the last clone of the consumer does that and blocks its thread.
async fn leave(consumer: Arc<Consumer>) {
    let leaving = tokio::task::spawn_blocking(move || drop(consumer));
    if tokio::time::timeout(LEAVE_TIMEOUT, leaving).await.is_err() {
        tracing::warn!("leaving the group timed out");
    }
}

/// The result of a task. Results about partitions carry the assignment in which the task was started.
enum Done {
    Offsets {
        assignment: u64,
        offsets: HashMap<Source, i64>,
    },
    Batch {
        assignment: u64,
        source: Source,
        outcome: Outcome,
    },
    Inspected {
        assignment: u64,
        inspected: Vec<Inspected>,
        because_of_error: bool,
    },
    MissingTopics(KafkaResult<Vec<String>>),
    /// The task was stopped.
    Stopped,
}

/// The ends of a partition and its stored offset.
struct Inspected {
    source: Source,
    /// The next offset to read when the inspection started.
    next: Option<i64>,
    stored: Option<i64>,
    low: i64,
    high: i64,
}

struct Running<E> {
    consumer: Arc<Consumer>,
    worker: Arc<Worker<E>>,
    /// The number of the group's decisions so far. It tells results that are too late.
    assignment: u64,
    /// Stops the tasks of this assignment.
    revoked: CancellationToken,
    /// Partitions that are assigned but not read before their stored offsets are known.
    awaiting_offsets: Option<Vec<Source>>,
    partitions: HashMap<Source, Partition>,
    batches: usize,
    tasks: JoinSet<Done>,
    /// Whether the consumer must read from other offsets.
    reassign: bool,
    inspecting: bool,
    /// Whether the consumer reported an offset out of range, without naming the partition.
    inspect: bool,
    last_inspected: Option<Instant>,
    asking_for_topics: bool,
    topics_complete: bool,
    last_error: Option<(KafkaError, Instant)>,
}

impl<E: LogEvent> Running<E> {
    fn new(consumer: Arc<Consumer>, worker: Arc<Worker<E>>) -> Self {
        Self {
            consumer,
            worker,
            assignment: 0,
            revoked: CancellationToken::new(),
            awaiting_offsets: None,
            partitions: HashMap::new(),
            batches: 0,
            tasks: JoinSet::new(),
            reassign: false,
            inspecting: false,
            inspect: false,
            last_inspected: None,
            asking_for_topics: false,
            topics_complete: false,
            last_error: None,
        }
    }

    async fn until(
        &mut self,
        shutdown: &CancellationToken,
        consumer: &Consumer,
        rebalances: &mut mpsc::UnboundedReceiver<Rebalance>,
    ) -> Result<(), TranslatorError> {
        let mut messages = consumer.stream();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In this order: an assignment comes before the messages of its partitions.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(rebalance) = rebalances.recv() => self.rebalanced(rebalance),
                Some(done) = self.tasks.join_next() => self.done(done?),
                _ = tick.tick() => self.tick(),
                Some(message) = messages.next() => self.read(message)?,
            }
        }
    }

    /// Waits for the running batches.
    async fn finish(&mut self) {
        self.revoked.cancel();
        while self.batches > 0
            && let Some(done) = self.tasks.join_next().await
        {
            match done {
                Ok(Done::Batch { source, outcome, .. }) => {
                    self.batches -= 1;
                    if let Outcome::Translated { to } = outcome {
                        self.commit(&source, to);
                    }
                }
                Ok(_) => {}
                // A task that died has no result.
                Err(_) => return,
            }
        }
    }

    fn rebalanced(&mut self, rebalance: Rebalance) {
        self.assignment += 1;
        self.revoked.cancel();
        self.revoked = CancellationToken::new();
        // librdkafka keeps a pause beyond the assignment: the partition would return paused.
        self.resume(self.partitions.iter().filter(|(_, partition)| partition.is_paused).map(|(source, _)| source));
        self.partitions.clear();
        (self.reassign, self.inspect, self.inspecting) = (false, false, false);
        self.awaiting_offsets = match rebalance {
            Rebalance::Assigned(sources) => Some(sources),
            Rebalance::Revoked => {
                tracing::debug!("partitions revoked");
                self.worker.status.revoked();
                None
            }
        };
        self.load_offsets();
    }

    /// Reads the stored offsets after the running batches have moved them.
    fn load_offsets(&mut self) {
        if self.awaiting_offsets.is_none() || self.batches > 0 {
            return;
        }
        let (worker, assignment, revoked) = (self.worker.clone(), self.assignment, self.revoked.clone());
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
            let mut is_first = true;
            loop {
                match stored_offsets(&worker).await {
                    Ok(offsets) => return Done::Offsets { assignment, offsets },
                    Err(error) if std::mem::take(&mut is_first) => {
                        tracing::warn!(error = causes(&error), "stored offsets not read; retrying");
                    }
                    Err(_) => {}
                }
                tokio::select! {
                    () = revoked.cancelled() => return Done::Stopped,
                    () = backoff.wait() => {}
                }
            }
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Batch { assignment, source, outcome } => {
                self.batches -= 1;
                if assignment == self.assignment {
                    self.batch_done(&source, outcome);
                }
                self.load_offsets();
            }
            Done::Offsets { assignment, offsets } if assignment == self.assignment => self.start(&offsets),
            Done::Inspected { assignment, inspected, because_of_error } if assignment == self.assignment => {
                self.inspected(inspected, because_of_error);
            }
            Done::MissingTopics(missing) => self.topics_known(missing),
            Done::Offsets { .. } | Done::Inspected { .. } | Done::Stopped => {}
        }
    }

    fn start(&mut self, offsets: &HashMap<Source, i64>) {
        let Some(sources) = self.awaiting_offsets.take() else { return };
        tracing::info!(partitions = sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), "partitions assigned");
        self.partitions = sources.into_iter().map(|source| (source.clone(), Partition::new(offsets.get(&source).copied()))).collect();
        self.worker.status.assigned(self.partitions.iter().map(|(source, partition)| (source.clone(), partition.stored())));
        self.assign();
    }

    /// Assigns every partition that is not blocked, with its next offset.
    fn assign(&mut self) {
        self.reassign = false;
        let (mut list, mut paused) = (TopicPartitionList::new(), vec![]);
        for (source, partition) in self.partitions.iter_mut().filter(|(_, partition)| partition.blocked.is_none()) {
            if partition.next_to_read().is_some_and(|offset| offset < 0) {
                // Kafka has no such offset, and librdkafka gives negative ones a meaning of its own.
                self.inspect = true;
                continue;
            }
            // It refuses invalid offsets only, and this one is valid.
            let _ = list.add_partition_offset(&source.topic, source.partition, partition.offset());
            if std::mem::take(&mut partition.is_paused) {
                paused.push(source.clone());
            }
        }
        if let Err(error) = self.consumer.assign(&list) {
            tracing::warn!(%error, "assignment refused; retrying");
            self.reassign = true;
        }
        self.resume(&paused);
    }

    fn read(&mut self, message: KafkaResult<BorrowedMessage<'_>>) -> Result<(), TranslatorError> {
        match message {
            Ok(message) => {
                let source = Source::new(message.topic(), message.partition());
                self.take(&source, message.detach());
                Ok(())
            }
            Err(error @ KafkaError::MessageConsumptionFatal(_)) => Err(TranslatorError::Consumer(error)),
            Err(error) => {
                self.consumer_error(error);
                Ok(())
            }
        }
    }

    fn take(&mut self, source: &Source, message: OwnedMessage) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        partition.take(message);
        if partition.wants_pause() {
            partition.is_paused = true;
            if let Err(error) = self.consumer.pause(&list([source])) {
                tracing::debug!(%source, %error, "not paused");
            }
        }
        self.dispatch(source);
    }

    /// Starts writing the partition's next batch, unless one is being written.
    fn dispatch(&mut self, source: &Source) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        let from = partition.stored();
        let Some(batch) = partition.next_batch() else { return };
        self.batches += 1;
        let (worker, assignment, source, revoked) = (self.worker.clone(), self.assignment, source.clone(), self.revoked.clone());
        let span = tracing::info_span!(
            "translate",
            otel.name = format!("translate {}", source.topic),
            otel.kind = "consumer",
            messaging.system = "kafka",
            messaging.operation.type = "process",
            topic = &*source.topic,
            partition = source.partition,
            messages = batch.len()
        );
        trace::follow(&span, batch.iter().map(traceparent::of));
        self.tasks.spawn(
            async move {
                let outcome = worker.translate(&source, from, batch, &revoked).await;
                Done::Batch { assignment, source, outcome }
            }
            .instrument(span),
        );
    }

    fn batch_done(&mut self, source: &Source, outcome: Outcome) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        match outcome {
            Outcome::Translated { to } => {
                partition.written(to);
                self.worker.status.translated_to(source, Some(to));
                self.commit(source, to);
                self.dispatch(source);
                self.resume_where_wanted(source);
            }
            Outcome::Moved { stored } => {
                METRICS.offset_conflicts.add(1, &[KeyValue::new("topic", source.topic.to_string())]);
                tracing::warn!(%source, expected = partition.stored(), stored, "stored offset moved by another translator");
                partition.rewind(stored);
                self.worker.status.translated_to(source, stored);
                self.reassign = true;
                self.reassign_unless_awaiting();
            }
            Outcome::Stopped => {}
        }
    }

    fn reassign_unless_awaiting(&mut self) {
        if self.reassign && self.awaiting_offsets.is_none() {
            self.assign();
        }
    }

    fn resume_where_wanted(&mut self, source: &Source) {
        if let Some(partition) = self.partitions.get_mut(source)
            && partition.wants_resume()
        {
            partition.is_paused = false;
            self.resume([source]);
        }
    }

    fn resume<'a>(&self, sources: impl IntoIterator<Item = &'a Source>) {
        let list = list(sources);
        if list.count() > 0
            && let Err(error) = self.consumer.resume(&list)
        {
            tracing::debug!(%error, "not resumed");
        }
    }

    /// Commits to Kafka with the next automatic commit, for lag tools.
    fn commit(&self, source: &Source, to: i64) {
        // librdkafka takes the offset of the last message, and refuses partitions that it has lost.
        if let Err(error) = self.consumer.store_offset(&source.topic, source.partition, to - 1) {
            tracing::debug!(%source, %error, "not committed");
        }
    }

    fn consumer_error(&mut self, error: KafkaError) {
        let code = error.rdkafka_error_code();
        match code {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::LogTruncation) => {
                self.inspect = true;
                self.inspect_when_wanted();
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.topics_complete = false;
                self.ask_for_topics();
            }
            // librdkafka logs each connection, and readiness reports whether there is any.
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Resolve) => return,
            _ => {}
        }
        // The error repeats while its cause lasts.
        let is_new = self.last_error.as_ref().is_none_or(|(last, at)| *last != error || at.elapsed() > Duration::from_secs(30));
        if is_new {
            tracing::warn!(%error, "consumer error");
            self.last_error = Some((error, Instant::now()));
        }
    }

    fn tick(&mut self) {
        self.reassign_unless_awaiting();
        self.inspect_when_wanted();
        self.ask_for_topics();
    }

    fn inspect_when_wanted(&mut self) {
        let since = self.last_inspected.map_or(Duration::MAX, |last| last.elapsed());
        let is_blocked = self.partitions.values().any(|partition| partition.blocked.is_some());
        // The consumer reports each partition separately, but does not name it.
        let wanted = (self.inspect && since >= TICK) || (is_blocked && since >= INSPECT_INTERVAL);
        if !wanted || self.inspecting || self.awaiting_offsets.is_some() || self.partitions.is_empty() {
            return;
        }
        let because_of_error = std::mem::take(&mut self.inspect);
        (self.inspecting, self.last_inspected) = (true, Some(Instant::now()));
        let reading: Vec<_> = self.partitions.iter().map(|(source, partition)| (source.clone(), partition.next_to_read())).collect();
        let (worker, consumer, assignment, revoked) = (self.worker.clone(), self.consumer.clone(), self.assignment, self.revoked.clone());
        self.tasks.spawn(async move {
            let inspected = match stored_offsets(&worker).await {
                Ok(stored) => tokio::task::spawn_blocking(move || inspect(&consumer, reading, &stored, &revoked)).await.unwrap_or_default(),
                Err(_) => vec![],
            };
            Done::Inspected { assignment, inspected, because_of_error }
        });
    }

    fn inspected(&mut self, inspected: Vec<Inspected>, because_of_error: bool) {
        self.inspecting = false;
        // The broker or the log did not answer: inspect again soon.
        self.inspect |= because_of_error && inspected.len() < self.partitions.len();
        // After an error, librdkafka reads no more of a partition until it is assigned again.
        self.reassign |= because_of_error;
        for Inspected { source, next, stored, low, high } in inspected {
            let Some(partition) = self.partitions.get_mut(&source) else { continue };
            let was_blocked = partition.blocked.is_some();
            if !was_blocked && partition.next_to_read() != next {
                // It was read meanwhile.
                continue;
            }
            // An operator may have changed the stored offset of a blocked partition.
            let next = if was_blocked && partition.is_idle() { stored } else { next };
            let found = OutOfRange::found(next, low, high);
            match &found {
                Some(found) if !was_blocked => {
                    let why = found.message(&self.worker.group, &source);
                    tracing::error!(%source, why, "partition blocked");
                    self.worker.status.block(&source, Some(why));
                }
                None if was_blocked => {
                    tracing::info!(%source, offset = next, "partition resumed");
                    partition.rewind(next);
                    self.worker.status.block(&source, None);
                    self.worker.status.translated_to(&source, next);
                }
                _ => {}
            }
            self.reassign |= found.is_some() != was_blocked;
            partition.blocked = found;
        }
        self.reassign_unless_awaiting();
    }

    fn ask_for_topics(&mut self) {
        if self.topics_complete || self.asking_for_topics {
            return;
        }
        self.asking_for_topics = true;
        let (consumer, topics) = (self.consumer.clone(), self.worker.topics());
        self.tasks.spawn(async move {
            let asking = tokio::task::spawn_blocking(move || {
                let mut missing = vec![];
                for topic in topics {
                    if !topic_exists(consumer.client(), &topic, ASK_TIMEOUT)? {
                        missing.push(topic);
                    }
                }
                Ok(missing)
            });
            asking.await.map_or(Done::Stopped, Done::MissingTopics)
        });
    }

    fn topics_known(&mut self, missing: KafkaResult<Vec<String>>) {
        self.asking_for_topics = false;
        // librdkafka's statistics report a broker that does not answer.
        if let Ok(missing) = missing {
            self.topics_complete = missing.is_empty();
            self.worker.status.missing_topics(missing);
        }
    }
}

fn list<'a>(sources: impl IntoIterator<Item = &'a Source>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for source in sources {
        list.add_partition(&source.topic, source.partition);
    }
    list
}

async fn stored_offsets<E: LogEvent>(worker: &Worker<E>) -> Result<HashMap<Source, i64>, StoreError> {
    let mut offsets = HashMap::new();
    for topic in worker.translations.keys() {
        let stored = worker.store.stored_offsets(&worker.group, topic).await?;
        offsets.extend(stored.into_iter().map(|(partition, offset)| (Source::new(topic, partition), offset)));
    }
    Ok(offsets)
}

/// Reads the ends of the partitions that the brokers know; blocks.
fn inspect(
    consumer: &Consumer,
    reading: Vec<(Source, Option<i64>)>,
    stored: &HashMap<Source, i64>,
    revoked: &CancellationToken,
) -> Vec<Inspected> {
    let mut inspected = vec![];
    for (source, next) in reading {
        if revoked.is_cancelled() {
            break;
        }
        match consumer.fetch_watermarks(&source.topic, source.partition, ASK_TIMEOUT) {
            Ok((low, high)) => inspected.push(Inspected { stored: stored.get(&source).copied(), source, next, low, high }),
            Err(error) => tracing::debug!(%source, %error, "partition not inspected"),
        }
    }
    inspected
}
