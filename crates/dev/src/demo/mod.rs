//! `cargo dev demo`: simulates a day in a shop on the running system, and compares the result with the log.

mod addresses;
mod check;
mod day;

pub use addresses::Addresses;
pub use day::Plan;

use crate::state::State;
use crate::up;
use embedded::error::Error;
use embedded::layout::Layout;
use embedded::report::{self, Report};

/// Simulates the day in the shop that the environment names, or on the running stack. If there is none, starts one and stops it again.
///
/// # Errors
/// The stack does not start, a service fails, or the result differs from the log.
pub async fn run(layout: &Layout, plan: Plan, release: bool, report: &Report) -> Result<(), Error> {
    if let Some(elsewhere) = Addresses::given(|name| std::env::var(name).ok())? {
        return run_at(&elsewhere, plan, report).await;
    }
    let running = State::read(layout)?.is_some();
    let up = up::background(layout, release, report).await?;
    let lived = live(&Addresses::of(&up)?, plan, report).await;
    if !running {
        up::down(layout, report).await?;
    }
    lived?.verdict()
}

/// Simulates the day in the shop at these addresses.
///
/// # Errors
/// A service fails, or the result differs from the log.
pub async fn run_at(addresses: &Addresses, plan: Plan, report: &Report) -> Result<(), Error> {
    live(addresses, plan, report).await?.verdict()
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
    embedded::signals::Signals::listen()?.next().await;
    Err(Error::Interrupted)
}
