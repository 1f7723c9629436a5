//! `cartctl log`: decoded events.

use std::{fmt::Write as _, time::Duration};

use cart_events::{CartId, DomainEvent, ProductId};
use clap::{Args, Subcommand};
use event_store::{EventStore, Position};
use operations::{Entry, Step, Which};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    arguments::Common,
    error::Error,
    output::{Output, moment},
};

/// The number of events per read while following.
const PAGE: i64 = 1_000;

/// The number of newest events that are searched for a type, unless --since says how many.
const SEARCHED: i64 = 1_000_000;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Show the newest events, and with --follow the next ones as they come
    Tail {
        #[command(flatten)]
        which: Matching,
        #[command(flatten)]
        newest: Newest,
        /// Show new events until Ctrl-C
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the events of a cart or of a product, or the event at a position, with metadata
    Show {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        newest: Newest,
    },
    /// Show everything that one request or message led to, as a tree: the events with the same correlation id
    Flow {
        /// The position of one of its events
        #[arg(value_parser = clap::value_parser!(i64).range(1..))]
        position: i64,
    },
}

#[derive(Args)]
pub(crate) struct Newest {
    /// The number of newest events to show
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    last: i64,
}

#[derive(Args)]
pub(crate) struct Matching {
    /// Only events of this type, e.g. ItemAdded; can be repeated
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only events since then: a span such as 90s, 15m, 2h or 3d, or a time such as 2026-11-30T22:00:00Z
    #[arg(long, value_name = "TIME", value_parser = operations::text::since)]
    since: Option<OffsetDateTime>,
    /// Only events of this cart
    #[arg(long, conflicts_with = "product")]
    cart: Option<CartId>,
    /// Only events of this product
    #[arg(long)]
    product: Option<ProductId>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Of {
    /// The id of a cart
    #[arg(long)]
    cart: Option<CartId>,
    /// The id of a product
    #[arg(long)]
    product: Option<ProductId>,
    /// The position of an event
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    position: Option<i64>,
}

fn id(cart: Option<CartId>, product: Option<ProductId>) -> Option<(&'static str, Uuid)> {
    cart.map(|cart| ("cart_id", cart.uuid())).or(product.map(|product| ("product_id", product.uuid())))
}

/// An event in the output.
#[derive(Serialize)]
pub(crate) struct Event<'a> {
    position: Position,
    recorded_at: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    /// Its fields, upcast to the current version if this release knows the event.
    data: Option<Value>,
    /// Why the event cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    metadata: &'a RawValue,
}

impl<'a> Event<'a> {
    pub(crate) fn of(entry: &'a Entry<DomainEvent>) -> Self {
        let (data, error) = match &entry.event {
            Ok(event) => (serde_json::to_value(event).ok().map(fields), None),
            // As it is stored.
            Err(error) => (serde_json::from_slice(&entry.payload).ok().map(fields), Some(error.to_string())),
        };
        Self {
            position: entry.position,
            recorded_at: moment(entry.recorded_at),
            event_type: &entry.event_type,
            data,
            error,
            metadata: &entry.metadata,
        }
    }

    /// Formats the event on one line.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("{:>8}  {}  {}", self.position, self.recorded_at, self.event_type);
        if let Some(Value::Object(fields)) = &self.data {
            for (name, value) in fields {
                let _ = write!(line, "  {name}={value}");
            }
        }
        if let Some(error) = &self.error {
            let _ = write!(line, "  {error}");
        }
        line
    }
}

