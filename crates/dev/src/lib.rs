//! The embedded stack behind `cargo dev`: real PostgreSQL and Kafka servers and the four services, as child
//! processes of this one, in a directory under `target/`.
//!
//! The end-to-end tests use the same pieces: servers and services that they start, freeze, kill and start again.

pub mod account;
pub mod cargo;
pub mod distribution;
pub mod error;
pub mod files;
pub mod identity;
pub mod java;
pub mod kafka;
pub mod layout;
pub mod maven;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod report;
pub mod test_stack;

pub use error::Error;
