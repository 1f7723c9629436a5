//! `cartctl status`.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use cart_events::DomainEvent;
use clap::Args;
use event_store::{EventStore, Finding, Position};
use operations::{Build, NewestLetters, OperateError, Operator, Parked, Replica, StoredOffset, TodoCounts};
use serde::Serialize;

use crate::{
    arguments::Common,
    dead_letters::NEWEST,
    error::Error,
    output::{Output, span, table},
    parked, projections,
    translations::{self, Translation},
};

/// A read model that lags for longer needs attention, in seconds, and so does a to-do or a message that waits for longer. A rebuild or a
/// burst takes less to catch up with most logs.
const LAG_SECONDS: f64 = 60.0;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Show the status every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// The status.
#[derive(Serialize)]
struct Status {
    /// Everything that needs a hand; empty if all is well.
    attention: Vec<Attention>,
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
    /// Faults of the database's roles, grants and settings, and the session that stops all appends.
    findings: Vec<Finding>,
    /// The dead letters that were neither replayed nor dismissed, by topic; null if the broker does not answer.
    dead_letters: Option<Vec<DeadLetters>>,
    /// Why the broker does not answer.
    broker_error: Option<String>,
}

/// Something that needs a hand.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Attention {
    what: String,
    /// The command that shows more or helps.
    command: Option<String>,
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
    let mut status = Status {
        attention: vec![],
        head,
        projections: builds,
        replicas,
        parked,
        todos,
        translations,
        findings,
        dead_letters,
        broker_error,
    };
    status.attention = attention(&status);
    Ok(status)
}

