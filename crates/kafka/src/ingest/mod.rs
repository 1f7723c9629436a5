//! From Kafka into the log, each message once.
//!
//! One consumer reads all topics of the process ([`input`]). The messages of a partition queue while a batch of the partition is being
//! written ([`partition`]). Each batch is one call to the log. It appends the events and moves the partition's stored offset, if that is
//! the offset that this consumer expects. Otherwise it does neither ([`output`]). Partitions do not wait for each other ([`run`]). A survey
//! every few seconds finds changes that no event announces ([`survey`]).

mod blocked;
pub(crate) mod config;
pub mod dead_letter;
pub(crate) mod error;
mod first;
mod input;
pub(crate) mod lag;
pub(crate) mod message;
mod metrics;
mod output;
mod partition;
mod received;
mod run;
mod source;
mod status;
mod survey;
pub(crate) mod translation;
pub(crate) mod translator;
