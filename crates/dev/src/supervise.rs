//! A command in the foreground, which signals stop.

use std::process::ExitStatus;
use std::time::Duration;

use embedded::error::{Context, Error};
use embedded::identity;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// A Ctrl-C in the terminal reaches the command, too. If the command still runs after this time, only we got the signal.
const INTERRUPTED: Duration = Duration::from_secs(2);

/// Runs a command until it ends. SIGINT, SIGTERM and SIGHUP stop it.
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
