//! `cartctl translations`.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use event_store::SourcePartition;
use operations::{StoredOffset, Translation};
use serde_json::json;

use crate::{
    arguments::{Common, Confirmed},
    error::Error,
    output::{Output, span},
};

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Show the stored offset of each partition, and the offsets of the broker
    Show,
    /// Set the stored offset of a partition. Messages from there on are translated, also those that were translated before
    Seek {
        /// The topic
        topic: String,
        /// The partition's number
        partition: i32,
        #[command(flatten)]
        to: To,
        /// The consumer group, as `show` shows it; needed if several groups read the partition
        #[arg(long)]
        group: Option<String>,
        #[command(flatten)]
        confirmed: Confirmed,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct To {
    /// The offset of the next message to translate
    #[arg(long = "to", value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    offset: Option<i64>,
    /// The first message of the broker
    #[arg(long)]
    beginning: bool,
    /// After the last message of the broker
    #[arg(long)]
    end: bool,
}

pub(crate) const HEADS: [&str; 9] = ["group", "topic", "partition", "next", "begins at", "ends at", "lag", "moved", ""];

pub(crate) fn row(translation: &Translation) -> Vec<String> {
    let or_unknown = |number: Option<i64>| number.map_or("?".to_owned(), |number| number.to_string());
    vec![
        translation.stored.group.clone(),
        translation.stored.topic.clone(),
        translation.stored.partition.to_string(),
        translation.stored.next_offset.to_string(),
        or_unknown(translation.begins_at),
        or_unknown(translation.ends_at),
        or_unknown(translation.lag),
        format!("{} ago", span(translation.stored.age_seconds)),
        translation.blocked().unwrap_or_default().to_owned(),
    ]
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    let (log, kafka) = (common.log().await?, common.kafka()?);
    let stored = operations::stored_offsets(log.pool()).await?;
    match task {
        Task::Show => {
            let (translations, trouble) = operations::with_broker_offsets(stored, &kafka).await;
            if let Some(trouble) = trouble {
                output.note(&format!("The broker does not answer: {}", Error::from(trouble).in_one_line()));
            }
            output.list(&translations, "Nothing was translated yet", &HEADS, row)
        }
        Task::Seek { topic, partition, to, group, confirmed } => {
            let matching: Vec<_> = stored
                .iter()
                .filter(|one| one.topic == topic && one.partition == partition && group.as_ref().is_none_or(|group| one.group == *group))
                .collect();
            let found = match matching.as_slice() {
                [found] => *found,
                [] => {
                    let of = group.map(|group| format!(" by the group {group}")).unwrap_or_default();
                    let topics: BTreeSet<_> = stored.iter().map(|one| one.topic.as_str()).collect();
                    let topics = if topics.is_empty() { "none".to_owned() } else { topics.into_iter().collect::<Vec<_>>().join(", ") };
                    return Err(Error::Nothing(format!(
                        "{topic}/{partition} was never translated{of}, so it is read from its beginning. Translated topics are: {topics}. \
                         See `cartctl translations show`"
                    )));
                }
                several => {
                    let groups: Vec<_> = several.iter().map(|one| one.group.as_str()).collect();
                    return Err(Error::Usage(format!(
                        "Several groups translate {topic}/{partition}. Choose one with --group ({})",
                        groups.join(", ")
                    )));
                }
            };
            let Some((low, high)) = kafka.ends(&topic).await?.get(&partition).copied() else {
                return Err(Error::Nothing(format!("The broker has no partition {topic}/{partition}")));
            };
            let offset = to.offset.unwrap_or(if to.beginning { low } else { high });
            if offset < low || offset > high {
                return Err(Error::Refused(format!(
                    "{topic}/{partition} begins at {low} and ends at {high}. A stored offset outside of that would block its translation"
                )));
            }
            confirmed.ask(output, &consequence(found, offset))?;
            let source = SourcePartition { consumer: &found.group, topic: &topic, partition };
            let Some(before) = operations::seek(log.pool(), source, offset).await? else {
                return Err(Error::Nothing(format!("{topic}/{partition} no longer has a stored offset")));
            };
            if output.json {
                return output.document(
                    &json!({ "group": found.group, "topic": topic, "partition": partition, "before": before, "next_offset": offset }),
                );
            }
            output.line(&format!(
                "Set the stored offset of {topic}/{partition} from {before} to {offset}. A running translator picks it up within \
                 seconds"
            ))
        }
    }
}

fn consequence(found: &StoredOffset, offset: i64) -> String {
    let StoredOffset { topic, partition, next_offset, .. } = found;
    match offset - next_offset {
        0 => format!("The stored offset of {topic}/{partition} is {offset} already."),
        back if back < 0 => format!(
            "This sets {topic}/{partition} back from {next_offset} to {offset}. Up to {} messages are translated again, each into another \
             event that overrides later ones.",
            -back
        ),
        forth => format!("This sets {topic}/{partition} from {next_offset} to {offset}. Up to {forth} messages are never translated."),
    }
}
