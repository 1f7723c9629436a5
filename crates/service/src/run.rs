//! The life of a process: settings, telemetry, start, serving until a signal, finishing within a deadline.

use std::{
    fmt::Debug,
    future::Future,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, FromArgMatches};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    Fault, health,
    service::Service,
    settings::{Common, FILE_VARIABLE, Kafka, Layers, SettingsError, Validate},
    telemetry::Telemetry,
};

/// What could not be started or went wrong.
const EXIT_FAULT: u8 = 1;
/// Wrong settings.
const EXIT_SETTINGS: u8 = 2;
/// The defaults of the settings of services that talk to Kafka.
const KAFKA_DEFAULTS: &str = include_str!("kafka.toml");
/// The time for sending the last traces.
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);

/// What every service takes on its command line.
#[derive(Debug, Clone, clap::Args)]
// A service's own arguments, which these become part of, are a group of this name too.
#[group(skip)]
#[command(after_help = "Settings come from the environment (CARTLOG_…, DATABASE_URL) and from the TOML file that CARTLOG_SETTINGS_FILE \
                        names; README.md lists them.")]
pub struct Arguments {
    /// Asks the service that runs here with the same settings whether it is ready, and exits with 0 where it is, with 1 where it is not
    #[arg(long)]
    healthcheck: bool,
}

impl Arguments {
    /// Those of a service that takes no others. Answers `--help` and `--version`, and refuses what else is given: a mistyped argument
    /// would go unnoticed.
    #[must_use]
    pub fn parse(name: &'static str, about: &'static str) -> Self {
        let mut command = Self::augment_args(clap::Command::new(name).about(about).version(version::VERSION));
        let parsed = command.get_matches_mut();
        Self::from_arg_matches(&parsed).unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

/// Runs a service, and answers the process's exit code: 0 after a signal, 1 after a fault, 2 with wrong settings. Where the arguments say
/// so it only asks another such process, at the address that the settings name, whether it is ready.
///
/// `defaults` is TOML: every key of the service's own with its default, `port` and `database_url` among them. `start`
/// gets the settings and ends in [`Service::serve`]; where it fails, its error is logged, and said on stderr.
pub fn run<S, F, Fut>(name: &'static str, arguments: &Arguments, defaults: &str, start: F) -> ExitCode
where
    S: DeserializeOwned + Validate + Debug,
    F: FnOnce(S, Service) -> Fut,
    Fut: Future<Output = Result<(), Fault>>,
{
    run_with(name, arguments, &[defaults], Layers::read, start)
}

/// As [`run`], for a service that talks to Kafka: `start` gets the settings that say how, too.
pub fn run_with_kafka<S, F, Fut>(name: &'static str, arguments: &Arguments, defaults: &str, start: F) -> ExitCode
where
    S: DeserializeOwned + Validate + Debug,
    F: FnOnce(S, Kafka, Service) -> Fut,
    Fut: Future<Output = Result<(), Fault>>,
{
    let read = |layers: &Layers| Ok((layers.read()?, layers.read()?));
    run_with(name, arguments, &[KAFKA_DEFAULTS, defaults], read, |(settings, kafka), service| start(settings, kafka, service))
}

fn run_with<S, F, Fut>(
    name: &'static str,
    arguments: &Arguments,
    defaults: &[&str],
    read: impl FnOnce(&Layers) -> Result<S, SettingsError>,
    start: F,
) -> ExitCode
where
    S: Debug,
    F: FnOnce(S, Service) -> Fut,
    Fut: Future<Output = Result<(), Fault>>,
{
    let (common, settings) = match read_settings(defaults, read) {
        Ok(settings) => settings,
        Err(error) => return complain(name, &error.into(), EXIT_SETTINGS),
    };
    if arguments.healthcheck {
        return match health::ask(&common) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => complain(name, &reason, EXIT_FAULT),
        };
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if common.background_threads.get() > 0 {
        runtime.worker_threads(common.background_threads.as_usize());
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(name, &error.into(), EXIT_FAULT),
    };
    let telemetry = match Telemetry::install(name, &common) {
        Ok(telemetry) => telemetry,
        Err(error) => return complain(name, &error.into(), EXIT_FAULT),
    };
    info!(service = name, version = version::VERSION, ?common, ?settings, "starting");
    open_as_many_files_as_allowed();

    let outcome = runtime.block_on(async {
        let stopping = CancellationToken::new();
        stop_on_signal(stopping.clone())?;
        let deadline = common.shutdown_delay_seconds.seconds() + common.shutdown_deadline_seconds.seconds();
        let service = Service::new(name, common, telemetry.metrics().clone(), stopping.clone());
        tokio::select! {
            outcome = start(settings, service) => outcome,
            // `serve` keeps the deadline by itself: this is for a start that hangs before it.
            () = async { stopping.cancelled().await; tokio::time::sleep(deadline + FLUSH_DEADLINE).await } => {
                warn!("stopped before the start was finished");
                Ok(())
            }
        }
    });
    let exit = match outcome {
        Ok(()) => {
            info!(service = name, "stopped");
            ExitCode::SUCCESS
        }
        Err(fault) => {
            error!(service = name, error = format!("{fault:#}"), "stopped by a fault");
            complain(name, &fault, EXIT_FAULT)
        }
    };
    telemetry.flush(FLUSH_DEADLINE);
    // What still runs was given its time.
    runtime.shutdown_background();
    exit
}

fn read_settings<S>(defaults: &[&str], read: impl FnOnce(&Layers) -> Result<S, SettingsError>) -> Result<(Common, S), SettingsError> {
    let file = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
    let layers = Layers::load(defaults, file.map(Into::into), |variable| std::env::var_os(variable))?;
    Ok((layers.read()?, read(&layers)?))
}

/// Says on stderr why the process ends: logs may go elsewhere, or nowhere yet.
fn complain(name: &str, fault: &Fault, exit: u8) -> ExitCode {
    // Where stderr is closed nobody reads it.
    let _ = writeln!(io::stderr(), "{name}: {fault:#}");
    ExitCode::from(exit)
}

/// A connection is an open file. Most systems begin with a thousand for a process, and let it have many more where it asks.
fn open_as_many_files_as_allowed() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(now, most)| if now < most { setrlimit(Resource::RLIMIT_NOFILE, most, most) } else { Ok(()) });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files stays as it is");
    }
}

fn stop_on_signal(stopping: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal, "stopping");
        stopping.cancel();
    });
    Ok(())
}
