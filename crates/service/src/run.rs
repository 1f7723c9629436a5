//! The life of a process: settings, telemetry, start, serving until a signal, stopping within a deadline.

use std::{
    fmt::Debug,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, FromArgMatches};
use event_store::LogEvent;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    fault::Fault,
    health,
    service::Service,
    settings::{Common, FILE_VARIABLE, Kafka, Layers, SettingsError, Validate},
    slices::Program,
    telemetry::Telemetry,
};

/// The exit code after a fault.
const EXIT_FAULT: u8 = 1;
/// The exit code for wrong settings.
const EXIT_SETTINGS: u8 = 2;
/// The default settings of services that use Kafka.
const KAFKA_DEFAULTS: &str = include_str!("kafka.toml");
/// How long sending the last traces may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The command line of every service.
#[derive(Debug, Clone, clap::Args)]
// The group of a service's own arguments has the same name.
#[group(skip)]
#[command(after_help = "Settings come from the environment (CARTLOG_..., DATABASE_URL) and from the TOML file that CARTLOG_SETTINGS_FILE \
                        names. See docs/configuration.md.")]
pub struct Arguments {
    /// Ask the service that runs with the same settings whether it is ready. Exit with 0 if it is, otherwise with 1
    #[arg(long)]
    healthcheck: bool,
}

impl Arguments {
    /// Parses the command line of a service that has no other arguments. An unknown argument ends the process.
    fn parse(name: &'static str, about: &'static str) -> Self {
        let mut command = Self::augment_args(clap::Command::new(name).about(about).version(version::VERSION));
        let parsed = command.get_matches_mut();
        Self::from_arg_matches(&parsed).unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

/// Runs a service and answers the exit code of its process: 0 after a signal, 1 after a fault, 2 with wrong settings.
///
/// `start` gets the service's own settings and the service, and adds what the service needs: the log, projections, background tasks. Then
/// the service serves its slices. An error is logged and written to stderr.
pub fn run<E: LogEvent, S>(program: &'static Program<E>, start: impl FnOnce(S, Service) -> Result<Service, Fault>) -> ExitCode
where
    S: DeserializeOwned + Validate + Debug,
{
    run_with_arguments(program, &Arguments::parse(program.name, program.about), start)
}

/// Runs a service like [`run`], with a command line that the service has parsed because it has arguments of its own.
pub fn run_with_arguments<E: LogEvent, S>(
    program: &'static Program<E>,
    arguments: &Arguments,
    start: impl FnOnce(S, Service) -> Result<Service, Fault>,
) -> ExitCode
where
    S: DeserializeOwned + Validate + Debug,
{
    run_with(program, arguments, &[program.defaults], Layers::read, start)
}

/// Runs a service like [`run`]. `start` gets the settings for Kafka, too.
pub fn run_with_kafka<E: LogEvent, S>(
    program: &'static Program<E>,
    start: impl FnOnce(S, Kafka, Service) -> Result<Service, Fault>,
) -> ExitCode
where
    S: DeserializeOwned + Validate + Debug,
{
    let read = |layers: &Layers| Ok((layers.read()?, layers.read()?));
    let arguments = Arguments::parse(program.name, program.about);
    let defaults = [KAFKA_DEFAULTS, program.defaults];
    run_with(program, &arguments, &defaults, read, |(settings, kafka), service| start(settings, kafka, service))
}

fn run_with<E: LogEvent, S: Debug>(
    program: &'static Program<E>,
    arguments: &Arguments,
    defaults: &[&str],
    read: impl FnOnce(&Layers) -> Result<S, SettingsError>,
    start: impl FnOnce(S, Service) -> Result<Service, Fault>,
) -> ExitCode {
    let name = program.name;
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
        let service = Service::new(name, common, telemetry.metrics().clone(), stopping);
        program.serve(start(settings, service)?).await
    });
    let exit = match outcome {
        Ok(()) => {
            info!(service = name, "stopped");
            ExitCode::SUCCESS
        }
        Err(fault) => {
            error!(service = name, error = format!("{fault:#}"), "stopped after a fault");
            complain(name, &fault, EXIT_FAULT)
        }
    };
    telemetry.flush(FLUSH_TIMEOUT);
    // Background tasks had their time.
    runtime.shutdown_background();
    exit
}

fn read_settings<S>(defaults: &[&str], read: impl FnOnce(&Layers) -> Result<S, SettingsError>) -> Result<(Common, S), SettingsError> {
    let file = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
    let layers = Layers::load(defaults, file.map(Into::into), |variable| std::env::var_os(variable))?;
    Ok((layers.read()?, read(&layers)?))
}

/// Writes to stderr why the process ends, because logs may go elsewhere or are not set up yet.
fn complain(name: &str, fault: &Fault, exit: u8) -> ExitCode {
    // A closed stderr has no reader.
    let _ = writeln!(io::stderr(), "{name}: {fault:#}");
    ExitCode::from(exit)
}

/// Raises the limit of open files, because each connection is one. Most systems start a process with a thousand and allow many more.
fn open_as_many_files_as_allowed() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(now, most)| if now < most { setrlimit(Resource::RLIMIT_NOFILE, most, most) } else { Ok(()) });
    if let Err(error) = raised {
        warn!(%error, "limit of open files not raised");
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
