//! Appending: the group appender, its batches, and batches from another log.

pub(crate) mod appender;
pub(crate) mod batch;
pub(crate) mod pending;
pub(crate) mod queue;
pub(crate) mod recovery;
pub(crate) mod session;
pub(crate) mod source;
