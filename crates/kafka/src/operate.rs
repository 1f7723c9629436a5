//! For operators: where topics begin and end, and dead letters, shown and sent back to where they came from.
//!
//! Kafka keeps a dead letter until the topic's retention takes it. That it was sent back is written beside it, in the same topic, as a message
//! without key and value whose header names it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use event_store::{EventStore, LogEvent, StoreError};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError,
    message::{BorrowedMessage, Header, Headers as _, OwnedHeaders},
};

use crate::{
    client::{
        brokers::Brokers,
        context::Logs,
        error::{SendError, StartError},
        producer::{Outgoing, Producer},
    },
    ingest::dead_letter::{OFFSET, PARTITION, REASON, SUFFIX, TOPIC, topic_of},
};

/// How long the brokers may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long reading may go without a message before it is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// The header that says of a dead letter, as `partition/offset`, that it was sent back.
const REPLAYED: &str = "dead-letter-replayed";

/// What went wrong between an operator and Kafka.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The brokers do not answer, or not as they should.
    #[error("the broker at {servers} did not answer as it should")]
    Broker {
        /// Which.
        servers: String,
        /// Why.
        #[source]
        cause: KafkaError,
    },
    /// A dead letter could not be sent back, or that it was could not be written down.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A dead letter does not say where it came from, so it is none of a translator's.
    #[error("{0} does not say which topic and partition it came from, so it cannot be sent back")]
    NoSource(Place),
    /// What was to be done died.
    #[error("the work died")]
    Died(#[from] tokio::task::JoinError),
}

/// Where a message stands; written `topic/partition/offset`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        if let [topic, partition, offset] = parts.as_slice()
            && !topic.is_empty()
            && let (Ok(partition), Ok(offset)) = (partition.parse::<i32>(), offset.parse())
            && partition >= 0
            && offset >= 0
        {
            return Ok(Self { topic: (*topic).to_owned(), partition, offset });
        }
        Err("a place is written topic/partition/offset, as in inventories.dead-letters/0/7".to_owned())
    }
}

/// A dead letter, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it stands.
    pub place: Place,
    /// Where the message stood that it is of.
    pub source: Option<Place>,
    /// Why that could not be translated.
    pub reason: String,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// How many bytes its value has.
    pub bytes: usize,
    /// When it was written, in milliseconds since 1970.
    pub written_at: Option<i64>,
    /// Whether it was sent back.
    pub replayed: bool,
}

/// A dead letter, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// What it is.
    pub letter: DeadLetter,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// The headers that the message came with.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Looks at topics and sends dead letters back.
pub struct Operator {
    brokers: Brokers,
    producer: Producer,
}

impl Operator {
    /// Connects when it is first needed.
    ///
    /// # Errors
    /// Where librdkafka does not take the settings.
    pub fn new(brokers: &Brokers) -> Result<Self, StartError> {
        Ok(Self { brokers: brokers.clone(), producer: Producer::new(brokers.sending(), brokers)? })
    }

