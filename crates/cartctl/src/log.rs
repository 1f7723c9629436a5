//! `cartctl log`: decoded events.

use std::{fmt::Write as _, time::Duration};

use cart_events::{CartId, DomainEvent, ProductId};
use clap::{Args, Subcommand};
use event_store::{EventStore, Position};
use operations::{Entry, Which};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::{
    arguments::Common,
    error::Error,
    output::{Output, clean, moment},
};

/// The number of events per read while following.
const PAGE: i64 = 1_000;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Show the newest events, and with --follow the next ones as they come
    Tail {
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
}

#[derive(Args)]
pub(crate) struct Newest {
    /// The number of newest events to show
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    last: i64,
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

/// An event in the output.
#[derive(Serialize)]
pub(crate) struct Event<'a> {
    position: Position,
    recorded_at: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    /// Its fields, upcast to the current version.
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
            Err(error) => (None, Some(error.to_string())),
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
        Task::Tail { newest: Newest { last }, follow } => {
            // Subscribe before reading, so that no event in between is missed.
            let heads = log.head_watcher().subscribe();
            let head = log.head().await?;
            let events = operations::newest(&log, Which::All, last).await?;
            print(&events, false, output)?;
            let from = events.last().map_or(head, |event| event.position);
            if !follow {
                return Ok(());
            }
            tokio::select! {
                ended = print_new(&log, heads, from, output) => ended,
                _ = tokio::signal::ctrl_c() => Ok(()),
            }
        }
        Task::Show { of, newest: Newest { last } } => {
            let (which, named) = match of {
                Of { cart: Some(cart), .. } => (Which::Of { id: "cart_id", value: cart.uuid() }, format!("the cart {cart}")),
                Of { product: Some(product), .. } => {
                    (Which::Of { id: "product_id", value: product.uuid() }, format!("the product {product}"))
                }
                Of { position, .. } => {
                    let position = position.unwrap_or_default();
                    (Which::At(Position(position)), format!("the position {position}"))
                }
            };
            let mut events = operations::newest(&log, which, last.saturating_add(1)).await?;
            if events.is_empty() {
                return Err(Error::Nothing(format!("The log has no event of {named}. Its head is {}", log.head().await?)));
            }
            if i64::try_from(events.len()).is_ok_and(|found| found > last) {
                events.remove(0);
                output.note(&format!("Only the newest {last} events are shown. Use --last to show more"));
            }
            print(&events, true, output)
        }
    }
}

fn print(events: &[Entry<DomainEvent>], metadata: bool, output: &Output) -> Result<(), Error> {
    for event in events.iter().map(Event::of) {
        if output.json {
            output.document(&event)?;
            continue;
        }
        output.text(&clean(&event.line()))?;
        if metadata {
            output.text(&clean(&format!("          metadata={}", event.metadata)))?;
        }
    }
    Ok(())
}

async fn print_new(
    log: &EventStore<DomainEvent>,
    mut heads: tokio::sync::watch::Receiver<Position>,
    mut from: Position,
    output: &Output,
) -> Result<(), Error> {
    loop {
        heads.borrow_and_update();
        match page(log, from).await {
            Ok(events) if !events.is_empty() => {
                print(&events, false, output)?;
                from = events.last().map_or(from, |event| event.position);
                continue;
            }
            Ok(_) => {}
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

/// Reads the next page. Fails if the log was restored to an older position.
async fn page(log: &EventStore<DomainEvent>, from: Position) -> Result<Vec<Entry<DomainEvent>>, Error> {
    let events = operations::after(log, from, PAGE).await?;
    if events.is_empty() {
        let head = log.head().await?;
        if head < from {
            return Err(Error::Refused(format!("The log was reset or restored: its head is {head}, but event {from} was shown")));
        }
    }
    Ok(events)
}
