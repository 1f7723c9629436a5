//! Projections, against a real PostgreSQL.
//!
//! One program for all of them: as programs of their own each would be linked with everything again.

#[path = "../../event-store/tests/common/mod.rs"]
mod common;
mod parking;
mod projecting;
mod reading;
mod segments;
