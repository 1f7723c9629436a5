//! How much is measured.

use std::time::Duration;

use anyhow::{Context, Result};
use dev::bench::Arguments;
use serde::{Deserialize, Serialize};

/// How much is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sizes {
    /// Whether the run only checks that everything works.
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    /// The duration of one measurement.
    pub(crate) length: Duration,
    pub(crate) levels: Vec<usize>,
    pub(crate) before: Vec<u64>,
    pub(crate) crowd: u64,
    pub(crate) carts: u64,
    pub(crate) messages: u64,
    pub(crate) events: u64,
}

impl Sizes {
    pub(crate) fn of(chosen: &Arguments) -> Result<Self> {
        let quick = chosen.quick;
        let sizes = |chosen: Option<u64>, full: u64, small: u64| chosen.unwrap_or(if quick { small } else { full });
        let levels = chosen.levels.clone().unwrap_or(if quick { vec![1, 4] } else { vec![1, 16, 64, 256] });
        let mut before = chosen.before.clone().unwrap_or(if quick { vec![1_000] } else { vec![10_000, 1_000_000] });
        // The others are compared with the first one.
        before.sort_unstable();
        before.dedup();
        Ok(Self {
            quick,
            rounds: chosen.rounds.unwrap_or(if quick { 1 } else { 5 }).into(),
            length: Duration::try_from_secs_f64(chosen.seconds.unwrap_or(if quick { 0.2 } else { 3.0 })).context("--seconds")?,
            levels: levels.into_iter().map(usize::from).collect(),
            before,
            crowd: sizes(chosen.crowd, 1_000_000, 1_000),
            carts: sizes(chosen.carts, 1_000_000, 1_000),
            messages: sizes(chosen.messages, 200_000, 2_000),
            events: sizes(chosen.events, 1_000_000, 5_000),
        })
    }

    /// Returns the numbers of shoppers at once: one, and those levels that a shop has.
    pub(crate) fn crowds(&self) -> impl Iterator<Item = usize> {
        let mut crowds = vec![1, self.loud()];
        crowds.extend(self.levels.iter().copied().filter(|level| (2..64).contains(level)));
        crowds.sort_unstable();
        crowds.dedup();
        crowds.into_iter()
    }

    /// Returns the number of tasks that most bars use.
    pub(crate) fn loud(&self) -> usize {
        let most = self.levels.iter().copied().max().unwrap_or(64);
        if self.levels.contains(&64) { 64 } else { most }
    }
}
