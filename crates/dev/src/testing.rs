//! `cargo dev test`: every test, on a stack of its own.

use std::process::{ExitStatus, Stdio};

use embedded::error::{Context, Error};
use embedded::layout::Layout;
use embedded::report::Report;
use embedded::test_stack::TestStack;

use crate::cargo::{self, PROGRAMS};
use crate::supervise::supervise;

/// Runs `cargo test` with `arguments` on a stack of its own, and answers how it ended. Without arguments that name
/// packages, all packages are tested.
///
/// # Errors
/// The services do not compile, or the stack does not come up.
pub async fn run(layout: &Layout, arguments: &[String], report: &Report) -> Result<ExitStatus, Error> {
    let selection = Selection::of(arguments);
    for package in &selection.packages {
        // Cargo says which it has that is called like it.
        let mut known = cargo::command(layout);
        known.args(["pkgid", "--quiet", package]).stdout(Stdio::null());
        let status = known.status().await.context(|| "run cargo".to_owned())?;
        if !status.success() {
            return Ok(status);
        }
    }
    let build = async {
        if selection.needs_services {
            report.say("building the services");
            cargo::build(layout, &PROGRAMS, selection.release).await
        } else {
            Ok(layout.target().join(if selection.release { "release" } else { "debug" }))
        }
    };
    let (programs, stack) = TestStack::start_beside(layout, report, build).await?;
    report.say(format!("PostgreSQL and Kafka are up; their logs are in {}", stack.logs().display()));

    let mut command = cargo::command(layout);
    command.arg("test");
    if selection.packages.is_empty() {
        command.arg("--workspace");
    }
    if arguments.is_empty() {
        // A run of everything takes minutes: it tells all that is wrong, and not the first of it.
        command.arg("--no-fail-fast");
    }
    command
        .args(arguments)
        .env("CARTLOG_TEST_DATABASE_URL", stack.database_url())
        .env("CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS", stack.bootstrap_servers())
        .env("CARTLOG_TEST_BIN_DIR", programs)
        .env_remove("DATABASE_URL")
        .env_remove("KAFKA_BOOTSTRAP_SERVERS");
    let tested = supervise("cargo test", command).await;
    let ended = stack.end().await;
    let status = tested?;
    ended?;
    Ok(status)
}

/// What the arguments for `cargo test` choose.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    packages: Vec<String>,
    needs_services: bool,
    release: bool,
}

impl Selection {
    fn of(arguments: &[String]) -> Self {
        // What stands behind "--" is the test programs' own.
        let ours: Vec<&str> = arguments.iter().map(String::as_str).take_while(|argument| *argument != "--").collect();
        let mut packages = Vec::new();
        for (index, argument) in ours.iter().enumerate() {
            match *argument {
                "-p" | "--package" => packages.extend(ours.get(index + 1).copied()),
                other => {
                    packages.extend(other.strip_prefix("--package=").or_else(|| other.strip_prefix("-p").filter(|name| !name.is_empty())))
                }
            }
        }
        Self {
            // Only the system tests and the bench's run the services' programs.
            needs_services: packages.is_empty() || ["bench", "system-tests"].iter().any(|name| packages.contains(name)),
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            release: ours.iter().any(|argument| matches!(*argument, "--release" | "-r")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Selection {
        Selection::of(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_package_everything_is_tested_and_the_services_are_needed() {
        let all = Selection { packages: vec![], needs_services: true, release: false };
        assert_eq!(of(""), all);
        assert_eq!(of("some_test -- -p kafka --release"), all);
    }

    #[test]
    fn a_package_is_tested_without_the_services_unless_its_tests_run_them() {
        let one = |package: &str| Selection { packages: vec![package.into()], needs_services: false, release: false };
        assert_eq!(of("-p event-store -- --nocapture"), one("event-store"));
        assert_eq!(of("--package=kafka"), one("kafka"));
        assert_eq!(of("-pkafka"), one("kafka"));
        let both = Selection { packages: vec!["event-store".into(), "system-tests".into()], needs_services: true, release: true };
        assert_eq!(of("--release --package event-store -p system-tests"), both);
    }
}
