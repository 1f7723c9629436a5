//! A simulated shop: its services, its catalogue, its shoppers, and what the log says that it must look like.
#![allow(missing_docs, reason = "written with the model of the truth")]

pub mod catalogue;
pub mod client;
pub mod fold;
pub mod ledger;
pub mod load;
pub mod log;
pub mod published;
pub mod services;
pub mod shopper;
pub mod supply;
pub mod topics;
