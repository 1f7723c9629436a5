//! `cargo dev bench`: the program `bench`, on a stack of its own.

use std::process::{ExitStatus, Stdio};

use tokio::process::Command;

use crate::cargo;
use crate::error::Error;
use crate::layout::Layout;
use crate::report::Report;
use crate::services;
use crate::test_stack::{self, TestStack};

const PROGRAM: &str = "bench";

/// Runs the benchmarks with `arguments`, optimised, and answers how they ended.
///
/// # Errors
/// Something does not compile, or the stack does not come up.
pub async fn run(layout: &Layout, arguments: &[String], report: &Report) -> Result<ExitStatus, Error> {
    report.say("building the services and the bench, optimised");
    let mut names = services::ALL.map(|service| service.name).to_vec();
    names.push(PROGRAM);
    let programs = cargo::build(layout, &names, true).await?;
    let mut command = Command::new(programs.join(PROGRAM));
    command.stdin(Stdio::null());
    if arguments.iter().any(|argument| matches!(argument.as_str(), "--help" | "-h")) {
        command.arg("--help");
        return test_stack::supervise(PROGRAM, command).await;
    }
    let stack = TestStack::start(layout, report).await?;
    report.say(format!("PostgreSQL and Kafka are up; their logs are in {}", stack.logs().display()));
    command
        .args(["--database-url", &stack.database_url(), "--kafka", &stack.bootstrap_servers()])
        .arg("--programs")
        .arg(&programs)
        .arg("--logs")
        .arg(stack.logs())
        .arg("--out")
        .arg(layout.target().join("bench"))
        .args(arguments);
    let measured = test_stack::supervise(PROGRAM, command).await;
    let ended = stack.end().await;
    let status = measured?;
    ended?;
    Ok(status)
}