    /// The first offset of each partition of a topic, and the one after its last. A topic that does not exist has none.
    ///
    /// # Errors
    /// Where the brokers do not answer.
    pub async fn ends(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, OperateError> {
        let topic = topic.to_owned();
        self.look(move |consumer, _| ends(consumer, &topic)).await
    }

    /// The topics of dead letters that there are.
    ///
    /// # Errors
    /// Where the brokers do not answer.
    pub async fn dead_letter_topics(&self) -> Result<Vec<String>, OperateError> {
        self.look(|consumer, _| {
            let metadata = consumer.fetch_metadata(None, ANSWER_TIMEOUT)?;
            let mut topics: Vec<_> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
            topics.retain(|name| name.ends_with(SUFFIX));
            topics.sort_unstable();
            Ok(topics)
        })
        .await
    }

    /// The name of the topic that a topic's dead letters are in; of such a topic, its own.
    pub fn dead_letter_topic(of: &str) -> String {
        if of.ends_with(SUFFIX) { of.to_owned() } else { topic_of(of) }
    }

    /// The dead letters in one of their topics, in the order in which the messages stood that they are of.
    ///
    /// # Errors
    /// Where the brokers do not answer.
    pub async fn dead_letters(&self, topic: &str) -> Result<Vec<DeadLetter>, OperateError> {
        let topic = topic.to_owned();
        let mut letters = self
            .look(move |consumer, config| {
                let ends = ends(consumer, &topic)?;
                let (mut letters, mut replayed) = (vec![], HashSet::new());
                read(consumer.context(), config, &topic, &ends, |message| match header(message, REPLAYED) {
                    Some(of) => drop(replayed.insert(of)),
                    None => letters.push(letter(message)),
                })?;
                for letter in &mut letters {
                    letter.replayed = replayed.contains(&mark(&letter.place));
                }
                Ok(letters)
            })
            .await?;
        letters.sort_by(|one, other| (&one.source, &one.place).cmp(&(&other.source, &other.place)));
        Ok(letters)
    }

    /// A dead letter with what is in it; `None` where there is none at this place. Whether it was sent back is not looked up.
    ///
    /// # Errors
    /// Where the brokers do not answer.
    pub async fn dead_letter(&self, place: &Place) -> Result<Option<Letter>, OperateError> {
        let Place { topic, partition, offset } = place.clone();
        self.look(move |consumer, config| {
            let ends = ends(consumer, &topic)?;
            let inside = ends.get(&partition).is_some_and(|(low, high)| (*low..*high).contains(&offset));
            if !inside {
                return Ok(None);
            }
            let mut found = None;
            read(consumer.context(), config, &topic, &BTreeMap::from([(partition, (offset, offset + 1))]), |message| {
                if message.offset() == offset && header(message, REPLAYED).is_none() {
                    found = Some(Letter {
                        letter: letter(message),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: own_headers(message),
                    });
                }
            })?;
            Ok(found)
        })
        .await
    }

    /// Sends a dead letter back: the message as it came, at the end of the partition that it came from. A crash before that is written down
    /// may have it sent once more, by whoever asks again.
    ///
    /// # Errors
    /// Where it does not say where it came from, or the brokers do not take it.
    pub async fn replay(&self, letter: &Letter) -> Result<(), OperateError> {
        let place = &letter.letter.place;
        let source = letter.letter.source.as_ref().ok_or_else(|| OperateError::NoSource(place.clone()))?;
        let headers = letter
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }));
        let (key, value) = (letter.letter.key.as_deref(), letter.value.as_deref());
        self.producer.send(Outgoing { topic: &source.topic, partition: Some(source.partition), key, value, headers }).await?;
        let headers = OwnedHeaders::new().insert(Header { key: REPLAYED, value: Some(&mark(place)) });
        let partition = Some(place.partition);
        self.producer.send(Outgoing { topic: &place.topic, partition, key: None, value: None, headers }).await?;
        Ok(())
    }

    /// Looking blocks: not on a thread that others need.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BaseConsumer<Logs>, &ClientConfig) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, OperateError> {
        look(&self.brokers, work).await
    }
}

/// See [`Operator::look`].
async fn look<T: Send + 'static>(
    brokers: &Brokers,
    work: impl FnOnce(&BaseConsumer<Logs>, &ClientConfig) -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, OperateError> {
    let (config, logs) = (brokers.looking(), Logs::of(brokers));
    let looked = tokio::task::spawn_blocking(move || {
        let consumer = BaseConsumer::from_config_and_context(&config, logs)?;
        work(&consumer, &config)
    });
    looked.await?.map_err(|cause| OperateError::Broker { servers: format!("{}{}", brokers.bootstrap_servers, brokers.refusal), cause })
}

/// How far the translators of a group are behind on a topic, all of them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicLag {
    /// Offsets that are still to be translated.
    pub lag: i64,
    /// Its partitions: so many translators can share it at the most.
    pub partitions: usize,
}

/// How far the translators of a group are behind: what they have stored in the log, beside what the brokers have.
///
/// # Errors
/// Where the log or the brokers do not answer.
pub async fn lags<E: LogEvent>(
    brokers: &Brokers,
    store: &EventStore<E>,
    group: &str,
    topics: Vec<String>,
) -> Result<BTreeMap<String, TopicLag>, LagError> {
    let stored = event_store::stored_offsets(store.pool()).await?;
    let stored: HashMap<_, _> =
        stored.into_iter().filter(|one| one.group == group).map(|one| ((one.topic, one.partition), one.next_offset)).collect();
    let ends = look(brokers, move |consumer, _| {
        topics.into_iter().map(|topic| ends(consumer, &topic).map(|ends| (topic, ends))).collect::<Result<Vec<_>, _>>()
    });
    let lag = |(topic, ends): (String, BTreeMap<i32, (i64, i64)>)| {
        // What was never translated is translated from the beginning.
        let lag = |(partition, (low, high)): (&i32, &(i64, i64))| {
            (high - stored.get(&(topic.clone(), *partition)).copied().unwrap_or(*low)).max(0)
        };
        let lag = TopicLag { lag: ends.iter().map(lag).sum(), partitions: ends.len() };
        (topic, lag)
    };
    Ok(ends.await?.into_iter().map(lag).collect())
}

