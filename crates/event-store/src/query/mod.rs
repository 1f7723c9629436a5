//! Which events a state folds, and so which events a decision's condition forbids.

pub(crate) mod criteria;
pub(crate) mod lookup;
