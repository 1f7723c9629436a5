//! The log, against a real PostgreSQL.
//!
//! One program for all of them: as programs of their own each would be linked with everything again.

mod common;
mod flat;
mod histories;
mod knowing;
mod log;
mod matching;
mod outcomes;
mod roles;
