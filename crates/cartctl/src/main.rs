//! `cartctl`: the operator's command, over the database and the broker; no service need be up.

mod connect;
mod dead_letters;
mod diff;
mod error;
mod follow;
mod log;
mod output;
mod parked;
mod projections;
mod status;
mod todos;
mod translations;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use error::Error;
use output::Output;

const AFTER_HELP: &str = "\
With --json, an answer is one JSON document on a line; a list, `translations show`, `dead-letters replay` and `log` answer with one
for each thing, on a line each, and `status --watch` with one each time. Notes and errors go to standard error, as text.

Exit codes:
  0  it is done
  1  the database, the broker or the request is at fault; the message says what to do
  2  the command is used wrongly
  3  there is no such thing, or nothing to do
  4  it was not confirmed
  5  what was compared differs
  130  interrupted; what was begun goes on";

/// Shows how Cartlog stands, and sets it right.
///
/// Connects to the database as cartlog_operator or as its owner (whose address `cargo dev env` prints), and to the broker.
#[derive(Parser)]
#[command(name = "cartctl", version = version::VERSION, after_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    task: Task,
}

/// What every command takes.
#[derive(Args)]
struct Common {
    /// The database: postgres://cartlog_operator:password@host:5432/cartlog
    #[arg(long, global = true, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// A file with the database's password and nothing else, for a URL without one
    #[arg(long, global = true, env = "CARTLOG_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    database_password_file: Option<PathBuf>,
    /// The brokers: host:port, separated by commas
    #[arg(long, global = true, env = "KAFKA_BOOTSTRAP_SERVERS", default_value = connect::BOOTSTRAP_SERVERS, value_name = "SERVERS")]
    bootstrap_servers: String,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Task {
    /// Everything at a glance: the head of the log, projections, to-dos, stored offsets, dead letters
    Status(status::Arguments),
    /// Read models and automations: how far they are; pause them, make one anew, compare, switch, drop
    #[command(subcommand)]
    Projections(projections::Task),
    /// What projections cannot apply: shown, tried again, skipped
    #[command(subcommand)]
    Parked(parked::Task),
    /// What automations have to do
    #[command(subcommand)]
    Todos(todos::Task),
    /// Carts whose publication failed
    #[command(subcommand)]
    Publications(todos::Publications),
    /// Up to where Kafka's topics are translated into the log
    #[command(subcommand)]
    Translations(translations::Task),
    /// Messages that could not be translated
    #[command(subcommand)]
    DeadLetters(dead_letters::Task),
    /// The events
    #[command(subcommand)]
    Log(log::Task),
    /// Print a shell's completions: `cartctl completions bash >> ~/.bashrc`
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { common, task } = Arguments::parse();
    let output = Output::new(common.json);
    match run(task, &common, &output).await {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has seen enough.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            output.complain(&error.in_one_line());
            error.exit_code()
        }
    }
}

async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    match task {
        Task::Status(arguments) => status::run(arguments, common, output).await,
        Task::Projections(task) => projections::run(task, common, output).await,
        Task::Parked(task) => parked::run(task, common, output).await,
        Task::Todos(task) => todos::run(task, common, output).await,
        Task::Publications(task) => todos::publications(task, common, output).await,
        Task::Translations(task) => translations::run(task, common, output).await,
        Task::DeadLetters(task) => dead_letters::run(task, common, output).await,
        Task::Log(task) => log::run(task, common, output).await,
        Task::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Arguments::command(), "cartctl", &mut script);
            output.raw(&script)
        }
    }
}

/// What a destructive command takes.
#[derive(Args)]
struct Confirmed {
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

impl Confirmed {
    /// Asks, where nobody has said so yet.
    fn ask(&self, output: &Output, what: &str) -> Result<(), Error> {
        if self.yes { Ok(()) } else { output.ask(what) }
    }
}
