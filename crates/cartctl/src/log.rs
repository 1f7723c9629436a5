//! `cartctl log`: the events, decoded.

use std::{fmt::Write as _, time::Duration};

use cart_events::{CartId, DomainEvent, ProductId};
use clap::{Args, Subcommand};
use event_store::{EventStore, Position};
use operations::{Entry, Which};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::{
    Common,
    error::Error,
    output::{Output, clean, moment},
};

/// Events that are read at once while following.
const PAGE: i64 = 1_000;

#[derive(Subcommand)]
pub(crate) enum Task {
    /// The newest events, and with --follow what comes
    Tail {
        #[command(flatten)]
        newest: Newest,
        /// Go on until Ctrl-C
        #[arg(short, long)]
        follow: bool,
    },
    /// The events of a cart or a product, or the one at a position, with their metadata
    Show {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        newest: Newest,
    },
}

#[derive(Args)]
pub(crate) struct Newest {
    /// So many of the newest
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    last: i64,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Of {
    /// A cart's id
    #[arg(long)]
    cart: Option<CartId>,
    /// A product's id
    #[arg(long)]
    product: Option<ProductId>,
    /// A position
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    position: Option<i64>,
}

/// An event as it is shown.
#[derive(Serialize)]
pub(crate) struct Event<'a> {
    position: Position,
    recorded_at: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    /// Its fields, in today's shape.
    data: Option<Value>,
    /// Why it cannot be read.
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

    /// The event on a line.
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

/// `{"Type": {fields}}` is how an event is stored.
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
            // Subscribed before reading, so that nothing that comes in between is missed.
            let heads = log.head_watcher().subscribe();
            let head = log.head().await?;
            let events = operations::newest(&log, Which::All, last).await?;
            print(&events, false, output)?;
            let from = events.last().map_or(head, |event| event.position);
            if !follow {
                return Ok(());
            }
            tokio::select! {
                ended = following(&log, heads, from, output) => ended,
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
                return Err(Error::Nothing(format!("the log has no event of {named}; its head is {}", log.head().await?)));
            }
            if i64::try_from(events.len()).is_ok_and(|found| found > last) {
                events.remove(0);
                output.note(&format!("only the newest {last} are shown; --last takes more"));
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

async fn following(
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
            // What was on its way is there when the database is.
            Err(Error::Store(error)) if error.is_unavailable() => {
                output.note(&format!("waiting for the log: {error}"));
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

/// What comes next, where there is more.
async fn page(log: &EventStore<DomainEvent>, from: Position) -> Result<Vec<Entry<DomainEvent>>, Error> {
    let events = operations::after(log, from, PAGE).await?;
    if events.is_empty() {
        let head = log.head().await?;
        if head < from {
            return Err(Error::Refused(format!("the log was reset or restored: its head is {head}, and {from} was shown")));
        }
    }
    Ok(events)
}
