//! A simulated shop: its services as processes, its catalogue, its shoppers, and a model of what the log must lead to.
//!
//! `cargo dev demo`, `cargo dev chaos` and the load of the chaos share it. [`model::Model`] folds the log. The demo and the chaos
//! compare tables, messages and answers with it.

pub mod catalogue;
pub mod client;
pub mod history;
pub mod ledger;
pub mod load;
pub mod model;
pub mod published;
pub mod services;
pub mod shopper;
mod suppliers;
pub mod supply;
pub mod topics;
