//! `cargo dev demo`: a day in a shop, lived against the running system and then checked against its log.

mod addresses;
mod catalogue;
mod check;
mod day;
mod ledger;
mod log;
pub(crate) mod published;
mod shop;
mod shopper;
mod supply;

use std::time::Duration;

use addresses::Addresses;

use crate::error::Error;
use crate::layout::Layout;
use crate::report::{self, Report};
use crate::state::State;
use crate::up;

/// What kind of a day it is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many shoppers come.
    pub shoppers: u32,
    /// The time over which they come.
    pub over: Duration,
    /// For how long a shopper tries again where the shop is away or busy.
    pub patience: Duration,
    /// Answers may be lost, because processes are killed meanwhile.
    pub outages: bool,
}

/// Lives the day in the shop that the environment names; else on the stack that is up; where none is, brings one up and takes it down
/// again.
///
/// # Errors
/// The stack does not come up, a service fails, or the outcome does not match the log; the message says which.
pub async fn run(layout: &Layout, plan: Plan, release: bool, report: &Report) -> Result<(), Error> {
    if let Some(elsewhere) = Addresses::given(|name| std::env::var(name).ok())? {
        return live(&elsewhere, plan, report).await?.verdict();
    }
    let running = State::read(layout)?.is_some();
    let up = up::background(layout, release, report).await?;
    let lived = live(&Addresses::of(&up)?, plan, report).await;
    if !running {
        up::down(layout, report).await?;
    }
    lived?.verdict()
}

async fn live(addresses: &Addresses, plan: Plan, report: &Report) -> Result<check::Checks, Error> {
    let checks = tokio::select! {
        lived = day::live(addresses, plan, report) => lived,
        interrupted = interrupted() => interrupted,
    }?;
    report::answer(&checks);
    Ok(checks)
}

async fn interrupted<T>() -> Result<T, Error> {
    crate::signals::Signals::listen()?.next().await;
    Err(Error::Interrupted)
}
