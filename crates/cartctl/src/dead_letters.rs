//! `cartctl dead-letters`.

use clap::{Args, Subcommand};
use operations::{DeadLetter, Letter, NEWEST_LETTERS as NEWEST, NewestLetters, Operator, Place};
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::{
    arguments::{Common, Confirmed},
    error::Error,
    output::{Output, bytes, hex, moment},
};

/// The number of characters of a key or a reason in a table.
const SHOWN: usize = 80;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// List messages that could not be translated, and why
    List {
        /// Only of this topic
        #[arg(long)]
        topic: Option<String>,
        /// Also those that were replayed or dismissed
        #[arg(long)]
        settled: bool,
        /// Read so many of the newest messages of each partition
        #[arg(long, value_name = "MESSAGES", default_value_t = NEWEST, value_parser = clap::value_parser!(i64).range(1..))]
        newest: i64,
    },
    /// Show a dead letter with its value and headers
    Show {
        /// Its place, as `list` shows it: topic/partition/offset
        place: Place,
    },
    /// Send dead letters back to their topic, to be translated again
    Replay {
        #[command(flatten)]
        which: Which,
        /// With --all, only those of this topic
        #[arg(long, requires = "all")]
        topic: Option<String>,
        #[command(flatten)]
        confirmed: Confirmed,
    },
    /// Mark dead letters as settled, with a reason. They are not sent back
    Dismiss {
        #[command(flatten)]
        which: Which,
        /// With --all, only those of this topic
        #[arg(long, requires = "all")]
        topic: Option<String>,
        /// Why they need not be translated
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        confirmed: Confirmed,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Their places, as `list` shows them; also those that were replayed or dismissed before
    places: Vec<Place>,
    /// All that were neither replayed nor dismissed, in the order in which they were first read. Reads the whole topic
    #[arg(long)]
    all: bool,
}

/// A dead letter in the output.
#[derive(Serialize)]
struct Shown {
    place: String,
    source: Option<String>,
    reason: String,
    /// As text, or as hexadecimal digits after 0x.
    key: Option<String>,
    bytes: usize,
    written_at: Option<String>,
    /// Why the message was not kept: this is a stub.
    stub: Option<String>,
    replayed: bool,
    /// Why it was dismissed.
    dismissed: Option<String>,
}

impl Shown {
    fn of(letter: &DeadLetter) -> Self {
        let written_at = letter.written_at.and_then(|at| OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000).ok());
        Self {
            place: letter.place.to_string(),
            source: letter.source.as_ref().map(Place::to_string),
            reason: letter.reason.clone(),
            key: letter.key.as_deref().map(bytes),
            bytes: letter.bytes,
            written_at: written_at.map(moment),
            stub: letter.stub.clone(),
            replayed: letter.replayed,
            dismissed: letter.dismissed.clone(),
        }
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![
            self.place.clone(),
            self.source.clone().unwrap_or_else(|| "?".to_owned()),
            self.written_at.clone().unwrap_or_default(),
            short(self.key.as_deref().unwrap_or_default()),
            self.bytes.to_string(),
            short(&self.reason),
        ];
        row.push(self.state());
        row
    }

    fn state(&self) -> String {
        match (&self.dismissed, self.replayed, &self.stub) {
            (Some(reason), ..) => short(&format!("dismissed: {reason}")),
            (None, true, _) => "replayed".to_owned(),
            (None, false, Some(_)) => "stub".to_owned(),
            (None, false, None) => String::new(),
        }
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= SHOWN { text.to_owned() } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    let kafka = common.kafka()?;
    match task {
        Task::List { topic, settled, newest } => {
            let NewestLetters { mut letters, unread } = letters(&kafka, topic.as_deref(), Some(newest)).await?;
            letters.retain(|letter| settled || letter.is_waiting());
            if unread > 0 {
                output.note(&format!("{unread} older messages were not read. See --newest"));
            }
            let shown: Vec<_> = letters.iter().map(Shown::of).collect();
            output.list(&shown, "There are none", &["place", "message", "written", "key", "bytes", "reason", ""], Shown::row)
        }
        Task::Show { place } => {
            let Letter { mut letter, value, headers } = find(&kafka, &place).await?;
            let newest = kafka.dead_letters(&place.topic, Some(NEWEST)).await?.letters;
            let is_it = |one: &&DeadLetter| one.place == place || (one.source.is_some() && one.source == letter.source);
            (letter.replayed, letter.dismissed) =
                newest.iter().find(is_it).map_or((false, None), |one| (one.replayed, one.dismissed.clone()));
            show(&Shown::of(&letter), value.as_deref(), &headers, output)
        }
        Task::Replay { which, topic, confirmed } => replay(&kafka, which, topic.as_deref(), &confirmed, output).await,
        Task::Dismiss { which, topic, reason, confirmed } => dismiss(&kafka, which, topic.as_deref(), &reason, &confirmed, output).await,
    }
}

