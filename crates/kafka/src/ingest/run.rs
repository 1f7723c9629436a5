//! The loop of a translator: messages go from the consumer to their partition, and from there in batches into the log.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use event_store::{Backoff, LogEvent, NextOffset, trace};
use futures::StreamExt;
use opentelemetry::KeyValue;
use rdkafka::{
    TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{Consumer as _, StreamConsumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    blocked::Blocked,
    config::TranslatorSettings,
    error::TranslatorError,
    input::{Change, Group},
    metrics::METRICS,
    output::{Gap, Outcome, Worker},
    partition::{Partition, share},
    received::Received,
    source::Source,
    survey::{self, Compared, Surveyed},
};
use crate::client::{
    error::causes,
    inspect::{Inspector, topic_exists},
    traceparent,
};

/// How often the loop checks what no event announces.
const TICK: Duration = Duration::from_secs(1);
/// How often the partitions are surveyed.
const SURVEY_INTERVAL: Duration = Duration::from_secs(2);
/// How often a survey compares the messages that were read last.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a question to the broker may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long leaving the group may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run<E: LogEvent>(
    settings: &TranslatorSettings,
    worker: Arc<Worker<E>>,
    inspector: Inspector,
    shutdown: CancellationToken,
) -> Result<(), TranslatorError> {
    let topics: Vec<_> = worker.translations.keys().map(String::as_str).collect();
    tracing::info!(group = settings.group, ?topics, "translator started");
    loop {
        let (sender, mut changes) = mpsc::unbounded_channel();
        let group = Group { changes: sender, status: worker.status.clone() };
        worker.status.created();
        let consumer: Consumer = StreamConsumer::from_config_and_context(&settings.consumer(), group).map_err(TranslatorError::Consumer)?;
        consumer.subscribe(&topics).map_err(TranslatorError::Consumer)?;

        let consumer = Arc::new(consumer);
        let mut running = Running::new(consumer.clone(), worker.clone(), inspector.clone(), settings.brokers.replace_after);
        let outcome = running.until(&shutdown, &consumer, &mut changes).await;
        running.finish().await;
        drop(running);
        leave(consumer).await;
        match outcome? {
            Ended::Shutdown => return Ok(()),
            Ended::NoBroker => {
                tracing::warn!(seconds = settings.brokers.replace_after.as_secs(), "no broker for too long; consumer replaced")
            }
            Ended::Recreated => inspector.replace(),
        }
    }
}

/// Why a consumer is no longer used.
#[derive(Debug)]
enum Ended {
    Shutdown,
    /// It has had no broker for too long. A new one may find one.
    NoBroker,
    /// A topic was created again. librdkafka may fetch nothing of the new topic with a client that knew the old one. A new client compares
    /// the messages that were read last with the new topic, as after a restart.
    Recreated,
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
        offsets: HashMap<Source, NextOffset>,
    },
    Batch {
        assignment: u64,
        source: Source,
        outcome: Outcome,
    },
    Surveyed {
        assignment: u64,
        surveyed: Vec<Surveyed>,
        because_of_error: bool,
    },
    MissingTopics(KafkaResult<Vec<String>>),
    /// The task was stopped.
    Stopped,
}

struct Running<E> {
    consumer: Arc<Consumer>,
    worker: Arc<Worker<E>>,
    inspector: Inspector,
    replace_after: Duration,
    /// Counts assignments. A result that carries an older number is dropped.
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
    surveying: bool,
    /// Whether the consumer reported an error of a partition, without naming the partition.
    failed: bool,
    /// Whether the consumer reported messages that it cannot read, without naming the partition.
    unreadable: bool,
    last_surveyed: Instant,
    last_compared: Option<Instant>,
    asking_for_topics: bool,
    topics_complete: bool,
    last_error: Option<(KafkaError, Instant)>,
}

