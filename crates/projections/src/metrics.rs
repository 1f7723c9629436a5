//! What the projections count, through the globally installed OpenTelemetry meter.

use std::sync::LazyLock;

use opentelemetry::{
    global,
    metrics::{Counter, Gauge, Histogram},
};

pub(crate) struct Metrics {
    pub(crate) projection_position: Gauge<i64>,
    pub(crate) projection_lag: Gauge<i64>,
    pub(crate) projection_lag_seconds: Gauge<f64>,
    pub(crate) projection_segments: Gauge<u64>,
    pub(crate) projection_rebuild: Gauge<f64>,
    pub(crate) projection_events: Counter<u64>,
    pub(crate) projection_batch: Histogram<u64>,
    pub(crate) projection_faults: Counter<u64>,
    pub(crate) projection_parked: Gauge<u64>,
    pub(crate) projection_stopped: Gauge<u64>,
    pub(crate) parked_queries: Counter<u64>,
    pub(crate) todos: Counter<u64>,
    pub(crate) todo_count: Gauge<i64>,
    pub(crate) todo_oldest: Gauge<f64>,
}

/// Made at first use, which is after the service has installed its meter.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = global::meter("projections");
    Metrics {
        projection_position: meter
            .i64_gauge("projection.position")
            .with_description("Up to where a build of a projection or automation has applied the log, in the segments held here.")
            .build(),
        projection_lag: meter
            .i64_gauge("projection.lag")
            .with_unit("{event}")
            .with_description("Positions of the log that a build has still before it, in the segments held here.")
            .build(),
        projection_lag_seconds: meter
            .f64_gauge("projection.lag.time")
            .with_unit("s")
            .with_description("For how long the oldest event that a build has still before it has been in the log.")
            .build(),
        projection_segments: meter.u64_gauge("projection.segments").with_description("Segments of a build held here.").build(),
        projection_rebuild: meter
            .f64_gauge("projection.rebuild.progress")
            .with_description("How far the build of a read model has come that is being made anew, from 0 to 1; 1 where none is.")
            .build(),
        projection_events: meter.u64_counter("projection.events").with_description("Events applied.").build(),
        projection_batch: meter
            .u64_histogram("projection.batch")
            .with_description("Events of a batch that was applied.")
            .with_boundaries(vec![1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0])
            .build(),
        projection_faults: meter
            .u64_counter("projection.faults")
            .with_description("Times that something could not be applied: tried again, or parked with its key.")
            .build(),
        projection_parked: meter
            .u64_gauge("projection.parked")
            .with_unit("{key}")
            .with_description("Keys that are parked in a build, by all replicas, since an event of theirs could not be applied.")
            .build(),
        projection_stopped: meter
            .u64_gauge("projection.stopped")
            .with_unit("{segment}")
            .with_description("Segments of a build held here that stand before an event which cannot be applied.")
            .build(),
        parked_queries: meter
            .u64_counter("projection.parked.queries")
            .with_description("Queries that were not answered as they touch a parked key.")
            .build(),
        todos: meter.u64_counter("todo.attempts").with_description("To-dos worked, by automation and outcome.").build(),
        todo_count: meter
            .i64_gauge("todo.count")
            .with_unit("{todo}")
            .with_description("To-dos of an automation, of the whole system: open, of these due and in nobody's hands, and failed.")
            .build(),
        todo_oldest: meter
            .f64_gauge("todo.oldest.age")
            .with_unit("s")
            .with_description("How long ago the oldest open to-do of an automation was asked for; 0 where there is none.")
            .build(),
    }
});
