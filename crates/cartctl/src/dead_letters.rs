//! `cartctl dead-letters`.

use clap::{Args, Subcommand};
use operations::{DeadLetter, Letter, Operator, Place};
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::{
    arguments::{Common, Confirmed},
    error::Error,
    output::{Output, bytes, clean, hex, moment},
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
        /// Also those that were replayed
        #[arg(long)]
        replayed: bool,
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
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Their places, as `list` shows them; replayed even if they were before
    places: Vec<Place>,
    /// All that were not replayed yet, in the order in which they were first read
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
    replayed: bool,
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
            replayed: letter.replayed,
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
        if self.replayed {
            row.push("replayed".to_owned());
        }
        row
    }
}

fn short(text: &str) -> String {
    let text = text.replace('\n', " ");
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    let kafka = common.kafka()?;
    match task {
        Task::List { topic, replayed } => {
            let mut letters = letters(&kafka, topic.as_deref()).await?;
            letters.retain(|letter| replayed || !letter.replayed);
            let shown: Vec<_> = letters.iter().map(Shown::of).collect();
            output.list(&shown, "There are none", &["place", "message", "written", "key", "bytes", "reason", ""], Shown::row)
        }
        Task::Show { place } => {
            let Letter { letter, value, headers } = find(&kafka, &place).await?;
            let replayed = kafka.dead_letters(&place.topic).await?.iter().any(|one| one.place == place && one.replayed);
            let shown = Shown::of(&DeadLetter { replayed, ..letter });
            show(&shown, value.as_deref(), &headers, output)
        }
        Task::Replay { which, topic, confirmed } => replay(&kafka, which, topic.as_deref(), &confirmed, output).await,
    }
}

/// Reads the dead letters of a topic, or of all.
async fn letters(kafka: &Operator, topic: Option<&str>) -> Result<Vec<DeadLetter>, Error> {
    let there = kafka.dead_letter_topics().await?;
    let topics = match topic.map(Operator::dead_letter_topic) {
        Some(topic) if there.contains(&topic) => vec![topic],
        Some(topic) => {
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(Error::Nothing(format!("The broker has no topic {topic}. Its dead-letter topics are: {there}")));
        }
        None => there,
    };
    let mut letters = vec![];
    for topic in topics {
        letters.extend(kafka.dead_letters(&topic).await?);
    }
    Ok(letters)
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
        format!("replayed: {}", if shown.replayed { "yes" } else { "no" }),
        format!("key:      {}", shown.key.clone().unwrap_or_else(none)),
    ];
    lines.extend(headers.iter().map(|(key, value)| format!("header:   {key}: {}", value.as_deref().map_or_else(none, bytes))));
    lines.push(format!("value:    {}", value.map_or_else(none, bytes)));
    output.text(&clean(&lines.join("\n")))
}

async fn replay(kafka: &Operator, which: Which, topic: Option<&str>, confirmed: &Confirmed, output: &Output) -> Result<(), Error> {
    let places: Vec<_> = if which.all {
        let all = letters(kafka, topic).await?;
        all.into_iter().filter(|letter| !letter.replayed && letter.source.is_some()).map(|letter| letter.place).collect()
    } else {
        // All must exist before any is replayed.
        for place in &which.places {
            find(kafka, place).await?;
        }
        which.places
    };
    let Some(first) = places.first() else {
        return Err(Error::Nothing("There is no dead letter that was not replayed yet".to_owned()));
    };
    let what = if let [_] = places.as_slice() { first.to_string() } else { format!("{} dead letters", places.len()) };
    confirmed.ask(output, &format!("This sends {what} back as new messages. They override newer messages of the same product."))?;
    for place in &places {
        let letter = find(kafka, place).await?;
        kafka.replay(&letter).await?;
        if output.json {
            output.document(&json!({ "place": place.to_string(), "sent_to": letter.letter.source.map(|source| format!("{}/{}", source.topic, source.partition)) }))?;
        } else {
            output.text(&format!("Replayed {place}"))?;
        }
    }
    Ok(())
}
