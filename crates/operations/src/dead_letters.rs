//! Dead letters: listed, shown, sent back to the topic that they came from, and dismissed.
//!
//! Kafka keeps a dead letter until the topic's retention deletes it. A dead letter that was sent back or dismissed has a mark: a message
//! without key, value and reason behind it in the same partition, whose header names it. A list reads the newest messages only. Marks come
//! after their letters, so it knows the state of every letter that it shows.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    str::FromStr,
    time::{Duration, Instant},
};

use kafka::{
    Brokers, SendError, StartError,
    client::{ANSWER_TIMEOUT, ClientLog, Headers, InspectError, Inspector, Outgoing, Producer, ends, to_send},
    dead_letter::{BYTES, DISMISSAL, DISMISSED, OFFSET, PARTITION, REASON, REPLAYED, SHA256, STUB, SUFFIX, TOPIC, is_reserved, topic_of},
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode,
};

/// How long reading a topic waits for the next message.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest headers that are read, in bytes. Those of a dead letter were read before it was written.
const MAX_HEADER_BYTES: usize = 4 << 20;

/// An operation on topics failed.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The brokers did not answer.
    #[error(transparent)]
    Broker(#[from] InspectError),
    /// A dead letter could not be sent back, or could not be marked.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A message in a topic of dead letters does not name its origin, so no translator wrote it.
    #[error(
        "{0} does not name the topic and partition that it came from, so it cannot be sent back. Look at it with `cartctl dead-letters show {0}`, and send a corrected message to the source topic"
    )]
    NoSource(Place),
    /// Only a stub was kept of the message.
    #[error("{0} is a stub: the message itself was not kept, so it cannot be sent back")]
    Stub(Place),
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
    /// Why the message was not kept: this is a stub.
    pub stub: Option<String>,
    /// Whether it was sent back.
    pub replayed: bool,
    /// Why it was dismissed, if it was.
    pub dismissed: Option<String>,
    /// A hash of its value, to tell it from another letter with the same origin: the topic may have been created again.
    value_hash: u64,
}

impl DeadLetter {
    /// Answers whether it was neither sent back nor dismissed.
    pub fn is_waiting(&self) -> bool {
        !self.replayed && self.dismissed.is_none()
    }

    /// The identity of a letter, which its copies share. A translator that dies may write a letter again.
    fn identity(&self) -> (Place, Option<Vec<u8>>, u64, String) {
        (self.source.clone().unwrap_or_else(|| self.place.clone()), self.key.clone(), self.value_hash, self.reason.clone())
    }
}

/// The newest dead letters of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewestLetters {
    /// The dead letters, in the order of their origins.
    pub letters: Vec<DeadLetter>,
    /// The number of older offsets that were not read.
    pub unread: i64,
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
    inspector: Inspector,
    producer: Producer,
}

impl Operator {
    /// Creates an operator. It connects when it is first needed.
    ///
    /// # Errors
    /// If librdkafka does not accept the settings.
    pub fn new(brokers: &Brokers) -> Result<Self, StartError> {
        let (inspector, producer) = (Inspector::reading(brokers)?, Producer::new(brokers.replaying(), brokers)?);
        Ok(Self { inspector, producer })
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

    /// Lists the dead letters among the newest messages of a topic of dead letters; of all messages without a limit. A letter that was
    /// written twice is listed once, and a mark of either counts for both.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn dead_letters(&self, topic: &str, newest: Option<i64>) -> Result<NewestLetters, OperateError> {
        let topic = topic.to_owned();
        let found = self.inspector.ask(move |consumer| {
            let mut ranges = ends(consumer, &topic)?;
            let mut unread = 0;
            for (low, high) in ranges.values_mut() {
                let from = newest.map_or(*low, |newest| (*high).saturating_sub(newest).max(*low));
                unread += from - *low;
                *low = from;
            }
            let mut marks = Marks::default();
            let mut letters = vec![];
            read(consumer, &topic, &ranges, |message| {
                let headers = Headers::of(message, MAX_HEADER_BYTES);
                if !marks.take(message, &headers) {
                    letters.push(letter(message, &headers));
                }
            })?;
            Ok(NewestLetters { letters: marks.settle(letters), unread })
        });
        Ok(found.await?)
    }

