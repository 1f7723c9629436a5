//! Dead letters: listed, shown, and sent back to the topic that they came from.
//!
//! Kafka keeps a dead letter until the topic's retention deletes it. A dead letter that was sent back is marked by a message without key
//! and value in the same topic, whose header names it.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use kafka::{
    Brokers, SendError, StartError,
    client::{ANSWER_TIMEOUT, ClientLog, InspectError, Inspector, Outgoing, Producer, ends},
    dead_letter::{OFFSET, PARTITION, REASON, SUFFIX, TOPIC, topic_of},
};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::{BorrowedMessage, Header, Headers as _, OwnedHeaders},
    types::RDKafkaErrorCode,
};

/// How long reading a topic waits for the next message.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The header that marks a dead letter as sent back: its `partition/offset`.
const REPLAYED: &str = "dead-letter-replayed";

/// An operation on topics failed.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The brokers did not answer.
    #[error(transparent)]
    Broker(#[from] InspectError),
    /// A dead letter could not be sent back, or could not be marked as sent back.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A message in a topic of dead letters does not name its origin, so no translator wrote it.
    #[error("{0} does not name the topic and partition that it came from, so it cannot be sent back")]
    NoSource(Place),
}

/// The place of a message: `topic/partition/offset`.
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

/// A dead letter without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its place.
    pub place: Place,
    /// The place that the message came from.
    pub source: Option<Place>,
    /// Why the message could not be translated.
    pub reason: String,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// The size of its value in bytes.
    pub bytes: usize,
    /// The time it was written, in milliseconds since 1970.
    pub written_at: Option<i64>,
    /// Whether it was sent back.
    pub replayed: bool,
}

/// A dead letter with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The dead letter.
    pub letter: DeadLetter,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// The message's own headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Operates on topics.
pub struct Operator {
    config: ClientConfig,
    log: ClientLog,
    inspector: Inspector,
    producer: Producer,
}

impl Operator {
    /// Creates an operator. It connects when it is first needed.
    ///
    /// # Errors
    /// If librdkafka does not accept the settings.
    pub fn new(brokers: &Brokers) -> Result<Self, StartError> {
        let (inspector, producer) = (Inspector::new(brokers)?, Producer::new(brokers.replaying(), brokers)?);
        Ok(Self { config: brokers.inspecting(), log: ClientLog::new(brokers), inspector, producer })
    }

    /// Answers the first offset of each partition of a topic and the offset after its last. A topic that does not exist has none.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn ends(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, OperateError> {
        Ok(self.inspector.ends(topic).await?)
    }

    /// Lists the topics of dead letters.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn dead_letter_topics(&self) -> Result<Vec<String>, OperateError> {
        let topics = self.inspector.ask(|consumer| {
            let metadata = consumer.fetch_metadata(None, ANSWER_TIMEOUT)?;
            let mut topics: Vec<_> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
            topics.retain(|name| name.ends_with(SUFFIX));
            topics.sort_unstable();
            Ok(topics)
        });
        Ok(topics.await?)
    }

    /// Answers the name of the topic for a topic's dead letters; for such a topic, its own name.
    pub fn dead_letter_topic(of: &str) -> String {
        if of.ends_with(SUFFIX) { of.to_owned() } else { topic_of(of) }
    }

    /// Lists the dead letters of a topic of dead letters, in the order of their origins.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn dead_letters(&self, topic: &str) -> Result<Vec<DeadLetter>, OperateError> {
        let (topic, config, log) = (topic.to_owned(), self.config.clone(), self.log.clone());
        let mut letters = self
            .inspector
            .ask(move |consumer| {
                let ends = ends(consumer, &topic)?;
                let (mut letters, mut replayed) = (vec![], HashSet::new());
                read(&log, &config, &topic, &ends, |message| match header(message, REPLAYED) {
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

    /// Reads the dead letter at a place, if there is one. It does not look up whether the dead letter was sent back.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn dead_letter(&self, place: &Place) -> Result<Option<Letter>, OperateError> {
        let Place { topic, partition, offset } = place.clone();
        let (config, log) = (self.config.clone(), self.log.clone());
        let letter = self.inspector.ask(move |consumer| {
            let ends = ends(consumer, &topic)?;
            let inside = ends.get(&partition).is_some_and(|(low, high)| (*low..*high).contains(&offset));
            if !inside {
                return Ok(None);
            }
            let mut found = None;
            read(&log, &config, &topic, &BTreeMap::from([(partition, (offset, offset + 1))]), |message| {
                if message.offset() == offset && header(message, REPLAYED).is_none() {
                    found = Some(Letter {
                        letter: letter(message),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: own_headers(message),
                    });
                }
            })?;
            Ok(found)
        });
        Ok(letter.await?)
    }

    /// Sends a dead letter back: the message as it was, to the end of the partition that it came from. After a crash it may not be marked as
    /// sent back.
    ///
    /// # Errors
    /// If it does not name its origin, or the brokers refuse it.
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
}

/// Reads each partition of a topic from its first offset to before its last; blocks.
fn read(
    log: &ClientLog,
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
    let consumer = BaseConsumer::from_config_and_context(config, log.clone())?;
    consumer.assign(&assignment)?;
    let mut last_message = Instant::now();
    let mut failure = None;
    while !unread.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                last_message = Instant::now();
                if let Some(until) = unread.get(&message.partition()).copied() {
                    if message.offset() < until {
                        each(&message);
                    }
                    if message.offset() + 1 >= until {
                        unread.remove(&message.partition());
                    }
                }
            }
            // The last offset may be the end of a transaction, which is no message.
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unread.remove(&partition)),
            // The consumer retries by itself.
            Some(Err(error)) => failure = Some(error),
            None => {}
        }
        if last_message.elapsed() > READ_TIMEOUT {
            return Err(failure.unwrap_or(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)));
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

/// Answers the last header of a name: ours follow the message's own.
fn header(message: &BorrowedMessage<'_>, name: &str) -> Option<String> {
    let value = message.headers()?.iter().filter(|header| header.key == name).last()?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Answers the message's own headers: all but ours, which are the last of their names.
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
    fn place_is_read_as_it_is_written() {
        let place = Place { topic: "inventories.dead-letters".into(), partition: 3, offset: 41 };
        assert_eq!(place.to_string().parse(), Ok(place));
        for wrong in ["", "inventories", "inventories/3", "inventories/3/", "inventories/a/1", "inventories/1/-1", "/0/0", "a/0/0/0"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong:?}");
        }
    }
}
