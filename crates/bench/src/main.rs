//! `cargo dev bench`: Cartlog beside its rivals, in the same run.
//!
//! Contenders are measured in turns, round by round. Each round starts with another contender. A ratio compares two measurements of one
//! round, and the report has the median of the rounds' ratios. Ratios travel to other machines; absolute figures do not.

mod add_item;
mod bench;
mod chart;
mod client;
mod database;
mod floor;
mod http;
mod kafka;
mod latency;
mod log;
mod machine;
mod measure;
mod place;
mod plain;
mod projections;
mod reads;
mod report;
mod scenarios;
mod shop;
mod sizes;
mod system;
mod work;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Parser;
use dev::bench::{Arguments, Subject};
use embedded::{files, report::answer, signals::Signals};

use crate::{bench::Bench, database::Server, machine::Machine, report::Report, sizes::Sizes};

/// Measures Cartlog beside its rivals. `cargo dev bench` starts it with the servers' addresses.
#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    chosen: Arguments,
    /// A PostgreSQL server, as its superuser; the bench creates databases on it, and drops them
    #[arg(long)]
    database_url: String,
    /// Kafka's bootstrap servers
    #[arg(long)]
    kafka: Option<String>,
    /// The directory of the services' programs [default: that of this program]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// The directory for the services' logs [default: beside the report]
    #[arg(long)]
    logs: Option<PathBuf>,
}

/// The file for the figures of a run that did not finish.
const UNFINISHED: &str = "unfinished.json";

// One thread makes the load and runs the event store, as cart-commands does. PostgreSQL has the other core. The rivals were not slower with
// one thread at 1 and at 64 tasks.
#[tokio::main(worker_threads = 1)]
async fn main() -> Result<ExitCode> {
    match run().await {
        // The user caused it and needs no backtrace.
        Err(error) if matches!(error.downcast_ref(), Some(embedded::Error::Interrupted)) => {
            embedded::report::Report::terminal().say(&error);
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
        screen: embedded::report::Report::terminal(),
    };
    files::create_directory(&out)?;
    files::create_directory(&bench.logs)?;
    let mut report = Report::new(Machine::here(&bench.server.pool().await?).await?, sizes);
    let mut signals = Signals::listen()?;
    let measured = tokio::select! {
        measured = measure_all(&bench, &program.chosen.subjects, &mut report) => measured,
        // Running services end with the measurement.
        () = signals.next() => Err(embedded::Error::Interrupted.into()),
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
    // An earlier run may have left it.
    let _ = std::fs::remove_file(out.join(UNFINISHED));

    let (json, svg) = (out.join("report.json"), out.join("chart.svg"));
    files::write_atomically(&json, &serde_json::to_vec_pretty(&report)?)?;
    files::write_atomically(&svg, chart::svg(&report).as_bytes())?;
    answer(report.table());
    bench.say(format!("the report is in {} and {}", json.display(), svg.display()));
    Ok(())
}

async fn measure_all(bench: &Bench, subjects: &[Subject], report: &mut Report) -> Result<()> {
    let subjects = if subjects.is_empty() { &Subject::WHOLE } else { subjects };
    for subject in subjects {
        match subject {
            Subject::Log => log::run(bench, report).await?,
            Subject::Http => http::run(bench, report).await?,
            Subject::Kafka => kafka::run(bench, report).await?,
            Subject::Shop => shop::run(bench, report).await?,
            Subject::Reads => reads::run(bench, report).await?,
            Subject::Projections => {
                projections::run(bench, report).await?;
                latency::run(bench, report).await?;
            }
            Subject::Catchup => projections::catch_up(bench, report).await?,
        }
    }
    Ok(())
}
