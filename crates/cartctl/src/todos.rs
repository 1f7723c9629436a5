//! `cartctl todos`, and `cartctl publications` for the automation Publish Cart.

use clap::{Args, Subcommand, ValueEnum};
use operations::TodoEntry;
use serde_json::json;

use crate::{
    arguments::Common,
    error::Error,
    output::{Output, span},
};

/// The automation that publishes carts.
const PUBLISH_CART: &str = "publish_cart";

#[derive(Subcommand)]
pub(crate) enum Task {
    /// List to-dos in the order of their events
    List {
        /// Only of this automation
        #[arg(long)]
        automation: Option<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Reopen failed to-dos as if they were new
    Retry {
        /// The automation
        automation: String,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Subcommand)]
pub(crate) enum Publications {
    /// List carts whose publication failed, or has another status
    List {
        #[command(flatten)]
        listing: Listing,
    },
    /// Publish carts again whose publication failed
    Retry {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args)]
pub(crate) struct Listing {
    /// The status
    #[arg(long, value_enum, default_value_t = Status::Failed)]
    status: Status,
    /// The largest number to list
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Status {
    Open,
    Failed,
    Done,
    All,
}

impl Status {
    fn stored(self) -> Option<&'static str> {
        match self {
            Self::Open => Some("open"),
            Self::Failed => Some("failed"),
            Self::Done => Some("done"),
            Self::All => None,
        }
    }
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Their keys, as `list` shows them; the key of a publication is its cart
    keys: Vec<String>,
    /// All failed ones
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    match task {
        Task::List { automation, listing } => list(automation.as_deref(), &listing, common, output).await,
        Task::Retry { automation, which } => retry(&automation, &which, common, output).await,
    }
}

pub(crate) async fn publications(task: Publications, common: &Common, output: &Output) -> Result<(), Error> {
    match task {
        Publications::List { listing } => list(Some(PUBLISH_CART), &listing, common, output).await,
        Publications::Retry { which } => retry(PUBLISH_CART, &which, common, output).await,
    }
}

async fn list(automation: Option<&str>, listing: &Listing, common: &Common, output: &Output) -> Result<(), Error> {
    let log = common.log().await?;
    let todos = operations::todos(log.pool(), automation, listing.status.stored(), listing.limit).await?;
    if usize::try_from(listing.limit).is_ok_and(|limit| todos.len() == limit) {
        output.note(&format!("Only {} are shown. Use --limit to show more", listing.limit));
    }
    let heads = ["automation", "key", "event", "status", "attempts", "created", "last error"];
    output.list(&todos, "There are none", &heads, |todo: &TodoEntry| {
        vec![
            todo.automation.clone(),
            todo.key.clone(),
            todo.position.to_string(),
            todo.status.clone(),
            todo.attempts.to_string(),
            format!("{} ago", span(todo.age_seconds)),
            todo.last_error.clone().unwrap_or_default(),
        ]
    })
}

async fn retry(automation: &str, which: &Which, common: &Common, output: &Output) -> Result<(), Error> {
    let log = common.log().await?;
    let keys = (!which.all).then_some(which.keys.as_slice());
    let retried = operations::retry_todos(log.pool(), automation, keys).await?;
    let not_failed: Vec<_> = which.keys.iter().filter(|key| !retried.contains(key)).collect();
    if output.json {
        output.document(&json!({ "automation": automation, "retried": retried, "not_failed": not_failed }))?;
    } else if !retried.is_empty() {
        output.line(&format!("Reopened {} to-dos of {automation}. The service attempts them within a second", retried.len()))?;
    }
    if let Some(key) = not_failed.first() {
        let others = if not_failed.len() > 1 { format!(", nor {} others", not_failed.len() - 1) } else { String::new() };
        return Err(Error::Nothing(format!("{key} is no failed to-do of {automation}{others}. See `cartctl todos list`")));
    }
    if retried.is_empty() {
        return Err(Error::Nothing(format!("No to-do of {automation} has failed")));
    }
    Ok(())
}
