//! `cartctl`, the command line for operators. It uses the database and the broker, and works without the services.

mod arguments;
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

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use arguments::Common;
use error::Error;
use output::Output;

const AFTER_HELP: &str = "\
With --json, standard output has one JSON document per line. Lists, `translations show`, `dead-letters replay`, `dead-letters dismiss` and
`log` print one document per entry. `status --watch` prints one document per interval. Notes and errors are text on standard error.

`drop`, `skip`, `seek`, `replay` and `dismiss` ask before they act, and so does `rebuild` if it would overwrite a retired build. --yes
answers in advance. Without a terminal and without --yes, nothing is done.

Exit codes:
  0  done
  1  the database or the broker failed, or the command is not possible now
  2  wrong usage
  3  no such thing, or nothing to do
  4  not confirmed
  5  the compared builds differ
  130  interrupted";

/// Shows the state of Cartlog and repairs it.
///
/// Connects to the broker, and to the database as cartlog_operator or as the database's owner. `cargo dev env` prints the owner's URL.
#[derive(Parser)]
#[command(name = "cartctl", version = version::VERSION, after_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the head of the log, projections, to-dos, stored offsets and dead letters
    Status(status::Arguments),
    /// List, pause, rebuild, compare, switch and drop read models; list and pause automations
    #[command(subcommand)]
    Projections(projections::Task),
    /// List, retry and skip events that projections cannot apply
    #[command(subcommand)]
    Parked(parked::Task),
    /// List to-dos of automations, and retry failed ones
    #[command(subcommand)]
    Todos(todos::Task),
    /// List carts whose publication failed, and retry them
    #[command(subcommand)]
    Publications(todos::Publications),
    /// Show and set the stored offsets of Kafka topics
    #[command(subcommand)]
    Translations(translations::Task),
    /// List, show, replay and dismiss messages that could not be translated
    #[command(subcommand)]
    DeadLetters(dead_letters::Task),
    /// Show events of the log
    #[command(subcommand)]
    Log(log::Task),
    /// Print shell completions, e.g. `cartctl completions bash >> ~/.bashrc`
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { common, task } = Arguments::parse();
    let output = Output::new(common.json);
    // rdkafka panics at the name of a header that is not UTF-8, and the reader of headers catches that.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|location| location.file().contains("/rdkafka-")) {
            report(panic);
        }
    }));
    match run(task, &common, &output).await {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed it, e.g. `head`.
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    /// Returns the names of all commands and options.
    fn words(command: &clap::Command, words: &mut Vec<String>) {
        words.push(command.get_name().to_owned());
        words.extend(command.get_arguments().filter_map(|argument| argument.get_long()).map(|long| format!("--{long}")));
        command.get_subcommands().for_each(|command| self::words(command, words));
    }

    fn any_argument() -> impl Strategy<Value = String> {
        let mut known = vec![];
        words(&Arguments::command(), &mut known);
        let place = ".{0,12}/-?[0-9]{0,12}/-?[0-9]{0,25}";
        let id = select(vec!["01890a5d-ac96-774b-bcce-b302099a8057".to_owned(), "0".to_owned()]);
        prop_oneof![4 => select(known), 1 => ".{0,20}", 1 => place, 1 => "-?[0-9]{1,25}[smhd]?", 1 => id]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_arguments_are_read_or_refused(arguments in vec(any_argument(), 0..8)) {
            let arguments = ["cartctl".to_owned()].into_iter().chain(arguments);
            if let Err(error) = Arguments::try_parse_from(arguments) {
                prop_assert!(!error.render().to_string().is_empty());
            }
        }
    }
}
