//! The command, run as operators run it.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use test_support::Database;

/// Nobody serves this port.
pub const NOWHERE: &str = "127.0.0.1:9";

/// What a command came to.
#[derive(Debug)]
pub struct Came {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Came {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The documents that it answered with, where it came to this.
    pub fn documents(&self, code: i32) -> Vec<Value> {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON document on each line")).collect()
    }

    /// The only one.
    pub fn document(&self) -> Value {
        let mut documents = self.documents(0);
        assert_eq!(documents.len(), 1, "{self:?}");
        documents.remove(0)
    }

    /// It failed so, and said this.
    pub fn failed(&self, code: i32, said: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(said), "{self:?}");
    }
}

/// The command with nothing set around it, and no terminal.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartctl"));
    command.args(arguments).env_remove("DATABASE_URL").env_remove("KAFKA_BOOTSTRAP_SERVERS").stdin(Stdio::null());
    command
}

pub fn cartctl(arguments: &[&str]) -> Came {
    Came::of(command(arguments).output().expect("the command runs"))
}

/// Over a database, and no broker.
pub fn over(database: &Database, arguments: &[&str]) -> Came {
    with_broker(database, NOWHERE, arguments)
}

pub fn with_broker(database: &Database, servers: &str, arguments: &[&str]) -> Came {
    let mut command = command(arguments);
    command.env("DATABASE_URL", database.url_as("cartlog_operator")).env("KAFKA_BOOTSTRAP_SERVERS", servers);
    Came::of(command.output().expect("the command runs"))
}