/// Unwraps the stored form `{"Type": {fields}}`.
fn fields(event: Value) -> Value {
    match event {
        Value::Object(object) => object.into_iter().next().map_or(Value::Null, |(_, fields)| fields),
        other => other,
    }
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    let log = common.log().await?;
    match task {
        Task::Tail { which: Matching { types, since, cart, product }, newest: Newest { last }, follow } => {
            // Subscribe before reading, so that no event in between is missed.
            let heads = log.head_watcher().subscribe();
            let head = log.head().await?;
            let after = match since {
                Some(since) => operations::before(&log, since).await?,
                None => Position::START,
            };
            let mut which = Which { id: id(cart, product), types: &types, after };
            // No index has the types of all events.
            let is_cut = which.id.is_none() && since.is_none() && !types.is_empty() && head.0 > SEARCHED;
            if is_cut {
                which.after = Position(head.0 - SEARCHED);
            }
            let events = operations::newest(&log, which, last).await?;
            if is_cut && i64::try_from(events.len()).is_ok_and(|found| found < last) {
                output.note(&format!("Only the newest {SEARCHED} events were searched. Use --since, --cart or --product to search others"));
            }
            print(&events, false, output)?;
            which.after = events.last().map_or(head, |event| event.position.max(head));
            if !follow {
                return Ok(());
            }
            tokio::select! {
                ended = print_new(&log, heads, which, output) => ended,
                _ = tokio::signal::ctrl_c() => Ok(()),
            }
        }
        Task::Show { of: Of { cart, product, position }, newest: Newest { last } } => {
            let (mut events, named) = match position.map(Position) {
                Some(position) => {
                    let which = Which { after: Position(position.0 - 1), ..Which::default() };
                    (operations::up_to(&log, which, position, 1).await?, format!("the position {position}"))
                }
                None => {
                    let which = Which { id: id(cart, product), ..Which::default() };
                    let events = operations::newest(&log, which, last.saturating_add(1)).await?;
                    let named = cart.map(|cart| format!("the cart {cart}")).or(product.map(|product| format!("the product {product}")));
                    (events, named.unwrap_or_default())
                }
            };
            if events.is_empty() {
                return Err(Error::Nothing(format!("The log has no event of {named}. Its head is {}", log.head().await?)));
            }
            if position.is_none() && i64::try_from(events.len()).is_ok_and(|found| found > last) {
                events.remove(0);
                output.note(&format!("Only the newest {last} events are shown. Use --last to show more"));
            }
            print(&events, true, output)
        }
        Task::Flow { position } => {
            let Some(flow) = operations::flow(&log, Position(position)).await? else {
                return Err(Error::Nothing(format!("The log has no event of the position {position}. Its head is {}", log.head().await?)));
            };
            for Step { depth, cause, event } in &flow.steps {
                let event = Event::of(event);
                if output.json {
                    output.document(&Caused { depth: *depth, cause: cause.as_deref(), event })?;
                } else {
                    output.line(&format!("{}{}", "    ".repeat(*depth), event.line()))?;
                }
            }
            output.note(&match &flow.correlation_id {
                Some(id) => format!("Everything with the correlation id {id} is shown, up to position {}", flow.searched_to),
                None => format!("It has no correlation id: only its own effects are shown, up to position {}", flow.searched_to),
            });
            Ok(())
        }
    }
}

/// An event of a flow in the output.
#[derive(Serialize)]
struct Caused<'a> {
    depth: usize,
    /// A position, or a message's topic, partition and offset.
    cause: Option<&'a str>,
    #[serde(flatten)]
    event: Event<'a>,
}

fn print(events: &[Entry<DomainEvent>], metadata: bool, output: &Output) -> Result<(), Error> {
    for event in events.iter().map(Event::of) {
        if output.json {
            output.document(&event)?;
            continue;
        }
        output.line(&event.line())?;
        if metadata {
            output.line(&format!("          metadata={}", event.metadata))?;
        }
    }
    let unknown = events.iter().filter(|event| event.event.is_err()).count();
    if unknown > 0 {
        output.note(&format!("{unknown} events cannot be read by this release of cartctl. They are shown as they are stored"));
    }
    Ok(())
}

async fn print_new(
    log: &EventStore<DomainEvent>,
    mut heads: tokio::sync::watch::Receiver<Position>,
    mut which: Which<'_>,
    output: &Output,
) -> Result<(), Error> {
    loop {
        heads.borrow_and_update();
        match page(log, which).await {
            Ok((events, head)) => {
                print(&events, false, output)?;
                let is_full = i64::try_from(events.len()).is_ok_and(|found| found == PAGE);
                which.after = events.last().filter(|_| is_full).map_or(head, |event| event.position);
                if is_full {
                    continue;
                }
            }
            // Retry: no event is lost while the database is away.
            Err(Error::Store(error)) if error.is_unavailable() => {
                output.note(&format!("Waiting for the log: {error}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error),
        }
        if heads.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Reads the next page, and the head up to which it was searched. Fails if the log was restored to an older position.
async fn page(log: &EventStore<DomainEvent>, which: Which<'_>) -> Result<(Vec<Entry<DomainEvent>>, Position), Error> {
    let head = log.head().await?;
    if head < which.after {
        return Err(Error::Refused(format!("The log was reset or restored: its head is {head}, but event {} was shown", which.after)));
    }
    Ok((operations::up_to(log, which, head, PAGE).await?, head))
}