/// How far translators are behind could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum LagError {
    /// The log does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The brokers do not answer.
    #[error(transparent)]
    Brokers(#[from] OperateError),
}

impl ConsumerContext for Logs {}

fn ends(consumer: &BaseConsumer<Logs>, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    let partitions = found.map(|topic| topic.partitions().iter().map(|partition| partition.id()).collect::<Vec<_>>()).unwrap_or_default();
    partitions.into_iter().map(|partition| Ok((partition, consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?))).collect()
}

/// Reads each partition from one offset to before another.
fn read(
    logs: &Logs,
    config: &ClientConfig,
    topic: &str,
    ranges: &BTreeMap<i32, (i64, i64)>,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), KafkaError> {
    let mut unread: BTreeMap<i32, i64> =
        ranges.iter().filter(|(_, (from, until))| from < until).map(|(partition, (_, until))| (*partition, *until)).collect();
    let mut assignment = TopicPartitionList::new();
    for partition in unread.keys() {
        let from = ranges.get(partition).map_or(0, |(from, _)| *from);
        assignment.add_partition_offset(topic, *partition, Offset::Offset(from))?;
    }
    let consumer = BaseConsumer::from_config_and_context(config, logs.clone())?;
    consumer.assign(&assignment)?;
    let mut heard = Instant::now();
    let mut trouble = None;
    while !unread.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                if let Some(until) = unread.get(&message.partition()).copied() {
                    if message.offset() < until {
                        each(&message);
                    }
                    if message.offset() + 1 >= until {
                        unread.remove(&message.partition());
                    }
                }
            }
            // The last offsets may be of a transaction's end, which is no message.
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unread.remove(&partition)),
            // It goes on trying by itself.
            Some(Err(error)) => trouble = Some(error),
            None => {}
        }
        if heard.elapsed() > SILENCE {
            let silent = KafkaError::MessageConsumption(rdkafka::types::RDKafkaErrorCode::OperationTimedOut);
            return Err(trouble.unwrap_or(silent));
        }
    }
    Ok(())
}

fn mark(place: &Place) -> String {
    format!("{}/{}", place.partition, place.offset)
}

fn letter(message: &BorrowedMessage<'_>) -> DeadLetter {
    let source = || {
        Some(Place {
            topic: header(message, TOPIC)?,
            partition: header(message, PARTITION)?.parse().ok()?,
            offset: header(message, OFFSET)?.parse().ok()?,
        })
    };
    DeadLetter {
        place: Place { topic: message.topic().to_owned(), partition: message.partition(), offset: message.offset() },
        source: source(),
        reason: header(message, REASON).unwrap_or_default(),
        key: message.key().map(<[u8]>::to_vec),
        bytes: message.payload_len(),
        written_at: message.timestamp().to_millis(),
        replayed: false,
    }
}

/// Ours are behind the message's own, so the last one counts.
fn header(message: &BorrowedMessage<'_>, name: &str) -> Option<String> {
    let value = message.headers()?.iter().filter(|header| header.key == name).last()?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The message's own headers: all but ours, the last ones of their names.
fn own_headers(message: &BorrowedMessage<'_>) -> Vec<(String, Option<Vec<u8>>)> {
    let mut headers: Vec<_> = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter())
        .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
        .collect();
    for name in [REASON, TOPIC, PARTITION, OFFSET] {
        if let Some(at) = headers.iter().rposition(|(key, _)| key == name) {
            headers.remove(at);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let place = Place { topic: "inventories.dead-letters".into(), partition: 3, offset: 41 };
        assert_eq!(place.to_string().parse(), Ok(place));
        for wrong in ["", "inventories", "inventories/3", "inventories/3/", "inventories/a/1", "inventories/1/-1", "/0/0", "a/0/0/0"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong:?}");
        }
    }
}
