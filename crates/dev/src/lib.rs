//! The embedded stack behind `cargo dev`: real PostgreSQL and Kafka servers and the four services, as child
//! processes of this one, in a directory under `target/`.
//!
//! The end-to-end tests use the same pieces: servers and services that they start, freeze, kill and start again.

pub mod account;
pub mod bench;
pub mod cargo;
pub mod chaos;
pub mod database;
pub mod demo;
pub mod distribution;
pub mod error;
pub mod files;
pub mod identity;
pub mod java;
pub mod kafka;
pub mod layout;
mod maven;
pub mod orphans;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod queries;
pub mod report;
pub mod services;
pub mod settings;
pub mod signals;
pub mod stack;
pub mod state;
pub mod table;
pub mod test_stack;
pub mod topics;
pub mod up;

pub use error::Error;
