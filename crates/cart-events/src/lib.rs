//! The contract that the services share: the events of the shopping cart, their ids and their money. No I/O.
//!
//! Values are parsed once, at the edge, into types that cannot hold a wrong value, and trusted inside. The events are those of Martin Dilger's
//! *Understanding Eventsourcing*.

mod event;
#[cfg(feature = "examples")]
pub mod examples;
mod id;
mod money;
mod text;

pub use event::*;
pub use id::{CartId, IdError, ItemId, ProductId};
pub use money::{Price, PriceError, Total};
pub use text::{Description, Image, Inventory, TextError};
