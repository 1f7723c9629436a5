//! The record that a process makes of each command.

use serde::{Deserialize, Serialize};

use super::domain::{CommandId, Saw};

/// A command with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The command.
    pub command: CommandId,
    /// The log's head before the command began.
    pub before: i64,
    /// The log's head after the answer.
    pub after: i64,
    /// The answer.
    pub outcome: Outcome,
    /// How often the command decided to write events. More than once means a conflict.
    pub happens: u32,
}

/// The answer to a command, and what the command had seen when it decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The events were written. The log contains what the command saw.
    Written {
        /// The answered position.
        at: i64,
    },
    /// The command was done before.
    AlreadyDone {
        /// The answered position.
        at: i64,
        /// The states that the command saw.
        saw: Vec<Saw>,
    },
    /// There was nothing to do.
    Nothing {
        /// The answered position.
        at: i64,
        /// The states that the command saw.
        saw: Vec<Saw>,
    },
    /// The command was refused.
    Refused {
        /// The states that the command saw.
        saw: Vec<Saw>,
    },
    /// The store failed, and says that nothing was written.
    Undone {
        /// The store's error.
        error: String,
    },
    /// The store does not know the outcome.
    Unknown {
        /// The store's error.
        error: String,
    },
    /// An error that must not occur in a history.
    Fault {
        /// The store's error.
        error: String,
    },
}
