//! From Kafka into the log, each message once.
//!
//! One consumer reads all topics of the process. What it reads of a partition gathers while a batch of that partition is on its way into
//! the log; each batch is one call, which appends the events and moves the partition's stored offset from where this consumer was reading,
//! or does neither. Partitions do not wait for each other.

pub(crate) mod config;
pub(crate) mod dead_letter;
pub(crate) mod error;
mod input;
pub(crate) mod message;
mod metrics;
mod out_of_range;
mod output;
mod partition;
mod run;
mod source;
mod status;
pub(crate) mod translation;
pub(crate) mod translator;
