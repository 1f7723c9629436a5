//! The four services and the console as child processes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;

use embedded::error::Error;
use embedded::process::Process;

/// A kind of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The name of its binary, and of its folder.
    pub name: &'static str,
    /// The database role it connects as.
    pub role: &'static str,
    /// The variable in which `cargo dev env` prints its URL.
    pub variable: &'static str,
    /// The environment variable that overrides its port.
    pub port_setting: &'static str,
    /// Its default port.
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
/// Pages for operators. No service needs it.
pub const CONSOLE: Kind =
    Kind { name: "console", role: "cartlog_operator", variable: "CONSOLE_URL", port_setting: "CARTLOG_CONSOLE_PORT", default_port: 8085 };
/// The four services.
pub const ALL: [Kind; 4] = [COMMANDS, TRANSLATOR, PROJECTIONS, PUBLISHER];
/// The four services and the console.
pub const WITH_CONSOLE: [Kind; 5] = [COMMANDS, TRANSLATOR, PROJECTIONS, PUBLISHER, CONSOLE];

/// The settings of a service process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its program.
    pub program: PathBuf,
    /// Its command-line arguments.
    pub arguments: Vec<OsString>,
    /// The port on 127.0.0.1 that it listens on.
    pub port: u16,
    /// The database URL, for the service's role.
    pub database_url: String,
    /// Kafka's bootstrap servers.
    pub kafka_bootstrap_servers: String,
    /// More environment variables. They override the others.
    pub environment: Vec<(String, String)>,
    /// The file with its outputs.
    pub log: PathBuf,
}

impl Settings {
    /// Makes the settings of a service with its program in `programs` and its log in `logs`.
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
    /// Starts a service, and does not wait until it is ready.
    ///
    /// # Errors
    /// Its program or log file cannot be opened.
    pub fn start(kind: Kind, settings: Settings) -> Result<Self, Error> {
        let process = spawn(kind, &settings)?;
        Ok(Self { kind, settings, process, client: reqwest::Client::new() })
    }

    /// The kind of service.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.settings.port)
    }

    /// Its process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until `/ready` answers 200.
    ///
    /// # Errors
    /// It ended, or `deadline` passed. The error has the last answer.
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

    /// Asks it to stop (SIGTERM) and waits. Kills it after `deadline`.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn stop(&mut self, deadline: Duration) -> Result<ExitStatus, Error> {
        self.process.stop(Signal::SIGTERM, deadline).await
    }

    /// Kills it (SIGKILL) and waits until it has ended.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.process.kill().await
    }

    /// Kills it if it still runs, and starts it again with the same settings. Does not wait until it is ready.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.kill().await?;
        self.process = spawn(self.kind, &self.settings)?;
        Ok(())
    }
}

/// Returns the URL of a service on this machine.
#[must_use]
pub fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn spawn(kind: Kind, settings: &Settings) -> Result<Process, Error> {
    let mut command = Command::new(&settings.program);
    // People read this log in an editor. Lines are easier to read than JSON.
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
