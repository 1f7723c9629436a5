//! A child process with a name and a log file. It can be frozen, thawed, stopped and killed.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::error::{Context, Error};
use crate::files;
use crate::identity::{self, Identity};
use crate::report::Report;

/// The number of log lines that an error shows.
pub(crate) const TAIL_LINES: usize = 15;
/// The extension of the file beside a log that says which process writes the log.
pub(crate) const SUFFIX: &str = "process";
/// How long a server that starts may make no progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a server may take to start, whatever progress it makes.
const LONGEST_START: Duration = Duration::from_secs(15 * 60);
/// How often the screen says that a server is waited for.
const SAY_EVERY: Duration = Duration::from_secs(20);
/// The time between two checks of a condition.
pub const POLL: Duration = Duration::from_millis(50);

/// A running child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    identity: Identity,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`. It gets its own process group: a Ctrl-C in the terminal reaches only us, and we
    /// stop everything in order.
    ///
    /// # Errors
    /// The program or the log file cannot be opened, or the process ends at once.
    pub fn spawn(name: impl Into<String>, mut command: Command, log: &Path) -> Result<Self, Error> {
        let name = name.into();
        let output = files::open_log(log)?;
        let errors = output.try_clone().context(|| format!("open {} twice", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context(|| format!("start {name} ({})", command.as_std().get_program().display()))?;
        let identity = child.id().and_then(Identity::of);
        let Some(identity) = identity else {
            // Only an ended process has no identity, and its status is known.
            let status = child.try_wait().ok().flatten().unwrap_or_default();
            return Err(ended(&name, log, status));
        };
        // If we die without stopping it, the next run finds it by this file.
        let note = serde_json::to_vec(&identity).map_err(std::io::Error::other);
        files::write_atomically(&log.with_extension(SUFFIX), &note.context(|| format!("note down {name}"))?)?;
        Ok(Self { name, log: log.to_owned(), child, identity })
    }

    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The file with its outputs.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal. Does nothing if the process has ended.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        // While the child has an id it is not reaped, so the pid is still its own.
        let Some(pid) = self.child.id() else {
            return Ok(());
        };
        match kill(identity::process(pid), signal) {
            Err(Errno::ESRCH) => Ok(()),
            result => result.context(|| format!("send {signal} to {}", self.name)),
        }
    }

    /// Freezes it (SIGSTOP).
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn freeze(&self) -> Result<(), Error> {
        self.signal(Signal::SIGSTOP)
    }

    /// Continues it after a freeze (SIGCONT).
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn thaw(&self) -> Result<(), Error> {
        self.signal(Signal::SIGCONT)
    }

    /// Returns how it ended; none if it still runs.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().context(|| format!("look after {}", self.name))
    }

    /// Waits until it ends. Cancel safe.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.child.wait().await.context(|| format!("wait for {}", self.name))
    }

    /// Sends `signal` and waits until it has ended. Kills it after `deadline`.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn stop(&mut self, signal: Signal, deadline: Duration) -> Result<ExitStatus, Error> {
        self.signal(signal)?;
        match tokio::time::timeout(deadline, self.wait()).await {
            Ok(ended) => ended,
            Err(_) => self.kill().await,
        }
    }

    /// Kills it (SIGKILL) and waits until it has ended.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.signal(Signal::SIGKILL)?;
        self.wait().await
    }

    /// The last lines of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        files::tail(&self.log, TAIL_LINES)
    }

    /// Makes the error that says that it ended.
    #[must_use]
    pub fn ended(&self, status: ExitStatus) -> Error {
        ended(&self.name, &self.log, status)
    }

    /// Waits until `attempt` succeeds.
    ///
    /// # Errors
    /// The process ended, or `deadline` passed: both with the last lines of the log.
    pub async fn until_ready<F>(&mut self, deadline: Duration, attempt: impl FnMut() -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), String>>,
    {
        let end = Instant::now() + deadline;
        self.until(|_| end, attempt).await
    }

    /// Waits until `attempt` succeeds, for as long as the process makes progress: on a slow machine a server takes minutes to start.
    ///
    /// # Errors
    /// The process ended, made no progress for a minute, or took longer than a quarter of an hour: each with the last lines of the log.
    pub async fn until_started<F>(&mut self, report: &Report, attempt: impl FnMut() -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), String>>,
    {
        let start = Instant::now();
        let (mut newest, mut last_progress, mut said) = (self.progress(), start, start);
        let (name, report) = (self.name.clone(), *report);
        let end = move |process: &Self| {
            let progress = process.progress();
            if progress != newest {
                (newest, last_progress) = (progress, Instant::now());
            }
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                let (waited, idle) = (start.elapsed().as_secs(), last_progress.elapsed().as_secs());
                report.say(format!("{name} is not ready after {waited} s; it made progress {idle} s ago; waiting"));
            }
            (last_progress + PATIENCE).min(start + LONGEST_START)
        };
        self.until(end, attempt).await
    }

    /// The two numbers that change while the process works: the size of its log, and the seconds of processor time it used.
    fn progress(&self) -> (u64, u64) {
        let log = std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        (log, self.identity.processor_seconds())
    }

    async fn until<F>(&mut self, mut end: impl FnMut(&Self) -> Instant, mut attempt: impl FnMut() -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), String>>,
    {
        let start = Instant::now();
        let mut reason = String::from("no answer");
        loop {
            if let Some(status) = self.exited()? {
                return Err(self.ended(status));
            }
            // An attempt that hangs must neither outlive the deadline nor hide that the process has ended.
            let left = end(self).saturating_duration_since(Instant::now());
            let answer = tokio::time::timeout(left.min(Duration::from_secs(2)), attempt()).await;
            match answer {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(said)) => reason = said,
                // The deadline may cut the last attempt short. The answer before it tells more.
                Err(_) => {}
            }
            if Instant::now() >= end(self) {
                return Err(Error::NotReady {
                    name: self.name.clone(),
                    seconds: start.elapsed().as_secs(),
                    reason,
                    log: self.log.clone(),
                    tail: self.tail(),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn ended(name: &str, log: &Path, status: ExitStatus) -> Error {
    Error::Ended { name: name.to_owned(), status, log: log.to_owned(), tail: files::tail(log, TAIL_LINES) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[tokio::test(flavor = "current_thread")]
    async fn until_started_waits_while_the_log_grows() {
        let directory = Layout::discover().unwrap().scratch("process-progress").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "while true; do echo working; sleep 0.05; done"]);
        let mut process = Process::spawn("server", command, &directory.join("server.log")).unwrap();
        let before = process.progress();
        let mut attempts = 0;
        process
            .until_started(&Report::quiet(), || {
                attempts += 1;
                let ready = attempts > 5;
                async move { if ready { Ok(()) } else { Err("not yet".to_owned()) } }
            })
            .await
            .unwrap();
        assert_ne!(process.progress(), before);
        process.kill().await.unwrap();
    }
}
