//! Appending: the group appender, its batches, recovery of a lost answer, and batches from another log.

pub(crate) mod appender;
pub(crate) mod batch;
pub(crate) mod pending;
pub(crate) mod queue;
pub(crate) mod recovery;
pub(crate) mod send_state;
pub(crate) mod source;
