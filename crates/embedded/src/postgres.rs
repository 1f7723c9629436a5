//! A PostgreSQL server as a child process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::process::Command;

use crate::account::Account;
use crate::distribution::PostgresDistribution;
use crate::error::{Context, Error};
use crate::files;
use crate::layout::Layout;
use crate::ports;
use crate::process::Process;

/// How long the sessions of a killed server may hold its memory.
const MEMORY_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The server's settings, besides its data directory and port.
const SETTINGS: [&str; 8] = [
    "listen_addresses=127.0.0.1",
    // A socket's path can have 107 bytes at most, and a checkout's path is often longer. TCP suffices.
    "unix_socket_directories=",
    "max_connections=400",
    // A standby starts from a copy and streams what was written since.
    "wal_keep_size=256MB",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_line_prefix=%m [%p] %q%u@%d ",
    "logging_collector=off",
];

/// A running PostgreSQL server on 127.0.0.1 whose superuser `postgres` needs no password. fsync stays on.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    distribution: PostgresDistribution,
    data: PathBuf,
    log: PathBuf,
    port: u16,
}

impl Postgres {
    /// Starts a server with its data in `directory`/postgres, and waits until it answers. Creates the data if they are missing. Its log is
    /// `directory`/logs/postgres.log.
    ///
    /// # Errors
    /// Its data cannot be created, or it does not start. The error has the end of its log.
    pub async fn start(layout: &Layout, distribution: &PostgresDistribution, directory: &Path, port: u16) -> Result<Self, Error> {
        let log = directory.join("logs/postgres.log");
        let data = data_directory(layout, directory, distribution).await?;
        if !data.join("PG_VERSION").exists() {
            initialise(distribution, &data).await?;
        }
        let process = launch(distribution, &data, port, &log).await?;
        Ok(Self { process, distribution: distribution.clone(), data, log, port })
    }

    /// Starts a server as [`start`](Self::start) does, on a free port.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_on_free_port(layout: &Layout, distribution: &PostgresDistribution, directory: &Path) -> Result<Self, Error> {
        let [port] = ports::free([None])?;
        Self::start(layout, distribution, directory, port).await
    }

    /// The port on 127.0.0.1 that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its programs.
    #[must_use]
    pub fn distribution(&self) -> &PostgresDistribution {
        &self.distribution
    }

    /// The URL of a database of this server for a user.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        url(self.port, user, database)
    }

    /// The server's process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends its sessions and stops it (SIGINT, a "fast" shutdown).
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn stop(&mut self) -> Result<(), Error> {
        self.process.stop(Signal::SIGINT, STOP_DEADLINE).await.map(drop)
    }

    /// Kills it as a crash would (SIGKILL). [`restart`](Self::restart) recovers it.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn kill(&mut self) -> Result<(), Error> {
        self.process.kill().await.map(drop)
    }

    /// Freezes all of its processes, as a stopped machine would.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn freeze(&self) -> Result<(), Error> {
        // The main process first: it starts no others then.
        self.process.freeze()?;
        self.signal_sessions("STOP").await
    }

    /// Continues after [`freeze`](Self::freeze).
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn thaw(&self) -> Result<(), Error> {
        self.signal_sessions("CONT").await?;
        self.process.thaw()
    }

    async fn signal_sessions(&self, signal: &str) -> Result<(), Error> {
        let main = self.process.identity().pid.to_string();
        let mut command = Command::new("pkill");
        command.args(["--signal", signal, "--parent", &main]);
        command.status().await.map(drop).context(|| format!("send SIG{signal} to the processes of PostgreSQL"))
    }

    /// Stops it if it runs, and starts it again on the same port and data.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop().await?;
        self.process = launch(&self.distribution, &self.data, self.port, &self.log).await?;
        Ok(())
    }
}

/// Returns the URL of a database on one of our servers.
#[must_use]
pub fn url(port: u16, user: &str, database: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{port}/{database}")
}

