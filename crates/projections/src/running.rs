//! A projection at work in this process.

use std::sync::Arc;

use event_store::{EventStore, Position, StoreError};
use opentelemetry::KeyValue;
use tokio::sync::watch;

use crate::{
    metrics::METRICS,
    projection::Projection,
    replica::{Replica, Replicas},
    settings::Settings,
};

/// A projection in this process, with what its workers share.
pub(crate) struct Running<P: Projection> {
    pub(crate) store: EventStore<P::Log>,
    pub(crate) replicas: Replicas,
    pub(crate) projection: P,
    pub(crate) settings: Settings,
    pub(crate) applied: Arc<watch::Sender<Position>>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) types: Arc<[String]>,
}

impl<P: Projection> Running<P> {
    /// So many events were applied in one transaction.
    pub(crate) fn count(&self, build: &'static str, events: usize) {
        // Those of a batch may all be in queues of parked keys.
        if events > 0 {
            let of = [KeyValue::new("projection", P::NAME), KeyValue::new("build", build)];
            METRICS.projection_events.add(events as u64, &of);
            METRICS.projection_batch.record(events as u64, &of);
            self.replica.count(build, events);
        }
    }
}

/// From zero: what comes about with its first fault was never seen to grow.
pub(crate) fn count_faults<P: Projection>(more: u64) {
    METRICS.projection_faults.add(more, &[KeyValue::new("projection", P::NAME)]);
}

pub(crate) fn say<P: Projection>(error: &StoreError) {
    count_faults::<P>(1);
    if error.is_unavailable() {
        tracing::warn!(projection = P::NAME, error = error as &dyn std::error::Error, "waiting for the log");
    } else {
        tracing::error!(projection = P::NAME, error = error as &dyn std::error::Error, "the projection stands still");
    }
}
