//! Helpers for tests: given/when/then for decisions, a database per test, `eventually`, and recorded histories with their checker.
#![allow(clippy::panic, clippy::expect_used, reason = "a test that cannot continue fails")]

mod database;
mod eventually;
pub mod histories;
mod log;
mod meanwhile;
mod process;
mod specification;

pub use database::{ANY_EVENT, Backup, Database, kafka_bootstrap_servers};
pub use eventually::eventually;
pub use log::TestLog;
pub use meanwhile::{Meanwhile, blocking};
pub use process::{Process, quick};
pub use specification::{Given, Then, given};
