//! Processes whose supervisor died before them.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::Error;
use crate::identity::Identity;
use crate::process::{POLL, SUFFIX};
use crate::report::Report;

const DEADLINE: Duration = Duration::from_secs(20);

/// Ends the processes that still write the logs in `logs`: the services first, then Kafka, then PostgreSQL.
///
/// # Errors
/// The operating system's refusal to signal one.
pub async fn end(logs: &Path, report: &Report) -> Result<(), Error> {
    let mut found: Vec<(String, Identity)> = running(logs);
    // In this order each one still has what it needs for an orderly end.
    found.sort_by_key(|(name, _)| match name.as_str() {
        "postgres" => 2,
        "kafka" => 1,
        _ => 0,
    });
    for (name, identity) in found {
        report.say(format!("ending {name} (process {}), left over from an earlier run", identity.pid));
        let gentle = if name == "postgres" { Signal::SIGINT } else { Signal::SIGTERM };
        // A frozen process takes its signal only when it goes on.
        identity.signal(gentle)?;
        identity.signal(Signal::SIGCONT)?;
        if !gone(&identity, DEADLINE).await {
            identity.signal(Signal::SIGKILL)?;
            gone(&identity, DEADLINE).await;
        }
    }
    Ok(())
}

/// Waits until a process has ended; false where it outlives the deadline.
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
    async fn a_process_whose_supervisor_died_is_found_and_ended() {
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
