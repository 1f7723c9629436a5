//! `cartctl status`.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use cart_events::DomainEvent;
use clap::Args;
use event_store::{EventStore, Finding, Position};
use operations::{Build, Parked, Replica, TodoCounts};
use operations::{NewestLetters, OperateError, Operator};
use serde::Serialize;

use crate::{
    arguments::Common,
    dead_letters::NEWEST,
    error::Error,
    output::{Output, span, table},
    parked, projections,
    translations::{self, Translation},
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Show the status every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// The status.
#[derive(Serialize)]
struct Status {
    /// The newest position in the log.
    head: Position,
    /// Builds that serve or are being rebuilt.
    projections: Vec<Build>,
    /// Their living replicas.
    replicas: Vec<Replica>,
    /// Parked keys and blocked segments.
    parked: Vec<Parked>,
    todos: Vec<TodoCounts>,
    translations: Vec<Translation>,
    /// What is wrong with the database's roles, grants and settings, and who stops all appends.
    findings: Vec<Finding>,
    /// The dead letters that were neither replayed nor dismissed, by topic; null if the broker does not answer.
    dead_letters: Option<Vec<DeadLetters>>,
    /// Why the broker does not answer.
    broker_error: Option<String>,
}

#[derive(Serialize)]
struct DeadLetters {
    topic: String,
    /// Among the newest 10,000 messages of each partition.
    waiting: usize,
    /// Older messages, which were not counted.
    unread: i64,
}

pub(crate) async fn run(arguments: Arguments, common: &Common, output: &Output) -> Result<(), Error> {
    let (log, kafka, mut counted) = (common.log().await?, common.kafka()?, Counted::new());
    let Some(seconds) = arguments.watch else {
        return print(&read(&log, &kafka, &mut counted).await?, output, false);
    };
    let clear = std::io::stdout().is_terminal() && !output.json;
    let watching = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match read(&log, &kafka, &mut counted).await {
                Ok(status) => print(&status, output, clear)?,
                // The database may be back at the next interval.
                Err(Error::Store(error)) if error.is_unavailable() => output.complain(&Error::Store(error).in_one_line()),
                Err(error) => return Err(error),
            }
        }
    };
    tokio::select! {
        ended = watching => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn read(log: &EventStore<DomainEvent>, kafka: &Operator, counted: &mut Counted) -> Result<Status, Error> {
    let (head, mut builds) = operations::builds(log.pool()).await?;
    builds.retain(|build| build.status != "retired");
    let replicas = operations::replicas(log.pool()).await?;
    let parked = operations::parked(log.pool(), None).await?;
    let todos = operations::todo_counts(log.pool()).await?;
    let findings = log.check_installation().await?;
    let stored = operations::stored_offsets(log.pool()).await?;
    let (translations, trouble) = translations::with_broker_offsets(stored, kafka).await;
    let dead_letters = match trouble {
        Some(trouble) => Err(trouble),
        None => waiting(kafka, counted).await,
    };
    let (dead_letters, broker_error) = match dead_letters {
        Ok(waiting) => (Some(waiting), None),
        Err(error) => (None, Some(Error::from(error).in_one_line())),
    };
    Ok(Status { head, projections: builds, replicas, parked, todos, translations, findings, dead_letters, broker_error })
}

/// The count of a topic, and its offsets at that time.
type Counted = BTreeMap<String, (BTreeMap<i32, (i64, i64)>, (usize, i64))>;

/// Counts dead letters that were neither replayed nor dismissed. Counting reads messages, so an unchanged topic is not counted again.
async fn waiting(kafka: &Operator, counted: &mut Counted) -> Result<Vec<DeadLetters>, OperateError> {
    let mut counts = vec![];
    for topic in kafka.dead_letter_topics().await? {
        let ends = kafka.ends(&topic).await?;
        let (waiting, unread) = match counted.get(&topic) {
            Some((then, counts)) if *then == ends => *counts,
            _ => {
                let NewestLetters { letters, unread } = kafka.dead_letters(&topic, Some(NEWEST)).await?;
                (letters.iter().filter(|letter| letter.is_waiting()).count(), unread)
            }
        };
        counted.insert(topic.clone(), (ends, (waiting, unread)));
        counts.push(DeadLetters { topic, waiting, unread });
    }
    Ok(counts)
}

fn print(status: &Status, output: &Output, clear: bool) -> Result<(), Error> {
    if output.json {
        return output.document(status);
    }
    let mut parts = vec![format!("The head of the log is {}", status.head)];
    parts.extend(status.findings.iter().map(|finding| format!("Warning: {finding}")));
    if status.projections.is_empty() {
        parts.push("No projections yet. The services register them at their first start".to_owned());
    } else {
        parts.push(table(&projections::HEADS, status.projections.iter().map(projections::row)));
    }
    if !status.parked.is_empty() {
        parts.push(table(&parked::HEADS, status.parked.iter().map(parked::row)));
    }
    let age = |seconds: Option<f64>| seconds.map_or(String::new(), span);
    if !status.todos.is_empty() {
        let rows = status.todos.iter().map(|todos| {
            let (open, failed) = (todos.open.to_string(), todos.failed.to_string());
            vec![todos.automation.clone(), open, age(todos.oldest_open_seconds), failed, age(todos.oldest_failed_seconds)]
        });
        parts.push(table(&["to-dos of", "open", "oldest", "failed", "oldest"], rows));
    }
    if !status.translations.is_empty() {
        parts.push(table(&translations::HEADS, status.translations.iter().map(Translation::row)));
    }
    if let Some(topics) = &status.dead_letters {
        let rows = topics.iter().map(|topic| vec![topic.topic.clone(), topic.waiting.to_string(), topic.unread.to_string()]);
        parts.push(table(&["dead letters in", "waiting", "older messages, not counted"], rows));
    }
    if let Some(error) = &status.broker_error {
        parts.push(format!("The broker does not answer: {error}"));
    }
    let text = parts.join("\n\n");
    if clear {
        output.raw(b"\x1b[H\x1b[2J")?;
    }
    output.text(&text)
}
