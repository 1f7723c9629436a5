//! `cargo dev bench`: ourselves, paired with our rivals in the same run.
//!
//! What is compared is measured in turns, round by round, each round beginning with another; a ratio is that of two measurements of one
//! round, and what is reported is the median of the rounds' ratios. Absolute figures are the machine's; ratios travel.

mod add_item;
mod chart;
mod database;
mod floor;
mod http;
mod kafka;
mod latency;
mod log;
mod machine;
mod measure;
mod projections;
mod report;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use dev::{
    files, ports,
    report::answer,
    services::{Kind, Service, Settings},
    signals::Signals,
};
use serde::{Deserialize, Serialize};

use crate::{
    database::{Database, Server},
    machine::Machine,
    report::Report,
};

/// Measures Cartlog beside its rivals: disintegrate-postgres, itself without its cache, and PostgreSQL's plain INSERT.
#[derive(Debug, Parser)]
#[command(name = "cargo dev bench", bin_name = "cargo dev bench")]
struct Arguments {
    /// What is measured [default: all]
    #[arg(value_enum)]
    subjects: Vec<Subject>,
    /// Rounds; what is compared is measured in each [default: 5]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds that a measurement takes [default: 3]
    #[arg(long)]
    seconds: Option<f64>,
    /// Tasks, or connections, at once [default: 1,16,64,256]
    #[arg(long, value_delimiter = ',', value_parser = count)]
    levels: Option<Vec<u64>>,
    /// Events in the log before; the bars want 10k,10m, which takes a while [default: 10k,1m]
    #[arg(long, value_delimiter = ',', value_parser = count)]
    before: Option<Vec<u64>>,
    /// Carts that one product is in, and times that another one's inventory changed [default: 1m]
    #[arg(long, value_parser = count)]
    crowd: Option<u64>,
    /// Carts after which the memory of cart-commands is measured [default: 1m]
    #[arg(long, value_parser = count)]
    carts: Option<u64>,
    /// Kafka messages that are translated in a round [default: 200k]
    #[arg(long, value_parser = count)]
    messages: Option<u64>,
    /// Events that are projected in a round [default: 1m]
    #[arg(long, value_parser = count)]
    events: Option<u64>,
    /// Only sees whether everything works: one round of a moment, on small logs
    #[arg(long)]
    quick: bool,
    /// Where report.json and chart.svg go
    #[arg(long, default_value = "target/bench", overrides_with = "out")]
    out: PathBuf,
    /// A PostgreSQL server, as its superuser; databases are made on it, and removed
    #[arg(long)]
    database_url: String,
    /// Kafka's bootstrap servers
    #[arg(long)]
    kafka: Option<String>,
    /// Where the services' programs are [default: beside this one]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where the services write their logs [default: beside the report]
    #[arg(long)]
    logs: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Add Item through `event-store`
    Log,
    /// Add Item over HTTP, and the memory of cart-commands
    Http,
    /// Inventories in from Kafka
    Kafka,
    /// Cart Items, made from a log that is there; and how soon events, messages and archivings follow
    Projections,
}

/// How much is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sizes {
    pub(crate) rounds: usize,
    /// Of a measurement.
    pub(crate) length: Duration,
    pub(crate) levels: Vec<usize>,
    pub(crate) before: Vec<u64>,
    pub(crate) crowd: u64,
    pub(crate) carts: u64,
    pub(crate) messages: u64,
    pub(crate) events: u64,
}

impl Sizes {
    fn of(arguments: &Arguments) -> Result<Self> {
        let sizes = |full: u64, quick: u64| if arguments.quick { quick } else { full };
        let levels = arguments.levels.clone().unwrap_or(if arguments.quick { vec![1, 4] } else { vec![1, 16, 64, 256] });
        let seconds = arguments.seconds.unwrap_or(if arguments.quick { 0.2 } else { 3.0 });
        let all = Self {
            rounds: arguments.rounds.unwrap_or(if arguments.quick { 1 } else { 5 }),
            length: Duration::try_from_secs_f64(seconds).context("--seconds")?,
            levels: levels.into_iter().map(usize::try_from).collect::<Result<_, _>>()?,
            before: arguments.before.clone().unwrap_or(if arguments.quick { vec![1_000] } else { vec![10_000, 1_000_000] }),
            crowd: arguments.crowd.unwrap_or(sizes(1_000_000, 1_000)),
            carts: arguments.carts.unwrap_or(sizes(1_000_000, 1_000)),
            messages: arguments.messages.unwrap_or(sizes(200_000, 2_000)),
            events: arguments.events.unwrap_or(sizes(1_000_000, 5_000)),
        };
        if all.levels.contains(&0) || all.levels.is_empty() || all.before.is_empty() || all.rounds == 0 || all.length.is_zero() {
            bail!("rounds, seconds, levels and events before must be more than nothing");
        }
        Ok(all)
    }

