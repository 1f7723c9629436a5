//! `cargo dev test`: every test, on a stack of its own.

use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::cargo;
use crate::distribution;
use crate::error::{Context, Error};
use crate::files;
use crate::identity;
use crate::kafka::Kafka;
use crate::layout::Layout;
use crate::orphans;
use crate::postgres::{self, Postgres};
use crate::report::Report;
use crate::services;
use crate::signals::Signals;

/// What tests run, and the chaos.
pub(crate) const PROGRAMS: [&str; 5] =
    [services::COMMANDS.name, services::TRANSLATOR.name, services::PROJECTIONS.name, services::PUBLISHER.name, "cartctl"];

/// PostgreSQL and Kafka for tests, empty at the start. Several may run beside each other.
#[derive(Debug)]
pub struct TestStack {
    postgres: Postgres,
    kafka: Kafka,
    layout: Layout,
    directory: PathBuf,
    // Keeps the directory ours.
    _lock: File,
}

impl TestStack {
    /// Starts both servers on free ports.
    ///
    /// # Errors
    /// One does not come up.
    pub async fn start(layout: &Layout, report: &Report) -> Result<Self, Error> {
        let (directory, lock) = layout.claim_test()?;
        orphans::end(&directory.join("logs"), report).await?;
        postgres::remove_data(layout, &directory).await?;
        files::remove(&directory)?;
        files::create_directory(&directory)?;
        let postgres = async {
            let distribution = distribution::postgres(layout, report).await?;
            Postgres::start_on_free_port(layout, &distribution, &directory).await
        };
        let kafka = async {
            let distribution = distribution::kafka(layout, report).await?;
            Kafka::start_on_free_ports(&distribution, &directory).await
        };
        let (postgres, kafka) = tokio::try_join!(postgres, kafka)?;
        Ok(Self { postgres, kafka, layout: layout.clone(), directory, _lock: lock })
    }

    /// The same, while something is built. A signal ends both, and leaves no server behind.
    ///
    /// # Errors
    /// One does not come up, the building's, and that a signal came.
    pub(crate) async fn start_beside<T>(
        layout: &Layout,
        report: &Report,
        building: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, Self), Error> {
        let mut signals = Signals::listen()?;
        tokio::select! {
            both = async { tokio::try_join!(building, Self::start(layout, report)) } => both,
            () = signals.next() => Err(Error::Interrupted),
        }
    }

    /// The superuser's URL of the database `postgres`.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.url_of("postgres")
    }

    /// The superuser's URL of a database.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        self.postgres.url("postgres", database)
    }

    /// The server, to be stopped and started again.
    #[must_use]
    pub fn postgres(&mut self) -> &mut Postgres {
        &mut self.postgres
    }

    /// Where the servers write their logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// What clients of the broker need.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.kafka.bootstrap_servers()
    }

    /// Kills both and removes their data; the logs stay.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub async fn end(mut self) -> Result<(), Error> {
        // Nothing is to be kept, so nothing needs an orderly end.
        self.kafka.kill().await?;
        self.postgres.kill().await?;
        files::remove(&self.directory.join("kafka"))?;
        postgres::remove_data(&self.layout, &self.directory).await
    }
}

