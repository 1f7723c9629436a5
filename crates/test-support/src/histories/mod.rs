//! Histories: several processes run random decisions with overlapping boundaries and record them. A checker then says whether the log was
//! exact.
//!
//! - [`Spec`] is a command made from a seed: the states it reads, and what it decides on them.
//! - [`Workers`] are processes that run commands and record each one.
//! - [`check`] is a pure function of the whole log and of the records.

mod checker;
mod command;
mod domain;
mod record;
mod worker;
mod workers;

pub use checker::{Summary, Violation, check};
pub use command::{Decides, Spec, TRANSLATOR};
pub use domain::{By, CommandId, Folded, Happened, Key, Of, Saw};
pub use record::{Outcome, Record};
pub use worker::{settings, work_if_asked};
pub use workers::{Setup, Workers, read_log, seeds, translate};
