//! `cartctl` as a process, as operators run it. One test program, because linking each file on its own is slow.

mod broker;
mod common;
mod database;
mod parked;
