//! What a process notes down about each command.

use serde::{Deserialize, Serialize};

use super::domain::{CommandId, Saw};

/// A command that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which.
    pub command: CommandId,
    /// The log's head, asked for before the command began.
    pub before: i64,
    /// The log's head, asked for after it was answered.
    pub after: i64,
    /// The answer.
    pub outcome: Outcome,
    /// How often it decided that something happens: more than once is a conflict.
    pub happens: u32,
}

/// What a command was answered, and what it had seen when it decided that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its events were written, the last one here. What it saw stands in the log.
    Written {
        /// The answered position.
        at: i64,
    },
    /// It had happened already.
    Already {
        /// The answered position.
        at: i64,
        /// What it saw.
        saw: Vec<Saw>,
    },
    /// There was nothing to do.
    Nothing {
        /// The answered position, up to which that was known.
        at: i64,
        /// What it saw.
        saw: Vec<Saw>,
    },
    /// No.
    Refused {
        /// What it saw.
        saw: Vec<Saw>,
    },
    /// The store could not do it, and says that nothing was done.
    Undone {
        /// In its words.
        error: String,
    },
    /// The store does not know what became of it.
    Unknown {
        /// In its words.
        error: String,
    },
    /// An error that no history should meet.
    Fault {
        /// In its words.
        error: String,
    },
}