/// Lists what needs a hand.
fn attention(status: &Status) -> Vec<Attention> {
    let mut all = vec![];
    let mut add = |what: String, command: Option<String>| all.push(Attention { what, command });
    for finding in &status.findings {
        add(finding.to_string(), None);
    }
    if let Some(error) = &status.broker_error {
        add(format!("the broker does not answer: {error}"), None);
    }
    for build in &status.projections {
        let Build { name, build: schema, .. } = build;
        if build.ahead_of.is_some() {
            add(format!("{schema} of {name} is ahead of the log, which was restored"), Some(format!("cartctl projections rebuild {name}")));
        }
        if build.paused && build.status == "serving" {
            add(format!("{name} is paused"), Some(format!("cartctl projections resume {name}")));
        }
        if !status.replicas.iter().any(|replica| replica.name == *name && replica.version == build.version) {
            add(format!("no process runs version {} of {name}: start the service", build.version), None);
        } else if build.status == "serving" && build.lag_seconds > LAG_SECONDS {
            add(format!("{name} is {} behind: see the logs of its service", span(build.lag_seconds)), None);
        }
    }
    let mut parked: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for one in &status.parked {
        let (keys, segments) = parked.entry(&one.projection).or_default();
        *keys += usize::from(one.key.is_some());
        *segments += one.segments.as_ref().map_or(0, Vec::len);
    }
    for (name, (keys, segments)) in parked {
        let command = || Some(format!("cartctl parked list --projection {name}"));
        if keys > 0 {
            add(format!("parked keys in {name}: {keys}"), command());
        }
        if segments > 0 {
            add(format!("blocked segments of {name}: {segments}"), command());
        }
    }
    for todos in status.todos.iter().filter(|todos| todos.failed > 0) {
        let TodoCounts { automation, failed, .. } = todos;
        add(format!("failed to-dos of {automation}: {failed}"), Some(format!("cartctl todos list --automation {automation}")));
    }
    for TodoCounts { automation, oldest_open_seconds, .. } in &status.todos {
        if let Some(age) = oldest_open_seconds.filter(|age| *age > LAG_SECONDS) {
            add(
                format!("a to-do of {automation} is open for {}", span(age)),
                Some(format!("cartctl todos list --automation {automation}")),
            );
        }
    }
    for translation in &status.translations {
        let StoredOffset { topic, partition, group, age_seconds, .. } = &translation.stored;
        if translation.blocked().is_some() {
            add(
                format!("{topic}/{partition} is blocked: its stored offset is outside of the partition"),
                Some(format!("cartctl translations seek {topic} {partition} --group {group} --beginning")),
            );
        } else if let Some(lag) = translation.lag.filter(|lag| *lag > 0 && *age_seconds > LAG_SECONDS) {
            // Among others a topic that was created again: only the translator knows.
            let moved = span(*age_seconds);
            add(
                format!("{topic}/{partition} is not translated: {lag} wait, the offset moved {moved} ago; see /ready of the translator"),
                None,
            );
        }
    }
    for letters in status.dead_letters.iter().flatten().filter(|letters| letters.waiting > 0) {
        let DeadLetters { topic, waiting, .. } = letters;
        add(format!("dead letters that wait in {topic}: {waiting}"), Some(format!("cartctl dead-letters list --topic {topic}")));
    }
    all
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

/// Says in a line whether all is well, and then what is not.
fn verdict(attention: &[Attention]) -> Vec<String> {
    let first = match attention.len() {
        0 => "All is well".to_owned(),
        1 => "1 thing needs attention:".to_owned(),
        many => format!("{many} things need attention:"),
    };
    let line = |Attention { what, command }: &Attention| match command {
        Some(command) => format!("- {what}; run `{command}`"),
        None => format!("- {what}"),
    };
    [first].into_iter().chain(attention.iter().map(line)).collect()
}

fn print(status: &Status, output: &Output, clear: bool) -> Result<(), Error> {
    if output.json {
        return output.document(status);
    }
    let mut parts = vec![verdict(&status.attention), vec![format!("The head of the log is {}", status.head)]];
    if status.projections.is_empty() {
        parts.push(vec!["No projections yet. The services register them at their first start".to_owned()]);
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
    if clear {
        output.raw(b"\x1b[H\x1b[2J")?;
    }
    output.lines(parts.join(&String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_well_if_nothing_needs_attention() {
        let mut status = Status {
            attention: vec![],
            head: Position(7),
            projections: vec![],
            replicas: vec![],
            parked: vec![],
            todos: vec![],
            translations: vec![],
            findings: vec![],
            dead_letters: Some(vec![DeadLetters { topic: "stock.dead-letters".into(), waiting: 0, unread: 0 }]),
            broker_error: None,
        };
        assert_eq!(verdict(&attention(&status)), ["All is well"]);
        status.dead_letters = Some(vec![DeadLetters { topic: "stock.dead-letters".into(), waiting: 3, unread: 0 }]);
        let expected = [
            "1 thing needs attention:",
            "- dead letters that wait in stock.dead-letters: 3; run `cartctl dead-letters list --topic stock.dead-letters`",
        ];
        assert_eq!(verdict(&attention(&status)), expected);
    }

    #[test]
    fn what_waits_for_long_needs_attention() {
        let stored = |age_seconds| StoredOffset { group: "g".into(), topic: "stock".into(), partition: 0, next_offset: 4, age_seconds };
        let translation = |lag, age| Translation { stored: stored(age), begins_at: Some(0), ends_at: Some(4 + lag), lag: Some(lag) };
        let todos = |age| TodoCounts {
            automation: "archive_item".into(),
            open: 1,
            failed: 0,
            oldest_open_seconds: Some(age),
            oldest_failed_seconds: None,
        };
        let status = Status {
            attention: vec![],
            head: Position(7),
            projections: vec![],
            replicas: vec![],
            parked: vec![],
            todos: vec![todos(59.0), todos(125.0)],
            translations: vec![translation(0, 3600.0), translation(2, 59.0), translation(2, 3600.0)],
            findings: vec![],
            dead_letters: None,
            broker_error: None,
        };
        let what: Vec<_> = attention(&status).into_iter().map(|one| one.what).collect();
        let expected = [
            format!("a to-do of archive_item is open for {}", span(125.0)),
            format!("stock/0 is not translated: 2 wait, the offset moved {} ago; see /ready of the translator", span(3600.0)),
        ];
        assert_eq!(what, expected);
    }
}
