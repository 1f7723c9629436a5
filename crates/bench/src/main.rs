//! `cargo dev bench`: ourselves, paired with our rivals in the same run.
//!
//! What is compared is measured in turns, round by round, each round beginning with another; a ratio is that of two measurements of one
//! round, and what is reported is the median of the rounds' ratios. Absolute figures are the machine's; ratios travel.

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
mod projections;
mod report;
mod scenarios;
mod sizes;
mod work;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use dev::bench::{Arguments, Subject};
use embedded::{files, report::answer, signals::Signals};

use crate::{bench::Bench, database::Server, machine::Machine, report::Report, sizes::Sizes};

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

/// What was measured by a run that did not come to its end.
const UNFINISHED: &str = "unfinished.json";

// One thread puts the load on, and has the event store in it as cart-commands has one for its own: PostgreSQL has the other core. The
// rivals were no slower for it at 1 and at 64 tasks.
#[tokio::main(worker_threads = 1)]
async fn main() -> Result<ExitCode> {
    match run().await {
        // Whoever did it knows where from, and needs no backtrace.
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
        // The services that run end with what was measuring them.
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
