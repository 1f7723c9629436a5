//! `cargo dev bench`: runs the program `bench` on its own servers.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use clap::{Args, FromArgMatches, ValueEnum, value_parser};
use tokio::process::Command;

use crate::cargo;
use crate::supervise::supervise;
use embedded::error::Error;
use embedded::layout::Layout;
use embedded::report::Report;
use embedded::test_stack::TestStack;
use shop::services;

const PROGRAM: &str = "bench";

/// The arguments of the bench. They are defined here because wrong ones must be refused before minutes of compiling.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The scenario to measure [default: all but catchup]
    #[arg(value_enum)]
    pub subjects: Vec<Subject>,
    /// Rounds. Each round measures everything that is compared [default: 5]
    #[arg(long, allow_negative_numbers = true, value_parser = value_parser!(u16).range(1..=1_000))]
    pub rounds: Option<u16>,
    /// Seconds per measurement, 0.05 to 600 [default: 3]
    #[arg(long, allow_negative_numbers = true, value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Concurrent tasks or connections, 1 to 300 [default: 1,16,64,256]
    #[arg(long, value_delimiter = ',', value_parser = value_parser!(u16).range(1..=300))]
    pub levels: Option<Vec<u16>>,
    /// Events in the log before the measurement. The bar for a large log is for 10k,10m [default: 10k,1m]
    #[arg(long, value_delimiter = ',', value_parser = count)]
    pub before: Option<Vec<u64>>,
    /// Carts with one product, and inventory changes of another product [default: 1m]
    #[arg(long, value_parser = count)]
    pub crowd: Option<u64>,
    /// Carts before the memory of cart-commands is measured [default: 1m]
    #[arg(long, value_parser = count)]
    pub carts: Option<u64>,
    /// Kafka messages to translate per round, and ten times the carts to publish [default: 200k]
    #[arg(long, value_parser = count)]
    pub messages: Option<u64>,
    /// Events to project per round [default: 1m]
    #[arg(long, value_parser = count)]
    pub events: Option<u64>,
    /// Only check that everything works: one short round on small logs. The figures mean nothing
    #[arg(long)]
    pub quick: bool,
    /// The folder of report.json and chart.svg [default: target/bench; a folder in it for a part or a quick run]
    #[arg(long, overrides_with = "out")]
    pub out: Option<PathBuf>,
}

/// A part of the benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// Add Item through `event-store`
    Log,
    /// Add Item over HTTP, and the memory of cart-commands
    Http,
    /// Inventories from Kafka into the log
    Kafka,
    /// Whole shoppers, and how their carts are published
    Shop,
    /// Reads of carts, and refusals
    Reads,
    /// Cart Items catching up with a log, and the latency of read models and archiving
    Projections,
    /// Cart Items catching up with each log of --before, such as 1m,100m. Only if named: 100m need an hour and 60 GB of disk
    Catchup,
}

impl Subject {
    /// The parts of a whole run.
    pub const WHOLE: [Self; 6] = [Self::Log, Self::Http, Self::Kafka, Self::Shop, Self::Reads, Self::Projections];
}

/// Parses a number such as 1000, 10k or 1m. Fewer than 1000 measure nothing, and 100m take a day.
fn count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let right = number.filter(|number| (1_000..=100_000_000).contains(number));
    right.ok_or_else(|| "a whole number from 1k to 100m, such as 1000, 10k or 1m".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let right = text.parse::<f64>().ok().filter(|seconds| (0.05..=600.0).contains(seconds));
    right.ok_or_else(|| "a number from 0.05 to 600".to_owned())
}

impl Arguments {
    /// The folder of the report. A part or a quick run must not overwrite the whole report.
    fn folder(&self, layout: &Layout) -> PathBuf {
        let mut folder = layout.target().join(PROGRAM);
        let chosen: Vec<_> = Subject::value_variants().iter().filter(|subject| self.subjects.contains(subject)).collect();
        let parts = if chosen.iter().copied().eq(&Subject::WHOLE) { vec![] } else { chosen };
        let parts = parts.into_iter().filter_map(ValueEnum::to_possible_value).map(|part| part.get_name().to_owned());
        let name = self.quick.then(|| "quick".to_owned()).into_iter().chain(parts).collect::<Vec<_>>().join("-");
        if !name.is_empty() {
            folder.push(name);
        }
        self.out.clone().unwrap_or(folder)
    }
}

