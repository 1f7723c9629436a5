//! Histories: random decisions over overlapping boundaries, made by several processes at once and recorded, and a checker that says of
//! what they left behind whether the log was exact.
//!
//! [`Spec`] is a command, made from a seed: which states it asks for, and what it makes of them. [`Workers`] are processes that run
//! commands and record each one. [`check`] is a pure function of the log, read back whole, and of the records.

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
