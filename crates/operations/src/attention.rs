//! The state of everything, and what of it needs attention.

use std::collections::BTreeMap;

use event_store::{EventStore, Finding, LogEvent, Position, StoreError, StoredOffset, stored_offsets};
use serde::Serialize;

use crate::{
    dead_letters::{NewestLetters, OperateError, Operator},
    parked::{Parked, parked},
    status::{Build, Replica, builds, replicas},
    text::{causes, span},
    todos::{TodoCounts, todo_counts},
};

/// The newest messages of a partition that are looked through for dead letters.
pub const NEWEST_LETTERS: i64 = 10_000;

/// A read model that lags for longer needs attention, in seconds, and so does a to-do or a message that waits for longer. A rebuild or a
/// burst takes less to catch up with most logs.
const LAG_SECONDS: f64 = 60.0;

/// A stored offset, and the offsets of the broker.
#[derive(Debug, Serialize)]
pub struct Translation {
    /// The stored offset.
    #[serde(flatten)]
    pub stored: StoredOffset,
    /// The partition's first offset, and the one after its last; null if the broker does not answer.
    pub begins_at: Option<i64>,
    /// See there.
    pub ends_at: Option<i64>,
    /// The number of messages that are not yet translated.
    pub lag: Option<i64>,
}

impl Translation {
    fn of(stored: StoredOffset, ends: &Ends) -> Self {
        let ends = ends.get(&stored.topic).and_then(|ends| ends.get(&stored.partition)).copied();
        let lag = ends.map(|(_, high)| (high - stored.next_offset).max(0));
        Self { stored, begins_at: ends.map(|(low, _)| low), ends_at: ends.map(|(_, high)| high), lag }
    }

    /// Says why the partition is blocked, if its stored offset is outside of it.
    pub fn blocked(&self) -> Option<&'static str> {
        match (self.begins_at, self.ends_at) {
            (Some(low), _) if self.stored.next_offset < low => Some("before the beginning: blocked"),
            (_, Some(high)) if self.stored.next_offset > high => Some("after the end: blocked"),
            _ => None,
        }
    }
}

type Ends = BTreeMap<String, BTreeMap<i32, (i64, i64)>>;

/// Adds the offsets of the broker to stored offsets, as far as the broker answers.
pub async fn with_broker_offsets(stored: Vec<StoredOffset>, kafka: &Operator) -> (Vec<Translation>, Option<OperateError>) {
    let (mut ends, mut trouble) = (Ends::new(), None);
    for topic in stored.iter().map(|stored| &stored.topic) {
        if trouble.is_none() && !ends.contains_key(topic) {
            match kafka.ends(topic).await {
                Ok(found) => drop(ends.insert(topic.clone(), found)),
                Err(error) => trouble = Some(error),
            }
        }
    }
    (stored.into_iter().map(|stored| Translation::of(stored, &ends)).collect(), trouble)
}

/// The state of everything.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// Everything that needs attention; empty if all is well.
    pub attention: Vec<Attention>,
    /// The newest position in the log.
    pub head: Position,
    /// Builds that serve or are being rebuilt.
    pub projections: Vec<Build>,
    /// Their living replicas.
    pub replicas: Vec<Replica>,
    /// Parked keys and blocked segments.
    pub parked: Vec<Parked>,
    /// The numbers of to-dos.
    pub todos: Vec<TodoCounts>,
    /// Stored offsets.
    pub translations: Vec<Translation>,
    /// Faults of the database's roles, grants and settings, and the session that stops all appends.
    pub findings: Vec<Finding>,
    /// The dead letters that were neither replayed nor dismissed, by topic; null if the broker does not answer.
    pub dead_letters: Option<Vec<WaitingLetters>>,
    /// Why the broker does not answer.
    pub broker_error: Option<String>,
}

/// Something that needs attention.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Attention {
    /// What is wrong.
    pub what: String,
    /// The command that shows more or helps.
    pub command: Option<String>,
}

/// The dead letters of a topic that were neither replayed nor dismissed.
#[derive(Debug, Serialize)]
pub struct WaitingLetters {
    /// The topic.
    pub topic: String,
    /// Among the newest 10,000 messages of each partition.
    pub waiting: usize,
    /// Older messages, which were not counted.
    pub unread: i64,
}

