//! The four services as child processes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;

use embedded::error::Error;
use embedded::process::Process;

/// What is known of a service before it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The name of its package and its binary.
    pub name: &'static str,
    /// The database role it connects as.
    pub role: &'static str,
    /// The name under which `cargo dev env` prints its URL.
    pub variable: &'static str,
    /// The environment variable that overrides its port.
    pub port_setting: &'static str,
    /// Its port where nothing else is said.
    pub default_port: u16,
}

/// Add Item, Remove Item, Clear Cart, Submit Cart.
pub const COMMANDS: Kind = Kind {
    name: "cart-commands",
    role: "cartlog_commands",
    variable: "COMMANDS_URL",
    port_setting: "CARTLOG_COMMANDS_PORT",
    default_port: 8081,
};
/// Change Inventory, Change Price.
pub const TRANSLATOR: Kind = Kind {
    name: "inventory-translator",
    role: "cartlog_translator",
    variable: "TRANSLATOR_URL",
    port_setting: "CARTLOG_TRANSLATOR_PORT",
    default_port: 8082,
};
/// The read models and Archive Item.
pub const PROJECTIONS: Kind = Kind {
    name: "cart-projections",
    role: "cartlog_projections",
    variable: "PROJECTIONS_URL",
    port_setting: "CARTLOG_PROJECTIONS_PORT",
    default_port: 8083,
};
/// Publish Cart.
pub const PUBLISHER: Kind = Kind {
    name: "publisher",
    role: "cartlog_publisher",
    variable: "PUBLISHER_URL",
    port_setting: "CARTLOG_PUBLISHER_PORT",
    default_port: 8084,
};
/// All four.
pub const ALL: [Kind; 4] = [COMMANDS, TRANSLATOR, PROJECTIONS, PUBLISHER];

/// How a service is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its program.
    pub program: PathBuf,
    /// Its command line, mostly empty.
    pub arguments: Vec<OsString>,
    /// The port it is to listen on, on 127.0.0.1.
    pub port: u16,
    /// The database, for its own role.
    pub database_url: String,
    /// The brokers.
    pub kafka_bootstrap_servers: String,
    /// Further environment variables; these win.
    pub environment: Vec<(String, String)>,
    /// Where its outputs go.
    pub log: PathBuf,
}

impl Settings {
    /// The settings of a service whose program lies in `programs`, with its log in `logs`.
    #[must_use]
    pub fn new(kind: Kind, programs: &Path, logs: &Path, port: u16) -> Self {
        Self {
            program: programs.join(kind.name),
            arguments: Vec::new(),
            port,
            database_url: String::new(),
            kafka_bootstrap_servers: String::new(),
            environment: Vec::new(),
            log: logs.join(format!("{}.log", kind.name)),
        }
    }
}

/// A running service. Dropping it kills it.
#[derive(Debug)]
pub struct Service {
    kind: Kind,
    settings: Settings,
    process: Process,
    client: reqwest::Client,
}

impl Service {
    /// Starts a service; it need not be ready yet.
    ///
    /// # Errors
    /// Its program or log file cannot be opened.
    pub fn start(kind: Kind, settings: Settings) -> Result<Self, Error> {
        let process = spawn(kind, &settings)?;
        Ok(Self { kind, settings, process, client: reqwest::Client::new() })
    }

    /// Which service this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is reached, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.settings.port)
    }

    /// Its process, to be frozen, thawed, signalled and waited for.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until it answers 200 at /ready.
    ///
    /// # Errors
    /// It ended, or `deadline` passed: with what it said last.
    pub async fn until_ready(&mut self, deadline: Duration) -> Result<(), Error> {
        let ready = format!("{}/ready", self.url());
        let client = &self.client;
        self.process
            .until_ready(deadline, || async {
                let answer = client.get(&ready).send().await.map_err(|error| embedded::error::chain(&error))?;
                let status = answer.status();
                if status == reqwest::StatusCode::OK {
                    return Ok(());
                }
                Err(format!("/ready answers {status}: {}", answer.text().await.unwrap_or_default()))
            })
            .await
    }

    /// Asks it to stop (SIGTERM) and waits until it has; one that takes longer than `deadline` is killed.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub async fn stop(&mut self, deadline: Duration) -> Result<ExitStatus, Error> {
        self.process.stop(Signal::SIGTERM, deadline).await
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub async fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.process.kill().await
    }

    /// Kills it where it still runs, and starts it anew with the same settings; it need not be ready yet.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.kill().await?;
        self.process = spawn(self.kind, &self.settings)?;
        Ok(())
    }
}

/// Where a service of ours is reached.
#[must_use]
pub fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn spawn(kind: Kind, settings: &Settings) -> Result<Process, Error> {
    let mut command = Command::new(&settings.program);
    // A log that people open in an editor reads better in lines than in JSON, unless they said otherwise.
    if std::env::var_os("CARTLOG_LOG_FORMAT").is_none() {
        command.env("CARTLOG_LOG_FORMAT", "pretty");
    }
    command
        .args(&settings.arguments)
        .env("CARTLOG_BIND_ADDRESS", "127.0.0.1")
        .env("CARTLOG_PORT", settings.port.to_string())
        .env("DATABASE_URL", &settings.database_url)
        .env("KAFKA_BOOTSTRAP_SERVERS", &settings.kafka_bootstrap_servers)
        .envs(settings.environment.iter().map(|(name, value)| (name, value)));
    Process::spawn(kind.name, command, &settings.log)
}
