//! `cargo dev`: the command line of development.

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
#[command(name = "cargo dev", bin_name = "cargo dev", about = "Runs, tests and measures Cartlog on this machine")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build and start everything: PostgreSQL, Kafka, topics, migrations, the four services, the console, cartctl
    Up {
        /// Return when everything is ready; `cargo dev down` stops it
        #[arg(long)]
        detach: bool,
        /// Build optimised services
        #[arg(long)]
        release: bool,
    },
    /// Stop what `up` started, and keep the data
    Down,
    /// Stop what `up` started, and delete its database and topics
    Reset,
    /// Print the addresses of the running stack, as lines for a shell: `eval "$(cargo dev env)"`
    Env,
    /// Simulate a day in a shop, and check the result against the log. Starts the stack if it is not up, and stops it again
    ///
    /// To use a shop that runs elsewhere, set COMMANDS_URL, PROJECTIONS_URL, DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS, as
    /// `cargo dev env` prints them. Behind the proxy, set INTERNAL_URL to its internal listener, too.
    Demo {
        /// The number of shoppers, 2 to 5000
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(2..=5000))]
        shoppers: u32,
        /// The shoppers arrive over this time. 0: all at once
        #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
        over: u64,
        /// How long a shopper retries while the shop is unavailable or busy
        #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
        patience: u64,
        /// Allow lost answers, because processes are killed during the day
        #[arg(long)]
        outages: bool,
        /// Build optimised services, if they are not up yet
        #[arg(long)]
        release: bool,
    },
    /// Apply the migrations to DATABASE_URL, or to the running stack's database
    Migrate,
    /// Run the tests on their own PostgreSQL and Kafka, also those that `cargo test` ignores because they need servers
    #[command(trailing_var_arg = true)]
    Test {
        /// Arguments for `cargo test`, such as `-p event-store -- --nocapture`
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure Cartlog beside its rivals, on their own PostgreSQL and Kafka, and write a report
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Bench {
        /// `log`, `http`, `kafka`, `shop`, `reads`, `projections` or `catchup`; nothing for all but `catchup`. `cargo dev bench --help` lists the options
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Compile every SQL query against a database, and write what the compiler must know into .sqlx
    Queries {
        /// Write nothing, and fail if .sqlx differs from the queries
        #[arg(long)]
        check: bool,
    },
    /// Write the tables in docs/ that repeat the code: settings, routes, error codes, cartctl's commands, metrics, bench results
    Docs {
        /// Write nothing, and fail if a table differs from the code
        #[arg(long)]
        check: bool,
    },
    /// Disturb the whole system under load, and compare the result with the log. A seed determines the schedule
    Chaos {
        /// The campaign
        #[arg(value_enum)]
        campaign: chaos::Campaign,
        /// The length in minutes
        #[arg(long, default_value_t = 5.0, value_parser = minutes)]
        minutes: f64,
        /// The number of processes of each service
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        replicas: u8,
        /// The seed of a schedule to repeat [default: a random one, which is printed]
        #[arg(long)]
        seed: Option<u64>,
        /// Disturb optimised services
        #[arg(long)]
        release: bool,
    },
    /// The background process of `up --detach`
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
        // After an interrupt nothing waits for threads that lock files or unpack archives.
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
                let ended = if log.exists() { format!("; {} has the last run", log.display()) } else { String::new() };
                return Err(Error::Refused(format!("the stack is not up: run `cargo dev up`{ended}")));
            }
        },
        Task::Demo { shoppers, over, patience, outages, release } => {
            let (over, patience) = (Duration::from_secs(over), Duration::from_secs(patience));
            demo::run(&layout, demo::Plan { shoppers, over, patience, outages }, release, &report).await?;
        }
        Task::Queries { check } => queries::run(&layout, check, &report).await?,
        Task::Docs { check } => docs::run(&layout, check, &report).await?,
        Task::Chaos { campaign, minutes, replicas, seed, release } => {
            let (seed, length) = (seed.unwrap_or_else(rand::random), Duration::from_secs_f64(minutes * 60.0));
            chaos::run(&layout, chaos::Plan { campaign, seed, length, replicas: replicas.into() }, release, &report).await?;
        }
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
        report::answer(export(&service.variable, &service.url));
    }
    report::answer(export("DATABASE_URL", &up.database.address));
    report::answer(export("KAFKA_BOOTSTRAP_SERVERS", &up.kafka.address));
    report::answer(export("CARTCTL", &up.cartctl.display().to_string()));
}

/// A line that a shell can evaluate, whatever the value contains.
fn export(name: &str, value: &str) -> String {
    format!("export {name}='{}'", value.replace('\'', r"'\''"))
}

async fn migrate(layout: &Layout, report: &Report) -> Result<(), Error> {
    let given = Settings::from_environment()?.database_url;
    let url = match (given, running(layout)?) {
        (Some(url), _) => url,
        (None, Some(up)) => up.database.address,
        (None, None) => {
            let ways = "there is no database to migrate: set DATABASE_URL, or run `cargo dev up`";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_reads_every_value_as_it_is() {
        for value in ["postgres://a@b:1/c?d=e&f=g", "/a path/it's \"$HOME\"/cartctl", ""] {
            let script = export("VALUE", value) + "\nsh -c 'printf %s \"$VALUE\"'";
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), value);
        }
    }
}
