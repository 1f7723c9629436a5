//! The log, against a real PostgreSQL.
//!
//! One program for all of them: as programs of their own each would be linked with everything again.

mod common;
mod deciding;
mod flat;
mod histories;

mod log;
mod matching;
mod outcomes;
mod roles;
