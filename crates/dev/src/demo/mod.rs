//! `cargo dev demo`: a day in a shop, lived against the running system and then checked against its log.

mod catalogue;
mod check;
mod day;
mod ledger;
mod log;
pub(crate) mod published;
mod shop;
mod shopper;
mod supply;

use crate::error::Error;
use crate::layout::Layout;
use crate::report::{self, Report};
use crate::state::State;
use crate::up;

/// Lives the day with this many shoppers, on the stack that is up; where none is, brings one up and takes it down
/// again.
///
/// # Errors
/// The stack does not come up, a service fails, or the outcome does not match the log; the message says which.
pub async fn run(layout: &Layout, shoppers: u32, release: bool, report: &Report) -> Result<(), Error> {
    let running = State::read(layout)?.is_some();
    let up = up::background(layout, release, report).await?;
    let lived = tokio::select! {
        lived = day::live(&up, shoppers, report) => lived,
        interrupted = interrupted() => interrupted,
    };
    if let Ok(checks) = &lived {
        report::answer(checks);
    }
    if !running {
        up::down(layout, report).await?;
    }
    lived?.verdict()
}

async fn interrupted<T>() -> Result<T, Error> {
    crate::signals::Signals::listen()?.next().await;
    Err(Error::Interrupted)
}
