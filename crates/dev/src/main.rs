//! `cargo dev`: the one way to everything.

use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::{Parser, Subcommand};
use dev::settings::Settings;
use dev::state::{State, Up};
use dev::{bench, chaos, demo, docs, queries, table, testing, up};
use embedded::database;
use embedded::error::{Context, Error, chain};
use embedded::layout::Layout;
use embedded::report::{self, Report};

#[derive(Parser)]
#[command(name = "cargo dev", bin_name = "cargo dev", about = "Runs, tests and shows the cart system on this machine")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build and start everything: PostgreSQL, Kafka, topics, migrations, the four services
    Up {
        /// Return once all is ready; `cargo dev down` stops it
        #[arg(long)]
        detach: bool,
        /// Build the services optimised
        #[arg(long)]
        release: bool,
    },
    /// Stop what `up` started; the data stay
    Down,
    /// Stop it and empty its database and topics
    Reset,
    /// Print where everything is that is up, as NAME=value lines
    Env,
    /// Live a day in a shop against what is up, and check the outcome against the log. What is not up is started, and stopped again
    ///
    /// A shop that runs elsewhere is named by the variables that `cargo dev env` prints: COMMANDS_URL, PROJECTIONS_URL, DATABASE_URL
    /// and KAFKA_BOOTSTRAP_SERVERS.
    Demo {
        /// How many shoppers come, 2 to 5000
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(2..=5000))]
        shoppers: u32,
        /// The shoppers come one after the other over so many seconds, and not all at once
        #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
        over: u64,
        /// For how long a shopper tries again where the shop is away or busy
        #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
        patience: u64,
        /// Answers may be lost, because processes are killed meanwhile
        #[arg(long)]
        outages: bool,
        /// Build the services optimised, where they are not up yet
        #[arg(long)]
        release: bool,
    },
    /// Apply the migrations to DATABASE_URL, or else to the database that is up
    Migrate,
    /// Run the tests on a PostgreSQL and a Kafka of their own
    #[command(trailing_var_arg = true)]
    Test {
        /// Passed on to `cargo test`, for example `-p event-store -- --nocapture`
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure Cartlog beside its rivals, on a PostgreSQL and a Kafka of their own, and write a report
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Bench {
        /// `log`, `http`, `kafka`, `projections`, or nothing for all; `--quick`; and what `cargo dev bench --help` names
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Write .sqlx anew: what the queries in the code are to know of the database, so that everything builds without one
    Queries {
        /// Only say whether it is as it should be
        #[arg(long)]
        check: bool,
    },
    /// Write the tables in docs/ that repeat the code: settings, routes, error codes, cartctl's commands, metrics, bench results
    Docs {
        /// Write nothing, and fail if a table differs from the code
        #[arg(long)]
        check: bool,
    },
    /// Kill, freeze and cut off real processes under load, by a schedule drawn from a seed, and hold what is left against the log
    Chaos {
        /// What is to stand it
        #[arg(value_enum)]
        subject: chaos::Subject,
        /// For how long
        #[arg(long, default_value_t = 5.0, value_parser = minutes)]
        minutes: f64,
        /// The schedule to repeat [default: another one each time, which is printed]
        #[arg(long)]
        seed: Option<u64>,
    },
    /// What `up --detach` leaves behind
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        release: bool,
    },
}

fn minutes(text: &str) -> Result<f64, String> {
    let right = text.parse::<f64>().ok().filter(|minutes| (0.1..=1_440.0).contains(minutes));
    right.ok_or_else(|| "a number from 0.1 to 1440".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = tokio::runtime::Runtime::new().context(|| "start".to_owned()).and_then(|runtime| {
        let done = runtime.block_on(run(arguments.task));
        // Who is interrupted waits for no lock or archive that a thread is at.
        runtime.shutdown_background();
        done
    });
    done.unwrap_or_else(|error| {
        report::complain(format!("error: {}", chain(&error)));
        ExitCode::FAILURE
    })
}

async fn run(task: Task) -> Result<ExitCode, Error> {
    let layout = Layout::discover()?;
    let report = Report::terminal();
    match task {
        Task::Up { detach: true, release } => {
            let up = up::background(&layout, release, &report).await?;
            report::answer(table::of(&up));
            report.say("all is ready; `cargo dev down` stops it");
        }
        Task::Up { detach: false, release } => up::foreground(&layout, release, &report).await?,
        Task::Supervise { release } => up::in_background(&layout, release, &report).await?,
        Task::Down => up::down(&layout, &report).await?,
        Task::Reset => up::reset(&layout, &Settings::from_environment()?, &report).await?,
        Task::Env => match running(&layout)? {
            Some(up) => print_environment(&up),
            None => {
                let log = layout.stack().join("logs/supervisor.log");
                let ended = if log.exists() { format!("; {} says how it ended last", log.display()) } else { String::new() };
                return Err(Error::Refused(format!("the stack is not up: `cargo dev up`{ended}")));
            }
        },
        Task::Demo { shoppers, over, patience, outages, release } => {
            let (over, patience) = (Duration::from_secs(over), Duration::from_secs(patience));
            demo::run(&layout, demo::Plan { shoppers, over, patience, outages }, release, &report).await?;
        }
        Task::Queries { check } => queries::run(&layout, check, &report).await?,
        Task::Docs { check } => docs::run(&layout, check, &report).await?,
        Task::Chaos { subject, minutes, seed } => chaos::run(&layout, subject, minutes, seed, &report).await?,
        Task::Migrate => migrate(&layout, &report).await?,
        Task::Bench { arguments } => return Ok(code(bench::run(&layout, &arguments, &report).await?)),
        Task::Test { arguments } => return Ok(code(testing::run(&layout, &arguments, &report).await?)),
    }
    Ok(ExitCode::SUCCESS)
}

fn running(layout: &Layout) -> Result<Option<Up>, Error> {
    Ok(State::read(layout)?.and_then(|state| state.up))
}

fn print_environment(up: &Up) {
    for service in &up.services {
        report::answer(format!("{}={}", service.variable, service.url));
    }
    report::answer(format!("DATABASE_URL={}", up.database.address));
    report::answer(format!("KAFKA_BOOTSTRAP_SERVERS={}", up.kafka.address));
    report::answer(format!("CARTCTL={}", up.cartctl.display()));
}

async fn migrate(layout: &Layout, report: &Report) -> Result<(), Error> {
    let given = Settings::from_environment()?.database_url;
    let url = match (given, running(layout)?) {
        (Some(url), _) => url,
        (None, Some(up)) => up.database.address,
        (None, None) => {
            let ways = "there is no database to migrate: set DATABASE_URL, or `cargo dev up`";
            return Err(Error::Refused(ways.to_owned()));
        }
    };
    report.say(format!("applying the migrations to {}", database::masked(&url)));
    database::migrate(&url).await?;
    report.say("all migrations are applied");
    Ok(())
}

fn code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