    /// Reads the dead letter at a place, if there is one. It does not look up whether the dead letter was sent back or dismissed.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn dead_letter(&self, place: &Place) -> Result<Option<Letter>, OperateError> {
        let Place { topic, partition, offset } = place.clone();
        let found = self.inspector.ask(move |consumer| {
            let ends = ends(consumer, &topic)?;
            let inside = ends.get(&partition).is_some_and(|(low, high)| (*low..*high).contains(&offset));
            if !inside {
                return Ok(None);
            }
            let mut found = None;
            read(consumer, &topic, &BTreeMap::from([(partition, (offset, offset + 1))]), |message| {
                let headers = Headers::of(message, MAX_HEADER_BYTES);
                if message.offset() == offset && !Marks::default().take(message, &headers) {
                    let letter = letter(message, &headers);
                    let own = headers.read.into_iter().filter(|(name, _)| !is_reserved(name)).collect();
                    found = Some(Letter { letter, value: message.payload().map(<[u8]>::to_vec), headers: own });
                }
            })?;
            Ok(found)
        });
        Ok(found.await?)
    }

    /// Sends a dead letter back: the message as it was, to the end of the partition that it came from. After a crash it may not be marked as
    /// sent back.
    ///
    /// # Errors
    /// If it does not name its origin, is a stub, or the brokers refuse it.
    pub async fn replay(&self, letter: &Letter) -> Result<(), OperateError> {
        let place = &letter.letter.place;
        if letter.letter.stub.is_some() {
            return Err(OperateError::Stub(place.clone()));
        }
        let source = letter.letter.source.as_ref().ok_or_else(|| OperateError::NoSource(place.clone()))?;
        let headers = to_send(letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())));
        let (key, value) = (letter.letter.key.as_deref(), letter.value.as_deref());
        self.producer.send(Outgoing { topic: &source.topic, partition: Some(source.partition), key, value, headers }).await?;
        self.mark(place, &[(REPLAYED, &mark(place))]).await
    }

    /// Dismisses a dead letter: it is not sent back, for a reason.
    ///
    /// # Errors
    /// If the brokers refuse it.
    pub async fn dismiss(&self, place: &Place, reason: &str) -> Result<(), OperateError> {
        self.mark(place, &[(DISMISSED, &mark(place)), (DISMISSAL, reason)]).await
    }

    async fn mark(&self, place: &Place, headers: &[(&str, &str)]) -> Result<(), OperateError> {
        let headers = to_send(headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))));
        let partition = Some(place.partition);
        self.producer.send(Outgoing { topic: &place.topic, partition, key: None, value: None, headers }).await?;
        Ok(())
    }
}

/// The marks in a topic, by the place of a letter: `partition/offset`.
#[derive(Default)]
struct Marks {
    replayed: HashSet<String>,
    dismissed: HashMap<String, String>,
}

impl Marks {
    /// Takes a message if it is a mark. A dead letter is none, whatever headers its sender gave it: it has a reason.
    fn take(&mut self, message: &impl Message, headers: &Headers) -> bool {
        if message.key().is_some() || message.payload().is_some() || headers.last(REASON).is_some() {
            return false;
        }
        if let Some(of) = headers.text(REPLAYED) {
            self.replayed.insert(of);
        } else if let Some(of) = headers.text(DISMISSED) {
            self.dismissed.insert(of, headers.text(DISMISSAL).unwrap_or_default());
        } else {
            return false;
        }
        true
    }

    /// Puts the marks onto their letters, of which each is kept once, and orders the letters by their origins.
    fn settle(&self, letters: Vec<DeadLetter>) -> Vec<DeadLetter> {
        let mut settled: HashMap<_, DeadLetter> = HashMap::with_capacity(letters.len());
        for letter in letters {
            let place = mark(&letter.place);
            let (replayed, dismissed) = (self.replayed.contains(&place), self.dismissed.get(&place).cloned());
            let one = settled.entry(letter.identity()).or_insert(letter);
            one.replayed |= replayed;
            one.dismissed = dismissed.or(one.dismissed.take());
        }
        let mut letters: Vec<_> = settled.into_values().collect();
        letters.sort_by(|one, other| (&one.source, &one.place).cmp(&(&other.source, &other.place)));
        letters
    }
}

/// Reads the ranges of a topic's partitions, each from its first offset to before its last; blocks.
fn read(
    consumer: &BaseConsumer<ClientLog>,
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
            consumer.unassign()?;
            return Err(failure.unwrap_or(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)));
        }
    }
    consumer.unassign()
}

fn mark(place: &Place) -> String {
    format!("{}/{}", place.partition, place.offset)
}

fn letter(message: &impl Message, headers: &Headers) -> DeadLetter {
    let source = || {
        Some(Place {
            topic: headers.text(TOPIC)?,
            partition: headers.text(PARTITION)?.parse().ok()?,
            offset: headers.text(OFFSET)?.parse().ok()?,
        })
    };
    DeadLetter {
        place: Place { topic: message.topic().to_owned(), partition: message.partition(), offset: message.offset() },
        source: source(),
        reason: headers.text(REASON).unwrap_or_default(),
        key: message.key().map(<[u8]>::to_vec),
        bytes: headers.text(BYTES).and_then(|bytes| bytes.parse().ok()).unwrap_or_else(|| message.payload().map_or(0, <[u8]>::len)),
        written_at: message.timestamp().to_millis(),
        stub: headers.text(STUB),
        replayed: false,
        dismissed: None,
        // That of a stub's message is in a header.
        value_hash: hash(message.payload().or_else(|| headers.last(SHA256))),
    }
}

