//! Tests of projections against a real PostgreSQL. One program, because linking each file on its own is slow.

#[path = "../../event-store/tests/common/mod.rs"]
mod common;
mod faults;
mod ledger;
mod parking;
mod projecting;
mod reading;
mod segments;
