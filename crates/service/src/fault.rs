//! Faults: errors that are nobody's refusal.

/// An error that is nobody's refusal, with its causes. `?` makes one of any error.
pub use anyhow::Error as Fault;
