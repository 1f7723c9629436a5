//! Queries: which events a state folds, and which events an append's condition forbids.

pub(crate) mod append_condition;
pub(crate) mod query_item;
pub(crate) mod state_query;
