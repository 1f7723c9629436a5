//! Reading events, and watching the head.

pub(crate) mod answer;
pub(crate) mod head_watcher;
pub(crate) mod reader;
pub(crate) mod together;
