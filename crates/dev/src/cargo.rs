//! Cargo, started by a program that cargo runs.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use serde::Deserialize;
use tokio::process::Command;

use embedded::error::{Context, Error};
use embedded::layout::Layout;
use shop::services;

/// The programs that `cargo dev up`, the tests and the chaos run.
pub(crate) const PROGRAMS: [&str; 6] = [
    services::COMMANDS.name,
    services::TRANSLATOR.name,
    services::PROJECTIONS.name,
    services::PUBLISHER.name,
    services::CONSOLE.name,
    "cartctl",
];

/// Makes a cargo command that runs in the workspace's root.
#[must_use]
pub fn command(layout: &Layout) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if is_of_this_package(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    command.current_dir(layout.checkout());
    command
}

/// Tells whether the outer cargo sets a variable for *this* package. Build scripts that read it would run again with each command.
fn is_of_this_package(variable: &str) -> bool {
    variable == "OUT_DIR" || ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of_package| variable.starts_with(of_package))
}

/// A package of the workspace.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its `Cargo.toml`.
    pub(crate) manifest_path: PathBuf,
    /// Its targets.
    pub(crate) targets: Vec<Target>,
}

impl Package {
    /// The folder of its sources. Integration tests, which hold none of the macros that read a database, lie beside it.
    pub(crate) fn sources(&self) -> PathBuf {
        self.manifest_path.with_file_name("src")
    }
}

/// A program, a library or a test of a package.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// `lib`, `bin`, `test` and others.
    pub(crate) kind: Vec<String>,
}

/// Reads the workspace's packages.
///
/// # Errors
/// Cargo cannot be run, or a manifest is wrong.
pub(crate) async fn packages(layout: &Layout) -> Result<Vec<Package>, Error> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let mut metadata = command(layout);
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = metadata.output().await.context(|| "run cargo".to_owned())?;
    if !output.status.success() {
        return Err(failed("cargo metadata", output.status));
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).map_err(std::io::Error::other).context(|| "read cargo metadata".to_owned())?;
    Ok(metadata.packages)
}

/// Builds these programs, with cargo's own progress on the screen, and returns the directory they are in.
///
/// # Errors
/// Cannot run cargo, or a program does not compile (cargo says why on the screen).
pub async fn build(layout: &Layout, programs: &[&str], release: bool) -> Result<PathBuf, Error> {
    let mut build = command(layout);
    build.args(["build", "--message-format=json-render-diagnostics"]);
    // The bench is not among the default members.
    if programs.contains(&"bench") {
        build.arg("--workspace");
    }
    // By program and not by package: then cargo chooses the features of dependencies for the whole workspace, and compiles each once.
    for program in programs {
        build.args(["--bin", program]);
    }
    if release {
        build.arg("--release");
    }
    let output = build
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context(|| "run cargo".to_owned())?
        .wait_with_output()
        .await
        .context(|| "wait for cargo".to_owned())?;
    if !output.status.success() {
        return Err(failed("cargo build", output.status));
    }
    // Cargo's output names the directory, because cargo's configuration can change it.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|message| message.executable)
        .find_map(|program| program.parent().map(Path::to_owned))
        .ok_or_else(|| Error::Missing("cargo build did not name a program".to_owned()))
}

/// Makes the error of a cargo command that printed its own messages.
#[must_use]
pub fn failed(command: &str, status: ExitStatus) -> Error {
    Error::Command { command: command.to_owned(), status, output: String::new() }
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_this_package_are_not_passed_on() {
        for variable in ["OUT_DIR", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
            assert!(is_of_this_package(variable), "{variable}");
        }
        for variable in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_INCREMENTAL"] {
            assert!(!is_of_this_package(variable), "{variable}");
        }
    }
}