impl<E: LogEvent> Running<E> {
    fn new(consumer: Arc<Consumer>, worker: Arc<Worker<E>>, inspector: Inspector, replace_after: Duration) -> Self {
        Self {
            consumer,
            worker,
            inspector,
            replace_after,
            assignment: 0,
            revoked: CancellationToken::new(),
            awaiting_offsets: None,
            partitions: HashMap::new(),
            batches: 0,
            tasks: JoinSet::new(),
            reassign: false,
            surveying: false,
            failed: false,
            unreadable: false,
            last_surveyed: Instant::now(),
            last_compared: None,
            asking_for_topics: false,
            topics_complete: false,
            last_error: None,
        }
    }

    async fn until(
        &mut self,
        shutdown: &CancellationToken,
        consumer: &Consumer,
        changes: &mut mpsc::UnboundedReceiver<Change>,
    ) -> Result<Ended, TranslatorError> {
        let mut messages = consumer.stream();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In this order: an assignment comes before the messages of its partitions.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                Some(change) = changes.recv() => if let Some(ended) = self.changed(change) {
                    return Ok(ended);
                },
                Some(done) = self.tasks.join_next() => self.done(done?),
                _ = tick.tick() => {
                    if self.worker.status.lost_for() >= self.replace_after {
                        return Ok(Ended::NoBroker);
                    }
                    self.tick();
                }
                Some(message) = messages.next() => {
                    // A change since the poll above came before the message, too.
                    while let Ok(change) = changes.try_recv() {
                        if let Some(ended) = self.changed(change) {
                            return Ok(ended);
                        }
                    }
                    self.read(message)?;
                }
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
                    if let Outcome::Translated { to, .. } = outcome {
                        self.commit(&source, to);
                    }
                }
                Ok(_) => {}
                // A task that died has no result.
                Err(_) => return,
            }
        }
    }

    /// Returns whether the consumer is no longer used.
    fn changed(&mut self, change: Change) -> Option<Ended> {
        let sources = match change {
            Change::Assigned(sources) => Some(sources),
            Change::Revoked => {
                tracing::debug!("partitions revoked");
                self.worker.status.revoked();
                None
            }
            Change::Recreated { topic } => {
                tracing::warn!(topic, "topic was created again; consumer replaced");
                return Some(Ended::Recreated);
            }
        };
        self.assignment += 1;
        self.revoked.cancel();
        self.revoked = CancellationToken::new();
        // librdkafka keeps a pause beyond the assignment: the partition would return paused.
        self.resume(self.partitions.iter().filter(|(_, partition)| partition.is_paused).map(|(source, _)| source));
        self.partitions.clear();
        (self.reassign, self.failed, self.surveying) = (false, false, false);
        self.awaiting_offsets = sources;
        self.load_offsets();
        None
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
                match survey::stored_offsets(&worker).await {
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
            Done::Surveyed { assignment, surveyed, because_of_error } if assignment == self.assignment => {
                self.surveyed(surveyed, because_of_error);
            }
            Done::MissingTopics(missing) => self.topics_known(missing),
            Done::Offsets { .. } | Done::Surveyed { .. } | Done::Stopped => {}
        }
    }

    fn start(&mut self, offsets: &HashMap<Source, NextOffset>) {
        let Some(sources) = self.awaiting_offsets.take() else { return };
        tracing::info!(partitions = sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), "partitions assigned");
        let share = share(sources.len());
        let partition = |source: Source| (source.clone(), Partition::new(offsets.get(&source).cloned(), share));
        self.partitions = sources.into_iter().map(partition).collect();
        self.worker.status.assigned(self.partitions.iter().map(|(source, partition)| (source.clone(), partition.stored())));
        for (source, _) in self.partitions.iter().filter(|(_, partition)| !partition.is_compared()) {
            self.worker.status.failed(source, "the broker has not answered yet whether the topic is the one that was read before");
        }
        self.assign();
        // The partitions that were read before are not read until it is known that their topics are the same.
        self.survey();
    }

    /// Assigns every partition that may be read, with its next offset.
    fn assign(&mut self) {
        self.reassign = false;
        let (mut list, mut paused) = (TopicPartitionList::new(), vec![]);
        for (source, partition) in self.partitions.iter_mut().filter(|(_, partition)| partition.may_be_read()) {
            if partition.next_to_read().is_some_and(|offset| offset < 0) {
                // Kafka has no such offset, and librdkafka gives negative ones a meaning of its own.
                self.failed = true;
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
                self.take(Received::of(&message));
                Ok(())
            }
            Err(error @ KafkaError::MessageConsumptionFatal(_)) => Err(TranslatorError::Consumer(error)),
            Err(error) => {
                self.consumer_error(error);
                Ok(())
            }
        }
    }

    fn take(&mut self, message: Received) {
        let source = message.source.clone();
        let Some(partition) = self.partitions.get_mut(&source) else { return };
        partition.take(message);
        if partition.wants_pause() {
            partition.is_paused = true;
            if let Err(error) = self.consumer.pause(&list([&source])) {
                tracing::debug!(%source, %error, "not paused");
            }
        }
        self.dispatch(&source);
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
        trace::follow(&span, batch.iter().map(|message| traceparent::of(&message.headers)));
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
            Outcome::Translated { to, last } => {
                partition.written(to, last);
                // After messages that it cannot read, the consumer resumes when it is assigned again.
                self.reassign |= std::mem::take(&mut partition.is_stuck);
                self.worker.status.translated_to(source, Some(to));
                self.commit(source, to);
                self.dispatch(source);
                self.resume_where_wanted(source);
                self.reassign_unless_awaiting();
            }
            Outcome::Moved { stored } => {
                METRICS.offset_conflicts.add(1, &[KeyValue::new("topic", source.topic.to_string())]);
                tracing::warn!(%source, expected = partition.stored(), stored, "stored offset moved by another translator or an operator");
                partition.rewind(stored.map(NextOffset::from));
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
                self.failed = true;
                self.survey_when_wanted();
            }
            Some(RDKafkaErrorCode::BadCompression) => {
                self.unreadable = true;
                self.survey_when_wanted();
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
        self.survey_when_wanted();
        self.ask_for_topics();
    }

    fn survey_when_wanted(&mut self) {
        let since = self.last_surveyed.elapsed();
        // The consumer reports each partition separately, but does not name it.
        if since >= SURVEY_INTERVAL || ((self.failed || self.unreadable) && since >= TICK) {
            self.survey();
        }
    }

    /// Compares what this process knows of its partitions with the log and the brokers.
    fn survey(&mut self) {
        if self.surveying || self.awaiting_offsets.is_some() || self.partitions.is_empty() {
            return;
        }
        (self.surveying, self.last_surveyed) = (true, Instant::now());
        let (because_of_error, compare) =
            (std::mem::take(&mut self.failed), self.last_compared.is_none_or(|last| last.elapsed() >= COMPARE_INTERVAL));
        if compare {
            self.last_compared = Some(Instant::now());
        }
        let (unreadable, ends) = (std::mem::take(&mut self.unreadable), self.worker.status.known_ends());
        let question = |(source, partition): (&Source, &mut Partition)| {
            let next = partition.next_to_read();
            let is_behind = ends.get(source).is_some_and(|(first, end)| next.unwrap_or(*first) < *end);
            // Twice at the same offset, although there is something behind it.
            let is_resting =
                partition.is_idle() && !partition.is_paused && is_behind && std::mem::replace(&mut partition.rested_at, next) == next;
            let may_be_stuck = unreadable && partition.is_idle() && is_behind;
            survey::Question {
                source: source.clone(),
                next,
                stored: partition.stored(),
                anchor: partition.anchor().filter(|_| partition.blocked.is_none() && (compare || !partition.is_compared())).cloned(),
                last: partition.last().cloned(),
                wants_ends: because_of_error || partition.blocked.is_some() || !partition.is_compared(),
                wants_gap: (is_resting || may_be_stuck) && partition.may_be_read(),
            }
        };
        let questions: Vec<_> = self.partitions.iter_mut().map(question).collect();
        let (worker, inspector, assignment) = (self.worker.clone(), self.inspector.clone(), self.assignment);
        self.tasks.spawn(async move {
            let surveyed = survey::survey(&worker, &inspector, questions).await;
            Done::Surveyed { assignment, surveyed, because_of_error }
        });
    }

    fn surveyed(&mut self, surveyed: Vec<Surveyed>, because_of_error: bool) {
        self.surveying = false;
        // The broker or the log did not answer: survey again soon.
        self.failed |= because_of_error && surveyed.iter().filter(|one| one.ends.is_some()).count() < self.partitions.len();
        // After an error, librdkafka reads no more of a partition until it is assigned again.
        self.reassign |= because_of_error;
        for Surveyed { question, stored, ends, compared, gap } in surveyed {
            let survey::Question { source, next, stored: stored_before, anchor, last, .. } = question;
            let Some(partition) = self.partitions.get_mut(&source) else { continue };
            let found = ends.and_then(|(low, high)| Blocked::out_of_range(stored.as_ref().map(|stored| stored.offset), low, high));
            if let Some(blocked) = &partition.blocked {
                let is_mended = match blocked {
                    Blocked::OutOfRange { .. } => ends.is_some() && found.is_none(),
                    // An operator sets an offset, and with it forgets the message before.
                    Blocked::Replaced { .. } => {
                        stored.as_ref().and_then(|stored| stored.last.as_ref()) != partition.last() && found.is_none()
                    }
                };
                if is_mended && partition.is_idle() {
                    tracing::info!(%source, offset = stored.as_ref().map(|stored| stored.offset), "partition resumed");
                    partition.blocked = None;
                    self.worker.status.block(&source, None);
                    self.rewind(&source, stored);
                } else if let (Blocked::OutOfRange { .. }, Some(found)) = (blocked, found) {
                    // The partition may have grown.
                    self.worker.status.block(&source, Some(found.message(&self.worker.group, &source)));
                    partition.blocked = Some(found);
                }
                continue;
            }
            // After an operator has set another offset, the comparison is of no use.
            match compared.filter(|_| partition.anchor() == anchor.as_ref()) {
                Some(Compared::Replaced { at }) => {
                    self.block(&source, Blocked::Replaced { at });
                    continue;
                }
                Some(Compared::Same) => {
                    let may_be_read_now = partition.compared(last);
                    self.reassign |= may_be_read_now;
                    if may_be_read_now {
                        self.worker.status.translated_to(&source, partition.stored());
                    }
                }
                None => {}
            }
            // The partition was read or written meanwhile.
            if !partition.is_idle() || partition.next_to_read() != next || partition.stored() != stored_before {
                continue;
            }
            if let Some(found) = found {
                self.block(&source, found);
            } else if stored.as_ref().map(|stored| stored.offset) != stored_before {
                tracing::info!(%source, before = stored_before, offset = stored.as_ref().map(|stored| stored.offset), "stored offset was set");
                self.rewind(&source, stored);
            } else if let Some((to, gap)) = gap {
                partition.is_writing = true;
                self.batches += 1;
                let at = next.unwrap_or(to);
                let (worker, assignment, revoked) = (self.worker.clone(), self.assignment, self.revoked.clone());
                partition.is_stuck = gap != Gap::Empty;
                self.tasks.spawn(async move {
                    let outcome = worker.skip(&source, stored_before, at, to, &gap, &revoked).await;
                    Done::Batch { assignment, source, outcome }
                });
            }
        }
        self.reassign_unless_awaiting();
    }

    fn block(&mut self, source: &Source, found: Blocked) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        let why = found.message(&self.worker.group, source);
        tracing::error!(%source, why, "partition blocked");
        self.worker.status.block(source, Some(why));
        partition.block(found);
        self.reassign = true;
    }

    fn rewind(&mut self, source: &Source, stored: Option<NextOffset>) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        self.worker.status.translated_to(source, stored.as_ref().map(|stored| stored.offset));
        partition.rewind(stored);
        self.reassign = true;
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
