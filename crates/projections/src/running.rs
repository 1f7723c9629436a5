//! A projection that runs in this process.

use std::sync::Arc;

use event_store::{EventStore, Position, StoreError};
use opentelemetry::KeyValue;
use tokio::sync::watch;

use crate::{
    health::Health,
    metrics::METRICS,
    projection::Projection,
    replica::{Replica, Replicas},
    settings::Settings,
};

/// The state that the workers of a projection share.
pub(crate) struct Running<P: Projection> {
    pub(crate) store: EventStore<P::Log>,
    pub(crate) replicas: Replicas,
    pub(crate) projection: Arc<P>,
    pub(crate) settings: Settings,
    /// Notified with the position after each applied batch.
    pub(crate) applied: Arc<watch::Sender<Position>>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) types: Arc<[String]>,
    pub(crate) health: Arc<Health>,
}

impl<P: Projection> Running<P> {
    /// How the tasks of this projection are doing.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Counts the events that one transaction applied.
    pub(crate) fn count(&self, build: &'static str, events: usize) {
        // All events of a batch may have gone to the queues of parked keys.
        if events > 0 {
            let labels = [KeyValue::new("projection", P::NAME), KeyValue::new("build", build)];
            METRICS.projection_events.add(events as u64, &labels);
            METRICS.projection_batch.record(events as u64, &labels);
            self.replica.count(build, events);
        }
    }
}

/// Counts faults. Called with 0 at the start, so that Prometheus' `rate()` sees the first fault.
pub(crate) fn count_faults<P: Projection>(more: u64) {
    METRICS.projection_faults.add(more, &[KeyValue::new("projection", P::NAME)]);
}

/// Counts and logs an error of a worker, which retries.
pub(crate) fn report<P: Projection>(error: &StoreError) {
    count_faults::<P>(1);
    if error.is_unavailable() {
        tracing::warn!(projection = P::NAME, error = error as &dyn std::error::Error, "projection waits for the log");
    } else {
        tracing::error!(projection = P::NAME, error = error as &dyn std::error::Error, "projection failed");
    }
}