/// Reads the newest dead letters of a topic, or of all topics.
async fn letters(kafka: &Operator, topic: Option<&str>, newest: Option<i64>) -> Result<NewestLetters, Error> {
    let there = kafka.dead_letter_topics().await?;
    let topics = match topic.map(Operator::dead_letter_topic) {
        Some(topic) if there.contains(&topic) => vec![topic],
        Some(topic) => {
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(Error::Nothing(format!("The broker has no topic {topic}. Its dead-letter topics are: {there}")));
        }
        None => there,
    };
    let mut all = NewestLetters::default();
    for topic in topics {
        let NewestLetters { letters, unread } = kafka.dead_letters(&topic, newest).await?;
        all.letters.extend(letters);
        all.unread += unread;
    }
    Ok(all)
}

async fn find(kafka: &Operator, place: &Place) -> Result<Letter, Error> {
    let none = || Error::Nothing(format!("There is no dead letter at {place}. See `cartctl dead-letters list`"));
    // Only dead-letter topics: a replayed message is translated.
    if Operator::dead_letter_topic(&place.topic) != place.topic {
        return Err(none());
    }
    kafka.dead_letter(place).await?.ok_or_else(none)
}

fn show(shown: &Shown, value: Option<&[u8]>, headers: &[(String, Option<Vec<u8>>)], output: &Output) -> Result<(), Error> {
    if output.json {
        let headers: Vec<_> = headers.iter().map(|(key, value)| json!({ "key": key, "value": value.as_deref().map(bytes) })).collect();
        let mut document = match serde_json::to_value(shown).map_err(std::io::Error::other)? {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        // As text if it is UTF-8, otherwise its bytes.
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        document.insert("value".to_owned(), json!(text));
        document.insert("value_bytes".to_owned(), json!(value.filter(|_| text.is_none()).map(hex)));
        document.insert("headers".to_owned(), json!(headers));
        return output.document(&document);
    }
    let none = || "(none)".to_owned();
    let mut lines = vec![
        format!("place:    {}", shown.place),
        format!("message:  {}", shown.source.clone().unwrap_or_else(|| "unknown".to_owned())),
        format!("reason:   {}", shown.reason),
        format!("written:  {}", shown.written_at.clone().unwrap_or_default()),
        format!(
            "state:    {}",
            if shown.replayed || shown.dismissed.is_some() || shown.stub.is_some() { shown.state() } else { "waiting".to_owned() }
        ),
        format!("key:      {}", shown.key.clone().unwrap_or_else(none)),
    ];
    lines.extend(headers.iter().map(|(key, value)| format!("header:   {key}: {}", value.as_deref().map_or_else(none, bytes))));
    if let Some(why) = &shown.stub {
        lines.push(format!("stub:     {why}"));
    }
    lines.push(format!("value:    {}", value.map_or_else(none, bytes)));
    output.lines(lines)
}

/// Answers the places that an operator means.
async fn places(kafka: &Operator, which: Which, topic: Option<&str>, may_be: impl Fn(&DeadLetter) -> bool) -> Result<Vec<Place>, Error> {
    let places: Vec<_> = if which.all {
        let all = letters(kafka, topic, None).await?.letters;
        all.into_iter().filter(|letter| letter.is_waiting() && may_be(letter)).map(|letter| letter.place).collect()
    } else {
        // All must exist before any is settled.
        for place in &which.places {
            find(kafka, place).await?;
        }
        which.places
    };
    if places.is_empty() {
        return Err(Error::Nothing("There is no dead letter that was not replayed yet and was not dismissed".to_owned()));
    }
    Ok(places)
}

fn named(places: &[Place]) -> String {
    if let [one] = places { one.to_string() } else { format!("{} dead letters", places.len()) }
}

async fn replay(kafka: &Operator, which: Which, topic: Option<&str>, confirmed: &Confirmed, output: &Output) -> Result<(), Error> {
    let places = places(kafka, which, topic, |letter| letter.source.is_some() && letter.stub.is_none()).await?;
    let what = named(&places);
    confirmed.ask(output, &format!("This sends {what} back as new messages. They override newer messages of the same product."))?;
    for place in &places {
        let letter = find(kafka, place).await?;
        kafka.replay(&letter).await?;
        if output.json {
            output.document(&json!({ "place": place.to_string(), "sent_to": letter.letter.source.map(|source| format!("{}/{}", source.topic, source.partition)) }))?;
        } else {
            output.line(&format!("Replayed {place}"))?;
        }
    }
    Ok(())
}

async fn dismiss(
    kafka: &Operator,
    which: Which,
    topic: Option<&str>,
    reason: &str,
    confirmed: &Confirmed,
    output: &Output,
) -> Result<(), Error> {
    let places = places(kafka, which, topic, |_| true).await?;
    confirmed.ask(output, &format!("This dismisses {}. `replay --all` leaves them out.", named(&places)))?;
    for place in &places {
        kafka.dismiss(place, reason).await?;
        if output.json {
            output.document(&json!({ "place": place.to_string(), "dismissed": reason }))?;
        } else {
            output.line(&format!("Dismissed {place}"))?;
        }
    }
    Ok(())
}
