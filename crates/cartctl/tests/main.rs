//! The command, run as operators run it.
//!
//! One program for all of them: as programs of their own each would be linked with everything again.

mod broker;
mod common;
mod database;
mod parked;