/// Parses the arguments.
///
/// # Errors
/// clap's answer: an error, or the help.
fn parse(arguments: &[String]) -> Result<Arguments, clap::Error> {
    let name = "cargo dev bench";
    let about = "Measures Cartlog beside its rivals: disintegrate-postgres, Cartlog without its cache, and plain SQL";
    let command = Arguments::augment_args(clap::Command::new(name).bin_name(name)).about(about);
    Arguments::from_arg_matches(&command.try_get_matches_from(std::iter::once(name).chain(arguments.iter().map(String::as_str)))?)
}

/// Runs the optimised benchmarks, and returns how they ended. Wrong arguments and `--help` end this process.
///
/// # Errors
/// A program does not compile, or a server does not start.
pub async fn run(layout: &Layout, arguments: &[String], report: &Report) -> Result<ExitStatus, Error> {
    let folder = parse(arguments).unwrap_or_else(|answer| answer.exit()).folder(layout);
    report.say("building the optimised services and the bench; the first time takes 5 to 10 minutes");
    let mut names = services::ALL.map(|service| service.name).to_vec();
    names.push(PROGRAM);
    let programs = cargo::build(layout, &names, true).await?;
    let ((), stack) = TestStack::start_beside(layout, report, async { Ok(()) }).await?;
    report.say(format!("PostgreSQL and Kafka are up; their logs are in {}", stack.logs().display()));
    let mut command = Command::new(programs.join(PROGRAM));
    command
        .stdin(Stdio::null())
        .args(["--database-url", &stack.database_url(), "--kafka", &stack.bootstrap_servers()])
        .arg("--programs")
        .arg(&programs)
        .arg("--logs")
        .arg(stack.logs())
        .arg("--out")
        .arg(folder)
        .args(arguments);
    // The bench measures the default settings, whatever this shell sets.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARTLOG_")) {
        command.env_remove(name);
    }
    let measured = supervise(PROGRAM, command).await;
    let ended = stack.end().await;
    let status = measured?;
    ended?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        parse(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn count_accepts_k_and_m() {
        assert_eq!(["1000", "10k", "1m"].map(count), [Ok(1_000), Ok(10_000), Ok(1_000_000)]);
        for wrong in ["", "k", "0", "7", "1.5m", "-1", "101m", "99999999999999999999m", "18446744073709551615k"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parse_refuses_wrong_arguments_with_a_reason() {
        let help = parsed("--help").unwrap_err();
        assert!(
            help.starts_with("Measures Cartlog beside its rivals")
                && help.contains("Usage: cargo dev bench [OPTIONS] [SUBJECTS]...")
                && help.contains("--before <BEFORE>"),
            "{help}"
        );
        for (line, says) in [
            ("--quikc", "unexpected argument '--quikc'"),
            ("lgo", "[possible values: log, http, kafka, shop, reads, projections, catchup]"),
            ("--rounds 0", "0 is not in 1..=1000"),
            ("--rounds -1", "-1 is not in 1..=1000"),
            ("--levels 1,450", "450 is not in 1..=300"),
            ("log --before abc", "a whole number from 1k to 100m"),
            ("--events 0", "a whole number from 1k to 100m"),
            ("--seconds -1", "a number from 0.05 to 600"),
            ("--seconds nan", "a number from 0.05 to 600"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn folder_of_a_part_or_a_quick_run_is_its_own() {
        let layout = Layout::discover().unwrap();
        let folder = |line: &str| parsed(line).unwrap().folder(&layout);
        let whole = layout.target().join("bench");
        assert_eq!(folder("--rounds 3"), whole);
        assert_eq!(folder("log kafka reads projections http shop"), whole);
        assert_eq!(["log kafka", "kafka log log"].map(folder), [(); 2].map(|()| whole.join("log-kafka")));
        assert_eq!(folder("--quick"), whole.join("quick"));
        assert_eq!(["log --out here", "--out there --out here"].map(folder), [(); 2].map(|()| PathBuf::from("here")));
    }
}
