//! `cargo dev test`: the tests, on servers of their own.

use std::path::Path;
use std::process::{ExitStatus, Stdio};

use embedded::error::{Context, Error};
use embedded::layout::Layout;
use embedded::report::Report;
use embedded::test_stack::TestStack;

use crate::cargo::{self, PROGRAMS, Package};
use crate::supervise::supervise;

/// The packages whose tests run the services' programs.
const NEED_PROGRAMS: [&str; 2] = ["bench", "system-tests"];

/// It uses every third-party crate with every feature that any default member asks for. Cargo chooses features for the packages that are
/// selected together: with this one among them, a crate's tests use what `cargo dev up` has compiled.
const CARRIER: &str = "publisher";

/// Not a default member: see Cargo.toml.
const BENCH: &str = "bench";

/// Runs `cargo test` with `arguments` on servers of its own, and returns how it ended. If the arguments name no package, it tests them all.
///
/// # Errors
/// A service does not compile, or a server does not start.
pub async fn run(layout: &Layout, arguments: &[String], report: &Report) -> Result<ExitStatus, Error> {
    let selection = Selection::of(arguments);
    for package in &selection.packages {
        // If there is no such package, cargo names the one that is spelt almost like it.
        let mut known = cargo::command(layout);
        known.args(["pkgid", "--quiet", package]).stdout(Stdio::null());
        let status = known.status().await.context(|| "run cargo".to_owned())?;
        if !status.success() {
            return Ok(status);
        }
    }
    let runs = selection.runs(arguments, &cargo::packages(layout).await?);
    let build = async {
        if selection.needs_programs() {
            report.say("building the services");
            cargo::build(layout, &PROGRAMS, selection.release).await
        } else {
            Ok(layout.target().join(if selection.release { "release" } else { "debug" }))
        }
    };
    let (programs, stack) = TestStack::start_beside(layout, report, build).await?;
    report.say(format!("PostgreSQL and Kafka are up; their logs are in {}", stack.logs().display()));
    let tested = test(layout, &runs, &programs, &stack).await;
    let ended = stack.end().await;
    let status = tested?;
    ended?;
    Ok(status)
}

/// Runs cargo with each list of arguments, and returns the first failure. A run of everything continues after a failure.
async fn test(layout: &Layout, runs: &[Vec<String>], programs: &Path, stack: &TestStack) -> Result<ExitStatus, Error> {
    let mut all = ExitStatus::default();
    for arguments in runs {
        let mut command = cargo::command(layout);
        command
            .arg("test")
            .args(arguments)
            .env("CARTLOG_TEST_DATABASE_URL", stack.database_url())
            .env("CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS", stack.bootstrap_servers())
            .env("CARTLOG_TEST_BIN_DIR", programs)
            .env_remove("DATABASE_URL")
            .env_remove("KAFKA_BOOTSTRAP_SERVERS");
        let status = supervise("cargo test", command).await?;
        if all.success() {
            all = status;
        }
        if !status.success() && !arguments.iter().any(|argument| argument == NO_FAIL_FAST) {
            break;
        }
    }
    Ok(all)
}

const NO_FAIL_FAST: &str = "--no-fail-fast";

/// Which targets of its packages a selection names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Targets {
    /// None: cargo tests all.
    All,
    /// Some by their names, which the carrier has none of.
    Named,
    /// Some by their kind, or packages in another way than by name.
    Other,
}

/// The selection that the arguments for `cargo test` make.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    packages: Vec<String>,
    targets: Targets,
    release: bool,
}

impl Selection {
    fn of(arguments: &[String]) -> Self {
        // Arguments after "--" are for the test programs.
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
        let flag = |flags: &[&str]| ours.iter().any(|word| flags.contains(&word.split('=').next().unwrap_or_default()));
        let targets = if flag(&["--bins", "--tests", "--examples", "--benches", "--all-targets", "--workspace", "--all", "--exclude"]) {
            Targets::Other
        } else if flag(&["--lib", "--bin", "--test", "--example", "--bench", "--doc"]) {
            Targets::Named
        } else {
            Targets::All
        };
        Self {
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            targets,
            release: ours.iter().any(|argument| matches!(*argument, "--release" | "-r")),
        }
    }

    fn needs_programs(&self) -> bool {
        self.packages.is_empty() || self.packages.iter().any(|package| NEED_PROGRAMS.contains(&package.as_str()))
    }

