//! Reading events, and watching the head of the log.

pub(crate) mod answer;
pub(crate) mod head_listener;
pub(crate) mod head_watcher;
pub(crate) mod read_queue;
pub(crate) mod reader;
pub(crate) mod statement;
pub(crate) mod touched;
