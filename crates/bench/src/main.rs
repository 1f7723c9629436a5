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
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use dev::{
    bench::{Arguments, Subject},
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

/// Measures Cartlog beside its rivals; `cargo dev bench` says where.
#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    chosen: Arguments,
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

/// How much is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sizes {
    /// Whether everything works, and no more.
    pub(crate) quick: bool,
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
    fn of(chosen: &Arguments) -> Result<Self> {
        let quick = chosen.quick;
        let sizes = |chosen: Option<u64>, full: u64, small: u64| chosen.unwrap_or(if quick { small } else { full });
        let levels = chosen.levels.clone().unwrap_or(if quick { vec![1, 4] } else { vec![1, 16, 64, 256] });
        let mut before = chosen.before.clone().unwrap_or(if quick { vec![1_000] } else { vec![10_000, 1_000_000] });
        // The first is the one that the others are compared to.
        before.sort_unstable();
        before.dedup();
        Ok(Self {
            quick,
            rounds: chosen.rounds.unwrap_or(if quick { 1 } else { 5 }).into(),
            length: Duration::try_from_secs_f64(chosen.seconds.unwrap_or(if quick { 0.2 } else { 3.0 })).context("--seconds")?,
            levels: levels.into_iter().map(usize::from).collect(),
            before,
            crowd: sizes(chosen.crowd, 1_000_000, 1_000),
            carts: sizes(chosen.carts, 1_000_000, 1_000),
            messages: sizes(chosen.messages, 200_000, 2_000),
            events: sizes(chosen.events, 1_000_000, 5_000),
        })
    }

    /// The level that most bars speak of.
    pub(crate) fn loud(&self) -> usize {
        let most = self.levels.iter().copied().max().unwrap_or(64);
        if self.levels.contains(&64) { 64 } else { most }
    }
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

/// What was measured by a run that did not come to its end.
const UNFINISHED: &str = "unfinished.json";

// One thread puts the load on, and has the event store in it as cart-commands has one for its own: PostgreSQL has the other core. The
// rivals were no slower for it at 1 and at 64 tasks.
#[tokio::main(worker_threads = 1)]
async fn main() -> Result<ExitCode> {
    match run().await {
        // Whoever did it knows where from, and needs no backtrace.
        Err(error) if matches!(error.downcast_ref(), Some(dev::Error::Interrupted)) => {
            dev::report::Report::terminal().say(&error);
            Ok(ExitCode::FAILURE)
        }
        ended => ended.map(|()| ExitCode::SUCCESS),
    }
}

async fn run() -> Result<()> {
    let program = Program::parse();
    let sizes = Sizes::of(&program.chosen)?;
    let out = program.chosen.out.unwrap_or_else(|| PathBuf::from("target/bench"));
    let beside = std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
    let bench = Bench {
        server: Server::new(&program.database_url)?,
        kafka: program.kafka,
        sizes: sizes.clone(),
        programs: program.programs.unwrap_or(beside),
        logs: program.logs.unwrap_or_else(|| out.join("logs")),
        screen: dev::report::Report::terminal(),
    };
    files::create_directory(&out)?;
    files::create_directory(&bench.logs)?;
    let mut report = Report::new(Machine::here(&bench.server.pool().await?).await?, sizes);
    let mut signals = Signals::listen()?;
    let measured = tokio::select! {
        measured = measure_all(&bench, &program.chosen.subjects, &mut report) => measured,
        // The services that run end with what was measuring them.
        () = signals.next() => Err(dev::Error::Interrupted.into()),
    };
    let dropped = bench.server.drop_all().await;
    report.judge();
    if measured.is_err() && !report.figures.is_empty() {
        let unfinished = out.join(UNFINISHED);
        bench.say(match files::write_atomically(&unfinished, &serde_json::to_vec_pretty(&report)?) {
            Ok(()) => format!("what was measured until then is in {}", unfinished.display()),
            Err(error) => format!("what was measured until then could not be written: {error}"),
        });
    }
    measured?;
    dropped?;
    // That of an earlier run.
    let _ = std::fs::remove_file(out.join(UNFINISHED));

    let (json, svg) = (out.join("report.json"), out.join("chart.svg"));
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
