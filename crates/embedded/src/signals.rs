//! The signals that ask us to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Context, Error};

/// Ctrl-C, a SIGTERM, or the terminal's end (SIGHUP).
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens from now on; the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).context(|| "listen for signals".to_owned());
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Safe to give up.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
