//! What tests share: given/when/then for decisions, a database per test, and waiting for a condition.
#![allow(clippy::panic, clippy::expect_used, reason = "a test that cannot go on fails")]

mod database;
mod eventually;
mod log;
mod meanwhile;
mod specification;

pub use database::{Database, kafka_bootstrap_servers};
pub use eventually::eventually;
pub use log::TestLog;
pub use meanwhile::{Meanwhile, blocking};
pub use specification::{Given, Then, given};
