//! Which events a state folds, and so which events a decision's condition forbids.

pub(crate) mod append_condition;
pub(crate) mod query_item;
pub(crate) mod state_query;
