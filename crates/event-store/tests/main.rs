//! The log, on PostgreSQL.
//!
//! All tests are one program, because linking each one alone would take longer.

mod common;
mod connections;
mod deciding;
mod failover;
mod flat;
mod histories;
mod log;
mod matching;
mod outcomes;
mod refused_appends;
mod roles;
