//! `cartctl parked`: events that projections cannot apply.

use std::{collections::BTreeSet, time::Duration};

use cart_events::DomainEvent;
use clap::{Args, Subcommand};
use event_store::{EventStore, Position};
use operations::{Parked, Skip, Skipped};
use serde_json::json;
use uuid::Uuid;

use crate::{
    arguments::{Common, Confirmed},
    error::Error,
    log::Event,
    output::{Output, span, table},
    projections::note_if_nobody_runs,
};

#[derive(Subcommand)]
pub(crate) enum Task {
    /// List parked keys and blocked segments, with the event that failed and why
    List {
        /// Only of this projection
        #[arg(long)]
        projection: Option<String>,
        /// List skipped events instead, with the reason
        #[arg(long)]
        skipped: bool,
    },
    /// Show a parked key with the events in its queue
    Show {
        /// The projection
        projection: String,
        /// The key
        key: Uuid,
        /// The largest number of events to show
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
        limit: i64,
    },
    /// Retry parked keys, after the cause is gone
    Retry {
        #[command(flatten)]
        which: Which,
        /// Seconds to wait for the outcome
        #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
        wait: u64,
    },
    /// Skip an event of a parked key or of blocked segments for good. Later events are applied
    Skip {
        /// The projection
        projection: String,
        /// The position of the event, as `list` shows it
        #[arg(long)]
        position: i64,
        /// The parked key; omit it for blocked segments
        #[arg(long)]
        key: Option<Uuid>,
        /// Why; recorded
        #[arg(long)]
        reason: String,
        /// The person who decides; recorded
        #[arg(long, env = "USER", hide_env_values = true, default_value = "unknown", value_name = "NAME")]
        by: String,
        #[command(flatten)]
        confirmed: Confirmed,
    },
}

#[derive(Args)]
pub(crate) struct Which {
    /// The projection
    #[arg(required_unless_present = "all")]
    projection: Option<String>,
    /// Its parked keys
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    keys: Vec<Uuid>,
    /// All parked keys
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    let log = common.log().await?;
    match task {
        Task::List { projection, skipped: false } => {
            let parked = operations::parked(log.pool(), projection.as_deref()).await?;
            output.list(&parked, "Nothing is parked", &HEADS, row)
        }
        Task::List { projection, skipped: true } => {
            let skipped = operations::skipped(log.pool(), projection.as_deref()).await?;
            let heads = ["projection", "build", "key", "event", "skipped", "by", "reason", "error"];
            output.list(&skipped, "Nothing was skipped", &heads, skipped_row)
        }
        Task::Show { projection, key, limit } => show(&log, &projection, key, limit, output).await,
        Task::Retry { which, wait } => retry(&log, &which, Duration::from_secs(wait), output).await,
        Task::Skip { projection, position, key, reason, by, confirmed } => {
            if reason.trim().is_empty() {
                return Err(Error::Usage("--reason must say why".to_owned()));
            }
            let skip = Skip { projection: &projection, key, position: Position(position), reason: &reason, by: &by };
            skip_one(&log, skip, &confirmed, output).await
        }
    }
}

async fn show(log: &EventStore<DomainEvent>, projection: &str, key: Uuid, limit: i64, output: &Output) -> Result<(), Error> {
    let builds: Vec<_> =
        operations::parked(log.pool(), Some(projection)).await?.into_iter().filter(|parked| parked.key == Some(key)).collect();
    if builds.is_empty() {
        return Err(not_parked(projection, key));
    }
    for parked in builds {
        let queue = operations::parked_queue(log, &parked, limit).await?;
        let events: Vec<_> = queue.iter().map(Event::of).collect();
        if output.json {
            output.document(&json!({ "parked": parked, "queue": events }))?;
            continue;
        }
        output.lines(table(&HEADS, [row(&parked)]))?;
        output.lines(["", "queue:"])?;
        output.lines(events.iter().map(Event::line))?;
        if i64::try_from(events.len()).is_ok_and(|shown| shown < parked.queued) {
            output.note(&format!("Only the first {} of {} events are shown. Use --limit to show more", events.len(), parked.queued));
        }
    }
    Ok(())
}

