//! Runs `cartctl` as a process.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::expect_used, clippy::panic, reason = "a failed step fails the test")]

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use test_support::Database;

/// Nothing listens on this port.
pub const NOWHERE: &str = "127.0.0.1:9";

/// Text that must not reach a terminal as it is: a forged line, control characters, directions, and what is invisible.
pub const HIDDEN: &str = "x\n\r\u{1b}[2J\u{7f}\u{9b}31m\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}";

/// The outcome of a command.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Returns the printed documents. The exit code must be this one.
    pub fn documents(&self, code: i32) -> Vec<Value> {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON document on each line")).collect()
    }

    /// Returns the only document of a successful command.
    pub fn document(&self) -> Value {
        let mut documents = self.documents(0);
        assert_eq!(documents.len(), 1, "{self:?}");
        documents.remove(0)
    }

    /// Checks that a successful command has written nothing hidden. Returns its number of lines.
    pub fn lines_without_hidden_characters(&self) -> usize {
        assert_eq!(self.code, Some(0), "{self:?}");
        for hidden in HIDDEN.chars().filter(|hidden| !hidden.is_ascii_graphic() && *hidden != '\n') {
            assert!(!self.stdout.contains(hidden) && !self.stderr.contains(hidden), "{hidden:?} in {self:?}");
        }
        self.stdout.lines().count()
    }

    /// Checks the exit code and the message of a failure.
    pub fn failed(&self, code: i32, said: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(said), "{self:?}");
    }
}

/// Returns the command without environment variables and without a terminal.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartctl"));
    command.args(arguments).env_remove("DATABASE_URL").env_remove("KAFKA_BOOTSTRAP_SERVERS").stdin(Stdio::null());
    command
}

pub fn cartctl(arguments: &[&str]) -> Outcome {
    Outcome::of(command(arguments).output().expect("the command runs"))
}

/// Runs the command on a database, without a broker.
pub fn over(database: &Database, arguments: &[&str]) -> Outcome {
    with_broker(database, NOWHERE, arguments)
}

pub fn with_broker(database: &Database, servers: &str, arguments: &[&str]) -> Outcome {
    let mut command = command(arguments);
    command.env("DATABASE_URL", database.url_as("cartlog_operator")).env("KAFKA_BOOTSTRAP_SERVERS", servers);
    Outcome::of(command.output().expect("the command runs"))
}
