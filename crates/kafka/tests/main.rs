//! Topics into the log and the log into topics, against a real broker and a real PostgreSQL.
//!
//! One program for all of them: as programs of their own each would be linked with everything again.

mod common;
mod dead_letters;
mod out_of_range;
mod publishing;
mod translating;