fn hash(value: Option<&[u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::select};
    use rdkafka::{Timestamp, message::OwnedMessage};

    use super::*;

    fn any_header() -> impl Strategy<Value = (String, Option<Vec<u8>>)> {
        let ours = select(vec![TOPIC, PARTITION, OFFSET, REASON, STUB, BYTES, SHA256, REPLAYED, DISMISSED, DISMISSAL]);
        let name = prop_oneof![4 => ours.prop_map(str::to_owned), 1 => "[^\0]{0,20}"];
        let value = prop_oneof![vec(any::<u8>(), 0..40), "-?[0-9]{1,25}(/[0-9]{1,25})?".prop_map(String::into_bytes)];
        (name, option::weighted(0.9, value))
    }

    proptest! {
        #[test]
        fn any_message_is_a_letter_or_a_mark(
            headers in vec(any_header(), 0..12),
            key in option::weighted(0.3, vec(any::<u8>(), 0..20)),
            value in option::weighted(0.3, vec(any::<u8>(), 0..20)),
            (offset, time) in any::<(i64, i64)>(),
        ) {
            let sent = to_send(headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())));
            let topic = "counts.dead-letters".to_owned();
            let message = OwnedMessage::new(value.clone(), key.clone(), topic, Timestamp::CreateTime(time), 3, offset, Some(sent));
            let (headers, mut marks) = (Headers::of(&message, MAX_HEADER_BYTES), Marks::default());
            if marks.take(&message, &headers) {
                prop_assert!(key.is_none() && value.is_none() && headers.last(REASON).is_none());
                prop_assert_eq!(marks.replayed.len() + marks.dismissed.len(), 1);
            } else {
                let one = super::letter(&message, &headers);
                prop_assert_eq!((one.place.offset, &one.key, one.is_waiting()), (offset, &key, true));
                // Its own headers do not settle it.
                prop_assert_eq!(marks.settle(vec![one.clone()]), vec![one]);
            }
        }

        #[test]
        fn any_text_is_a_place_or_refused(text in ".{0,40}", topic in "[a-z.-]{1,20}", partition in 0..i32::MAX, offset in 0..i64::MAX) {
            if let Ok(place) = text.parse::<Place>() {
                prop_assert_eq!(place.to_string().parse(), Ok(place));
            }
            let place = Place { topic, partition, offset };
            prop_assert_eq!(place.to_string().parse(), Ok(place));
        }
    }

    fn letter(offset: i64, source_offset: i64, reason: &str) -> DeadLetter {
        let place = |topic: &str, offset| Place { topic: topic.into(), partition: 0, offset };
        DeadLetter {
            place: place("counts.dead-letters", offset),
            source: Some(place("counts", source_offset)),
            reason: reason.into(),
            key: None,
            bytes: 2,
            written_at: None,
            stub: None,
            replayed: false,
            dismissed: None,
            value_hash: hash(Some(b"{}")),
        }
    }

    #[test]
    fn letter_written_twice_is_one() {
        // The last one came after the topic was created again.
        let other = DeadLetter { value_hash: hash(Some(b"[]")), ..letter(3, 7, "no JSON") };
        let letters = || vec![letter(0, 7, "no JSON"), letter(1, 3, "no JSON"), letter(2, 7, "no JSON"), other.clone()];
        let places = |letters: &[DeadLetter]| letters.iter().map(|letter| letter.place.offset).collect::<Vec<_>>();
        let settled = Marks::default().settle(letters());
        assert_eq!(places(&settled), [1, 0, 3]);
        assert!(settled.iter().all(DeadLetter::is_waiting));
        // A mark of either copy counts.
        let marks = Marks { replayed: ["0/2".to_owned()].into(), dismissed: [("0/1".to_owned(), "known".to_owned())].into() };
        let settled = marks.settle(letters());
        assert_eq!((settled[0].dismissed.as_deref(), settled[1].replayed, settled[2].is_waiting()), (Some("known"), true, true));
    }

    #[test]
    fn place_is_read_as_it_is_written() {
        let place = Place { topic: "inventories.dead-letters".into(), partition: 3, offset: 41 };
        assert_eq!(place.to_string().parse(), Ok(place));
        for wrong in ["", "inventories", "inventories/3", "inventories/3/", "inventories/a/1", "inventories/1/-1", "/0/0", "a/0/0/0"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong:?}");
        }
    }
}
