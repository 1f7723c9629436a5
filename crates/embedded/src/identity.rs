//! Processes by pid and start time, because a pid can be given out again.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error};

/// A process. Its start time tells it apart from a later process with the same pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process's number.
    pub pid: u32,
    /// When it started: on Linux the boot's id and the clock ticks since the boot, elsewhere the time that `ps` prints.
    pub started: String,
}

impl Identity {
    /// Finds the running process with this pid; none if there is none, or if it is a zombie.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: started(pid)? })
    }

    /// Tells whether this process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        started(self.pid).is_some_and(|started| started == self.started)
    }

    /// The processor time that the process has used, in whole seconds; 0 if it is not known.
    #[must_use]
    pub fn processor_seconds(&self) -> u64 {
        processor_seconds(self.pid).unwrap_or_default()
    }

    /// Sends a signal to this process if it still runs.
    ///
    /// # Errors
    /// The operating system refuses, for example for a process of another user.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        if !self.is_running() {
            return Ok(());
        }
        match kill(process(self.pid), signal) {
            Err(Errno::ESRCH) => Ok(()),
            result => result.context(|| format!("send {signal} to process {}", self.pid)),
        }
    }
}

/// Converts a pid to the type of the signal functions. A pid beyond their range names no process.
#[must_use]
pub fn process(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

#[cfg(target_os = "linux")]
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name that may contain spaces and brackets. The other fields begin behind its last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // The start time is the 22nd field. The state, read above, is the 3rd.
    let ticks = fields.nth(18)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{}:{ticks}", boot.trim()))
}

#[cfg(target_os = "linux")]
fn processor_seconds(pid: u32) -> Option<u64> {
    // Linux counts processor time in hundredths of a second, whatever its own clock.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // User and system time are the 14th and the 15th field; the state is the 3rd.
    let mut times = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    Some((times.next()?.ok()? + times.next()?.ok()?) / TICKS_PER_SECOND)
}

#[cfg(not(target_os = "linux"))]
fn processor_seconds(_: u32) -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn started(pid: u32) -> Option<String> {
    let output = std::process::Command::new("ps").args(["-o", "state=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (state, started) = text.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| started.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_differs_from_a_later_process_with_its_pid() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.is_running());
        assert!(!Identity { started: "another".to_owned(), ..own }.is_running());
    }

    #[test]
    fn identity_of_an_ended_process_is_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(Identity::of(pid), None);
    }
}