    /// The level that most bars speak of.
    pub(crate) fn loud(&self) -> usize {
        let most = self.levels.iter().copied().max().unwrap_or(64);
        if self.levels.contains(&64) { 64 } else { most }
    }
}

/// 1000, 10k or 1m.
fn count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| "a whole number, as 1000, 10k or 1m".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

/// What every scenario needs.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) kafka: Option<String>,
    pub(crate) sizes: Sizes,
    programs: PathBuf,
    logs: PathBuf,
    screen: dev::report::Report,
}

impl Bench {
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        self.screen.say(text);
    }

    /// A service as it is deployed, ready, on a database of ours.
    pub(crate) async fn start(
        &self,
        kind: Kind,
        name: &str,
        database: &Database,
        mut environment: Vec<(String, String)>,
    ) -> Result<Service> {
        let [port] = ports::free([None])?;
        // As where nobody reads along.
        environment.push(("CARTLOG_LOG_FORMAT".to_owned(), "json".to_owned()));
        let settings = Settings {
            database_url: database.url_as(kind.role)?,
            environment,
            log: self.logs.join(format!("bench-{}-{name}.log", kind.name)),
            ..Settings::new(kind, &self.programs, &self.logs, port)
        };
        let mut service = Service::start(kind, settings)?;
        service.until_ready(Duration::from_secs(60)).await?;
        Ok(service)
    }
}

// One thread puts the load on, and has the event store in it as cart-commands has one for its own: PostgreSQL has the other core. The
// rivals were no slower for it at 1 and at 64 tasks.
#[tokio::main(worker_threads = 1)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let sizes = Sizes::of(&arguments)?;
    let beside = std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
    let bench = Bench {
        server: Server::new(&arguments.database_url)?,
        kafka: arguments.kafka.clone(),
        sizes: sizes.clone(),
        programs: arguments.programs.clone().unwrap_or(beside),
        logs: arguments.logs.clone().unwrap_or_else(|| arguments.out.join("logs")),
        screen: dev::report::Report::terminal(),
    };
    files::create_directory(&arguments.out)?;
    files::create_directory(&bench.logs)?;
    let mut report = Report::new(Machine::here(&bench.server.pool().await?).await?, sizes);
    let mut signals = Signals::listen()?;
    let measured = tokio::select! {
        measured = measure_all(&bench, &arguments.subjects, &mut report) => measured,
        // The services that run end with what was measuring them.
        () = signals.next() => Err(dev::Error::Interrupted.into()),
    };
    let dropped = bench.server.drop_all().await;
    measured?;
    dropped?;

    report.judge();
    let (json, svg) = (arguments.out.join("report.json"), arguments.out.join("chart.svg"));
    files::write_atomically(&json, &serde_json::to_vec_pretty(&report)?)?;
    files::write_atomically(&svg, chart::svg(&report).as_bytes())?;
    answer(report.table());
    bench.say(format!("the report is in {} and {}", json.display(), svg.display()));
    Ok(())
}

async fn measure_all(bench: &Bench, subjects: &[Subject], report: &mut Report) -> Result<()> {
    let subjects = if subjects.is_empty() { Subject::value_variants() } else { subjects };
    for subject in subjects {
        match subject {
            Subject::Log => log::run(bench, report).await?,
            Subject::Http => http::run(bench, report).await?,
            Subject::Kafka => kafka::run(bench, report).await?,
            Subject::Projections => {
                projections::run(bench, report).await?;
                latency::run(bench, report).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_may_be_written_short() {
        assert_eq!(["7", "10k", "1m"].map(count), [Ok(7), Ok(10_000), Ok(1_000_000)]);
        for wrong in ["", "k", "1.5m", "-1", "99999999999999999999m", "18446744073709551615k"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
    }
}
