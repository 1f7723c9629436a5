//! When a client was last connected to a broker.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// When a client was last connected to a broker, or was created.
#[derive(Debug, Clone)]
pub(crate) struct LastConnected(Arc<Mutex<Instant>>);

impl Default for LastConnected {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl LastConnected {
    /// The client is connected.
    pub(crate) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns how long the client has had no broker.
    pub(crate) fn lost_for(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}
