//! Processes that outlived their supervisor.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::Error;
use crate::identity::Identity;
use crate::process::{POLL, SUFFIX};
use crate::report::Report;

const DEADLINE: Duration = Duration::from_secs(20);

/// Stops the processes that still write logs in `logs`: the services first, then Kafka, then PostgreSQL.
///
/// # Errors
/// The operating system refuses a signal.
pub async fn end(logs: &Path, report: &Report) -> Result<(), Error> {
    let mut found: Vec<(String, Identity)> = running(logs);
    // In this order each process still has what it needs to stop in order.
    found.sort_by_key(|(name, _)| match name.as_str() {
        "postgres" => 2,
        "kafka" => 1,
        _ => 0,
    });
    for (name, identity) in found {
        report.say(format!("stopping {name} (process {}) of an earlier run", identity.pid));
        let gentle = if name == "postgres" { Signal::SIGINT } else { Signal::SIGTERM };
        // A frozen process handles the signal only when it continues.
        identity.signal(gentle)?;
        identity.signal(Signal::SIGCONT)?;
        if !gone(&identity, DEADLINE).await {
            identity.signal(Signal::SIGKILL)?;
            gone(&identity, DEADLINE).await;
        }
    }
    Ok(())
}

/// Waits until a process has ended; false if the deadline passes first.
pub async fn gone(identity: &Identity, deadline: Duration) -> bool {
    let ended = async {
        while identity.is_running() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(deadline, ended).await.is_ok()
}

fn running(logs: &Path) -> Vec<(String, Identity)> {
    let Ok(files) = std::fs::read_dir(logs) else {
        return Vec::new();
    };
    files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension() == Some(OsStr::new(SUFFIX)))
        .filter_map(|path| {
            let identity: Identity = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            let name = path.file_stem()?.to_str()?.to_owned();
            identity.is_running().then_some((name, identity))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orphan_is_found_and_stopped() {
        let layout = crate::layout::Layout::discover().unwrap();
        let logs = layout.scratch("orphans").unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = Identity::of(sleeper.id()).unwrap();
        std::fs::write(logs.join("sleeper.process"), serde_json::to_vec(&identity).unwrap()).unwrap();

        let reaped = tokio::task::spawn_blocking(move || sleeper.wait().unwrap());
        end(&logs, &Report::quiet()).await.unwrap();

        assert!(!identity.is_running());
        assert!(!reaped.await.unwrap().success());
    }
}