    /// The arguments of each `cargo test` that this takes.
    fn runs(&self, arguments: &[String], workspace: &[Package]) -> Vec<Vec<String>> {
        let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
        let (before, behind) = arguments.split_at(end);
        let run = |more: &[String]| with_ignored(before.iter().chain(more).chain(behind).cloned().collect());
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        if self.packages.is_empty() && self.targets == Targets::All {
            // A run of everything takes minutes. It reports every failure, not only the first one.
            let more = if arguments.is_empty() { words(&[NO_FAIL_FAST]) } else { vec![] };
            return vec![run(&more), run(&[more.as_slice(), &words(&["-p", BENCH])].concat())];
        }
        if self.packages.is_empty() || self.targets == Targets::Other || self.packages.iter().any(|package| package == BENCH) {
            return vec![run(&[])];
        }
        if self.targets == Targets::Named {
            return vec![run(&words(&["-p", CARRIER]))];
        }
        // Only these packages' own targets, by their names: nothing of the carrier is compiled or run.
        let mut targets = words(&["-p", CARRIER]);
        let mut has_library = false;
        for target in workspace.iter().filter(|package| self.packages.contains(&package.name)).flat_map(|package| &package.targets) {
            match target.kind.first().map(String::as_str) {
                // Cargo builds the program of an example, which a test may run, only if no target is named.
                Some("example") => return vec![run(&words(&["-p", CARRIER]))],
                Some("bin") => targets.extend(["--bin".to_owned(), target.name.clone()]),
                Some("test") => targets.extend(["--test".to_owned(), target.name.clone()]),
                Some("lib") => has_library = true,
                _ => {}
            }
        }
        if !has_library {
            return vec![run(&targets)];
        }
        targets.push("--lib".to_owned());
        vec![run(&targets), run(&words(&["-p", CARRIER, "--doc"]))]
    }
}

/// Also runs the tests that are marked `#[ignore]` because they need servers.
fn with_ignored(mut arguments: Vec<String>) -> Vec<String> {
    const INCLUDE: &str = "--include-ignored";
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or_else(|| {
        arguments.push("--".to_owned());
        arguments.len() - 1
    });
    if !arguments[end..].iter().any(|argument| argument == "--ignored" || argument == INCLUDE) {
        arguments.insert(end + 1, INCLUDE.to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::Target;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn package(name: &str, targets: &[(&str, &str)]) -> Package {
        let targets = targets.iter().map(|(kind, name)| Target { name: (*name).to_owned(), kind: vec![(*kind).to_owned()] });
        Package { name: name.to_owned(), manifest_path: name.into(), targets: targets.collect() }
    }

    fn runs(line: &str) -> Vec<String> {
        let workspace = [
            package("event-store", &[("lib", "event_store"), ("test", "integration"), ("custom-build", "build-script-build")]),
            package("publisher", &[("bin", "publisher")]),
            package("service", &[("lib", "service"), ("test", "process"), ("example", "minimal")]),
        ];
        Selection::of(&words(line)).runs(&words(line), &workspace).iter().map(|arguments| arguments.join(" ")).collect()
    }

    #[test]
    fn everything_is_tested_in_two_runs_without_a_package() {
        assert_eq!(runs(""), ["--no-fail-fast -- --include-ignored", "--no-fail-fast -p bench -- --include-ignored"]);
        let filtered = ["some -- --include-ignored -p kafka", "some -p bench -- --include-ignored -p kafka"];
        assert_eq!(runs("some -- -p kafka"), filtered);
        assert!(Selection::of(&words("some_test -- -p kafka")).needs_programs());
    }

    #[test]
    fn package_is_tested_beside_the_carrier_of_features() {
        assert_eq!(
            runs("-p event-store a_test -- --nocapture"),
            [
                "-p event-store a_test -p publisher --test integration --lib -- --include-ignored --nocapture",
                "-p event-store a_test -p publisher --doc -- --include-ignored --nocapture"
            ]
        );
        assert_eq!(runs("-p service"), ["-p service -p publisher -- --include-ignored"]);
        assert_eq!(runs("-p publisher"), ["-p publisher -p publisher --bin publisher -- --include-ignored"]);
    }

    #[test]
    fn chosen_targets_and_the_bench_are_left_as_they_are() {
        for line in ["-p event-store --all-targets", "--workspace", "--test end_to_end", "-p bench"] {
            assert_eq!(runs(line), [format!("{line} -- --include-ignored")]);
        }
        assert_eq!(runs("-p event-store --test=integration"), ["-p event-store --test=integration -p publisher -- --include-ignored"]);
        assert_eq!(runs("-p bench -- --ignored"), ["-p bench -- --ignored"]);
    }

    #[test]
    fn only_the_system_tests_and_the_bench_need_programs() {
        for (line, needed) in [("-p event-store", false), ("--package=kafka", false), ("-p kafka -p system-tests", true), ("-pbench", true)]
        {
            assert_eq!(Selection::of(&words(line)).needs_programs(), needed, "{line}");
        }
        assert!(Selection::of(&words("--release -p dev")).release);
    }
}
