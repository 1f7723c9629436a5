//! The signals that stop a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Context, Error};

/// SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is closed).
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens from now on. The signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).context(|| "listen for signals".to_owned());
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