/// Runs `cargo test` with `arguments` on a stack of its own, and answers how it ended. Without arguments that name
/// packages, all packages are tested.
///
/// # Errors
/// The services do not compile, or the stack does not come up.
pub async fn run(layout: &Layout, arguments: &[String], report: &Report) -> Result<ExitStatus, Error> {
    let selection = Selection::of(arguments);
    for package in &selection.packages {
        // Cargo says which it has that is called like it.
        let mut known = cargo::command(layout);
        known.args(["pkgid", "--quiet", package]).stdout(Stdio::null());
        let status = known.status().await.context(|| "run cargo".to_owned())?;
        if !status.success() {
            return Ok(status);
        }
    }
    let build = async {
        if selection.needs_services {
            report.say("building the services");
            cargo::build(layout, &PROGRAMS, selection.release).await
        } else {
            Ok(layout.target().join(if selection.release { "release" } else { "debug" }))
        }
    };
    let (programs, stack) = TestStack::start_beside(layout, report, build).await?;
    report.say(format!("PostgreSQL and Kafka are up; their logs are in {}", stack.logs().display()));

    let mut command = cargo::command(layout);
    command.arg("test");
    if selection.packages.is_empty() {
        command.arg("--workspace");
    }
    if arguments.is_empty() {
        // A run of everything takes minutes: it tells all that is wrong, and not the first of it.
        command.arg("--no-fail-fast");
    }
    command
        .args(arguments)
        .env("CARTLOG_TEST_DATABASE_URL", stack.database_url())
        .env("CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS", stack.bootstrap_servers())
        .env("CARTLOG_TEST_BIN_DIR", programs)
        .env_remove("DATABASE_URL")
        .env_remove("KAFKA_BOOTSTRAP_SERVERS");
    let tested = supervise("cargo test", command).await;
    let ended = stack.end().await;
    let status = tested?;
    ended?;
    Ok(status)
}

/// A Ctrl-C reaches the command from the terminal, as it does us. Where it was sent to us alone, the command has not ended after this time.
const INTERRUPTED: Duration = Duration::from_secs(2);

/// Waits for the command to end, which SIGINT, SIGTERM and SIGHUP make it do.
pub(crate) async fn supervise(name: &str, mut command: tokio::process::Command) -> Result<ExitStatus, Error> {
    let listen = |kind| signal(kind).context(|| "listen for signals".to_owned());
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut child = command.kill_on_drop(true).spawn().context(|| format!("run {name}"))?;
    let mut alone = None;
    loop {
        tokio::select! {
            status = child.wait() => return status.context(|| format!("wait for {name}")),
            _ = interrupt.recv() => {
                alone.get_or_insert(Instant::now() + INTERRUPTED);
                continue;
            }
            () = tokio::time::sleep_until(alone.unwrap_or_else(Instant::now)), if alone.is_some() => alone = None,
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        if let Some(pid) = child.id() {
            let sent = nix::sys::signal::kill(identity::process(pid), Signal::SIGTERM);
            sent.context(|| format!("stop {name}"))?;
        }
    }
}

/// What the arguments for `cargo test` choose.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    packages: Vec<String>,
    needs_services: bool,
    release: bool,
}

impl Selection {
    fn of(arguments: &[String]) -> Self {
        // What stands behind "--" is the test programs' own.
        let ours: Vec<&str> = arguments.iter().map(String::as_str).take_while(|argument| *argument != "--").collect();
        let mut packages = Vec::new();
        for (index, argument) in ours.iter().enumerate() {
            match *argument {
                "-p" | "--package" => packages.extend(ours.get(index + 1).copied()),
                other => {
                    packages.extend(other.strip_prefix("--package=").or_else(|| other.strip_prefix("-p").filter(|name| !name.is_empty())))
                }
            }
        }
        Self {
            // Only this crate's end-to-end tests and the bench's run the services' programs.
            needs_services: packages.is_empty() || [env!("CARGO_PKG_NAME"), "bench"].iter().any(|name| packages.contains(name)),
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            release: ours.iter().any(|argument| matches!(*argument, "--release" | "-r")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Selection {
        Selection::of(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_package_everything_is_tested_and_the_services_are_needed() {
        let all = Selection { packages: vec![], needs_services: true, release: false };
        assert_eq!(of(""), all);
        assert_eq!(of("some_test -- -p kafka --release"), all);
    }

    #[test]
    fn a_package_is_tested_without_the_services_unless_its_tests_run_them() {
        let one = |package: &str| Selection { packages: vec![package.into()], needs_services: false, release: false };
        assert_eq!(of("-p event-store -- --nocapture"), one("event-store"));
        assert_eq!(of("--package=kafka"), one("kafka"));
        assert_eq!(of("-pkafka"), one("kafka"));
        let both = Selection { packages: vec!["event-store".into(), "dev".into()], needs_services: true, release: true };
        assert_eq!(of("--release --package event-store -p dev"), both);
    }
}
