//! Appending: the group appender, its batches, and batches from another log.

pub(crate) mod appender;
pub(crate) mod batch;
pub(crate) mod new_event;
pub(crate) mod source;
