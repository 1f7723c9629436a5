//! `cargo dev`: the one way to run, try and test the cart system on this machine.

pub mod bench;
pub mod cargo;
pub mod chaos;
pub mod demo;
pub mod docs;
pub mod queries;
pub mod settings;
pub mod stack;
pub mod state;
mod supervise;
pub mod table;
pub mod testing;
pub mod up;
