//! Deciding: a command's rule, the states that it folds, and the way to run it.

pub(crate) mod catch_up;
pub(crate) mod command_locks;
pub(crate) mod decider;
pub(crate) mod decision;
pub(crate) mod fold;
pub(crate) mod stages;
pub(crate) mod state;
pub(crate) mod state_cache;