async fn retry(log: &EventStore<DomainEvent>, which: &Which, wait: Duration, output: &Output) -> Result<(), Error> {
    let projection = which.projection.as_deref();
    let asked = operations::retry_parked(log.pool(), projection, (!which.all).then_some(which.keys.as_slice())).await?;
    if let (Some(projection), Some(key)) =
        (projection, which.keys.iter().find(|key| !asked.iter().any(|parked| parked.key.as_ref() == Some(key))))
    {
        if asked.is_empty() {
            return Err(not_parked(projection, *key));
        }
        output.note(&format!("{key} is not parked in {projection}"));
    }
    if asked.is_empty() {
        return Err(Error::Nothing("No key is parked. Blocked segments retry by themselves; see `cartctl parked list`".to_owned()));
    }
    for name in asked.iter().map(|parked| parked.projection.as_str()).collect::<BTreeSet<_>>() {
        note_if_nobody_runs(log, name, output).await?;
    }
    let operations::Retried { applied, failed, waiting } = operations::wait_for_retry(log.pool(), projection, &asked, wait).await?;
    if output.json {
        output.document(&json!({ "applied": applied, "still_parked": failed, "waiting": waiting }))?;
    } else if applied > 0 {
        output.line(&format!("Applied {applied} parked keys with their queues"))?;
    }
    if let Some(first) = failed.first() {
        let key = first.key.unwrap_or_default();
        return Err(Error::Refused(format!(
            "{} keys failed again. {} stays parked in {} at event {}: {}",
            failed.len(),
            key,
            first.projection,
            first.position,
            first.error
        )));
    }
    if !waiting.is_empty() && !wait.is_zero() {
        return Err(Error::Refused(format!(
            "{} keys were not retried within {} seconds. See `cartctl parked list`",
            waiting.len(),
            wait.as_secs()
        )));
    }
    Ok(())
}

async fn skip_one(log: &EventStore<DomainEvent>, skip: Skip<'_>, confirmed: &Confirmed, output: &Output) -> Result<(), Error> {
    let Skip { projection, key, position, .. } = skip;
    let failing: Vec<_> = operations::parked(log.pool(), Some(projection)).await?.into_iter().filter(|parked| parked.key == key).collect();
    let is_first = failing.iter().any(|parked| parked.position == position);
    if !is_first {
        return Err(Error::Nothing(match (failing.first(), key) {
            (Some(failing), Some(key)) => {
                format!("{key} is parked in {projection} at event {}, so that event can be skipped, not {position}", failing.position)
            }
            (None, Some(key)) => return Err(not_parked(projection, key)),
            (Some(failing), None) => format!("Segments of {projection} are blocked before event {}, not {position}", failing.position),
            (None, None) => format!("No segment of {projection} is blocked. --key names a parked key; see `cartctl parked list`"),
        }));
    }
    let whom = key.map_or_else(|| "the blocked segments".to_owned(), |key| key.to_string());
    confirmed.ask(output, &format!("Event {position} will never be applied to {whom} in {projection}."))?;
    let builds = operations::skip(log.pool(), skip).await?;
    if builds.is_empty() {
        return Err(Error::Nothing(format!("Event {position} is no longer the first of the queue. See `cartctl parked list`")));
    }
    note_if_nobody_runs(log, projection, output).await?;
    if output.json {
        return output.document(&json!({ "projection": projection, "key": key, "position": position, "builds": builds }));
    }
    output.line(&format!("Skipped event {position}; later events are retried. See `cartctl parked list --skipped`"))
}

fn not_parked(projection: &str, key: Uuid) -> Error {
    Error::Nothing(format!("{key} is not parked in {projection}. See `cartctl parked list`"))
}

pub(crate) const HEADS: [&str; 8] = ["parked in", "build", "key", "event", "queued", "attempts", "since", "error"];

pub(crate) fn row(parked: &Parked) -> Vec<String> {
    let segments = parked.segments.as_ref().map(|segments| segments.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    let error = if parked.retry_asked { format!("(retry asked) {}", parked.error) } else { parked.error.clone() };
    vec![
        parked.projection.clone(),
        parked.build.clone(),
        parked.key.map_or_else(|| format!("none: segments {} blocked", segments.unwrap_or_default()), |key| key.to_string()),
        parked.position.to_string(),
        parked.queued.to_string(),
        parked.attempts.to_string(),
        format!("{} ago", span(parked.since_seconds)),
        error,
    ]
}

fn skipped_row(skipped: &Skipped) -> Vec<String> {
    vec![
        skipped.projection.clone(),
        skipped.build.clone(),
        skipped.key.map_or_else(|| "none".to_owned(), |key| key.to_string()),
        skipped.position.to_string(),
        format!("{} ago", span(skipped.age_seconds)),
        skipped.skipped_by.clone(),
        skipped.reason.clone(),
        skipped.error.clone(),
    ]
}