/// Reads the state of everything. `counted` saves counting a topic again that did not change.
///
/// # Errors
/// The database failed, or the role lacks a privilege. A broker that does not answer is part of the state.
pub async fn overview<E: LogEvent>(log: &EventStore<E>, kafka: &Operator, counted: &mut Counted) -> Result<Overview, StoreError> {
    let (head, mut projections) = builds(log.pool()).await?;
    projections.retain(|build| build.status != "retired");
    let replicas = replicas(log.pool()).await?;
    let parked = parked(log.pool(), None).await?;
    let todos = todo_counts(log.pool()).await?;
    let findings = log.check_installation().await?;
    let stored = stored_offsets(log.pool()).await?;
    let (translations, trouble) = with_broker_offsets(stored, kafka).await;
    let dead_letters = match trouble {
        Some(trouble) => Err(trouble),
        None => waiting(kafka, counted).await,
    };
    let (dead_letters, broker_error) = match dead_letters {
        Ok(waiting) => (Some(waiting), None),
        Err(error) => (None, Some(causes(&error))),
    };
    let mut overview =
        Overview { attention: vec![], head, projections, replicas, parked, todos, translations, findings, dead_letters, broker_error };
    overview.attention = attention(&overview);
    Ok(overview)
}

/// Lists what needs attention.
pub fn attention(overview: &Overview) -> Vec<Attention> {
    let mut all = vec![];
    let mut add = |what: String, command: Option<String>| all.push(Attention { what, command });
    for finding in &overview.findings {
        add(finding.to_string(), None);
    }
    if let Some(error) = &overview.broker_error {
        add(format!("the broker does not answer: {error}. Check KAFKA_BOOTSTRAP_SERVERS"), None);
    }
    for build in &overview.projections {
        let Build { name, build: schema, .. } = build;
        if build.ahead_of.is_some() {
            add(format!("{schema} of {name} is ahead of the log, which was restored"), Some(format!("cartctl projections rebuild {name}")));
        }
        if build.paused && build.status == "serving" {
            add(format!("{name} is paused"), Some(format!("cartctl projections resume {name}")));
        }
        if !overview.replicas.iter().any(|replica| replica.name == *name && replica.version == build.version) {
            add(format!("no process runs version {} of {name}: start the service", build.version), None);
        } else if build.status == "serving" && build.lag_seconds > LAG_SECONDS {
            add(format!("{name} is {} behind: see the logs of its service", span(build.lag_seconds)), None);
        }
    }
    let mut parked: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for one in &overview.parked {
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
    for todos in overview.todos.iter().filter(|todos| todos.failed > 0) {
        let TodoCounts { automation, failed, .. } = todos;
        add(format!("failed to-dos of {automation}: {failed}"), Some(format!("cartctl todos list --automation {automation}")));
    }
    for TodoCounts { automation, oldest_open_seconds, .. } in &overview.todos {
        if let Some(age) = oldest_open_seconds.filter(|age| *age > LAG_SECONDS) {
            add(
                format!("a to-do of {automation} is open for {}", span(age)),
                Some(format!("cartctl todos list --automation {automation}")),
            );
        }
    }
    for translation in &overview.translations {
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
    for letters in overview.dead_letters.iter().flatten().filter(|letters| letters.waiting > 0) {
        let WaitingLetters { topic, waiting, .. } = letters;
        add(format!("dead letters that wait in {topic}: {waiting}"), Some(format!("cartctl dead-letters list --topic {topic}")));
    }
    all
}

/// The count of each topic, and its offsets at that time.
pub type Counted = BTreeMap<String, (BTreeMap<i32, (i64, i64)>, (usize, i64))>;

/// Counts dead letters that were neither replayed nor dismissed. Counting reads messages, so an unchanged topic is not counted again.
async fn waiting(kafka: &Operator, counted: &mut Counted) -> Result<Vec<WaitingLetters>, OperateError> {
    let mut counts = vec![];
    for topic in kafka.dead_letter_topics().await? {
        let ends = kafka.ends(&topic).await?;
        let (waiting, unread) = match counted.get(&topic) {
            Some((then, counts)) if *then == ends => *counts,
            _ => {
                let NewestLetters { letters, unread } = kafka.dead_letters(&topic, Some(NEWEST_LETTERS)).await?;
                (letters.iter().filter(|letter| letter.is_waiting()).count(), unread)
            }
        };
        counted.insert(topic.clone(), (ends, (waiting, unread)));
        counts.push(WaitingLetters { topic, waiting, unread });
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let status = Overview {
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
