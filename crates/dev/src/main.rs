//! `cargo dev`: the one way to everything.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dev::error::{Error, chain};
use dev::layout::Layout;
use dev::report::{self, Report};
use dev::test_stack;

#[derive(Parser)]
#[command(name = "cargo dev", bin_name = "cargo dev", about = "Runs, tests and shows the cart system on this machine")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the tests on a PostgreSQL and a Kafka of their own
    #[command(trailing_var_arg = true)]
    Test {
        /// Passed on to `cargo test`, for example `-p event-store -- --nocapture`
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.task).await {
        Ok(code) => code,
        Err(error) => {
            report::complain(format!("error: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

async fn run(task: Task) -> Result<ExitCode, Error> {
    let layout = Layout::discover()?;
    let report = Report::terminal();
    match task {
        Task::Test { arguments } => {
            let status = test_stack::run(&layout, &arguments, &report).await?;
            Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}
