//! Real PostgreSQL and Kafka servers for development, tests and benchmarks: fetched from Maven Central, run as child processes.

pub mod account;
pub mod backup;
pub mod database;
pub mod distribution;
pub mod error;
pub mod files;
pub mod forwarder;
pub mod identity;
pub mod java;
pub mod kafka;
pub mod layout;
mod maven;
pub mod orphans;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod report;
pub mod signals;
pub mod standby;
pub mod test_stack;

pub use error::Error;