/// Removes a stopped server's data.
///
/// # Errors
/// The operating system refuses.
pub async fn remove_data(layout: &Layout, directory: &Path) -> Result<(), Error> {
    let account = Account::for_postgres()?;
    files::remove(&layout.reachable(&directory.join("postgres"), account.as_ref()).await?)
}

/// Returns the data directory of a server whose directory is `directory`.
pub(crate) async fn data_directory(layout: &Layout, directory: &Path, distribution: &PostgresDistribution) -> Result<PathBuf, Error> {
    Ok(layout.reachable(&directory.join("postgres"), distribution.account.as_ref()).await?.join("data"))
}

async fn initialise(distribution: &PostgresDistribution, data: &Path) -> Result<(), Error> {
    runs_through_a_shell(&distribution.directory)?;
    // An interrupted run leaves an incomplete cluster.
    files::remove(data)?;
    files::create_directory(data)?;
    let mut command = program(distribution, "initdb");
    if let Some(account) = &distribution.account {
        account.own(data)?;
        account.run(&mut command);
    }
    let output = command
        .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-instructions"])
        // The built-in locale is the same on every system.
        .args(["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--pgdata"])
        .arg(data)
        .current_dir(data)
        .stdin(Stdio::null())
        .output()
        .await
        .context(|| "run initdb".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Command { command: "initdb".to_owned(), status: output.status, output: text })
}

/// Refuses a path that initdb cannot run programs from. initdb puts the path into a shell command between quotation marks. Its error would
/// say that a program is missing.
fn runs_through_a_shell(path: &Path) -> Result<(), Error> {
    match path.to_string_lossy().chars().find(|character| ['"', '$', '`'].contains(character)) {
        None => Ok(()),
        Some(character) => Err(Error::Refused(format!(
            "PostgreSQL's initdb cannot run from {}, because the path contains the character {character}. Move the checkout, or set \
             CARGO_TARGET_DIR to another directory.",
            path.display()
        ))),
    }
}

async fn launch(distribution: &PostgresDistribution, data: &Path, port: u16, log: &Path) -> Result<Process, Error> {
    let end = tokio::time::Instant::now() + MEMORY_DEADLINE;
    loop {
        let mut command = program(distribution, "postgres");
        if distribution.account.is_some() {
            Account::owner(data)?.run(&mut command);
        }
        command.envs(distribution.environment.iter().map(|(name, value)| (name, value)));
        command.arg("-D").arg(data).args(["-p", &port.to_string()]).current_dir(data);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        let mut process = Process::spawn("PostgreSQL", command, log)?;
        match process.until_started(&distribution.report, || ping(port)).await {
            // The sessions of a killed server use its memory for another moment.
            Err(Error::Ended { tail, .. }) if tail.contains("pre-existing shared memory block") && tokio::time::Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
            Ok(()) => return Ok(process),
        }
    }
}

fn program(distribution: &PostgresDistribution, name: &str) -> Command {
    let mut command = Command::new(distribution.directory.join("bin").join(name));
    // The user's settings for clients and locales must not change the server.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

async fn ping(port: u16) -> Result<(), String> {
    let connection: Result<PgConnection, sqlx::Error> = options(port).connect().await;
    match connection {
        Ok(connection) => connection.close().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn options(port: u16) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).username("postgres").database("postgres");
    options.disable_statement_logging()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_that_a_shell_would_change_is_refused() {
        for refused in ["/a/q\"uote", "/a/do$HOME", "/a/tick`x`"] {
            let error = runs_through_a_shell(Path::new(refused)).unwrap_err().to_string();
            assert!(error.contains(refused) && error.contains("CARGO_TARGET_DIR"), "{error}");
        }
        runs_through_a_shell(Path::new("/we ird,a:b*c/back\\slash/sing'le/semi;x&y|z/par(en)#h=i%j")).unwrap();
    }
}
