//! The metrics of projections and to-dos, through the global OpenTelemetry meter.

use std::{sync::LazyLock, time::Duration};

use opentelemetry::{
    global,
    metrics::{Counter, Gauge, Histogram},
};

pub(crate) struct Metrics {
    pub(crate) projection_position: Gauge<i64>,
    pub(crate) projection_lag: Gauge<i64>,
    pub(crate) projection_lag_age: Gauge<f64>,
    pub(crate) projection_segments: Gauge<u64>,
    pub(crate) projection_rebuild: Gauge<f64>,
    pub(crate) projection_events: Counter<u64>,
    pub(crate) projection_batch: Histogram<u64>,
    pub(crate) projection_faults: Counter<u64>,
    pub(crate) projection_parked: Gauge<u64>,
    pub(crate) projection_blocked: Gauge<u64>,
    pub(crate) parked_queries: Counter<u64>,
    pub(crate) clock_steps: Counter<u64>,
    pub(crate) todos: Counter<u64>,
    pub(crate) todo_count: Gauge<i64>,
    pub(crate) todo_oldest: Gauge<f64>,
}

/// Created at first use, after the service has installed its meter.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = global::meter("projections");
    Metrics {
        projection_position: meter
            .i64_gauge("projection.position")
            .with_description("Position up to which a build is applied, in the segments that this process owns.")
            .build(),
        projection_lag: meter
            .i64_gauge("projection.lag")
            .with_unit("{event}")
            .with_description("Log positions that a build has yet to apply, in the segments that this process owns.")
            .build(),
        projection_lag_age: meter
            .f64_gauge("projection.lag.age")
            .with_unit("s")
            .with_description("Age of the oldest event that a build has yet to apply, in the segments that this process owns.")
            .build(),
        projection_segments: meter.u64_gauge("projection.segments").with_description("Segments of a build that this process owns.").build(),
        projection_rebuild: meter
            .f64_gauge("projection.rebuild.progress")
            .with_description("Progress of a rebuild, from 0 to 1; 1 if none runs.")
            .build(),
        projection_events: meter.u64_counter("projection.events").with_description("Applied events.").build(),
        projection_batch: meter
            .u64_histogram("projection.batch")
            .with_description("Events per applied batch.")
            .with_boundaries(vec![1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0])
            .build(),
        projection_faults: meter
            .u64_counter("projection.faults")
            .with_description("Failed attempts to apply events: retried, or parked with their key.")
            .build(),
        projection_parked: meter
            .u64_gauge("projection.parked.keys")
            .with_unit("{key}")
            .with_description("Parked keys of a build, in all segments.")
            .build(),
        projection_blocked: meter
            .u64_gauge("projection.blocked.segments")
            .with_unit("{segment}")
            .with_description("Segments that this process owns and that are blocked before an event.")
            .build(),
        parked_queries: meter
            .u64_counter("projection.parked.queries")
            .with_description("Queries refused because their key is parked.")
            .build(),
        clock_steps: meter
            .u64_counter("database.clock.steps")
            .with_description("Steps of the database's clock by more than a second, as the heartbeat noticed them.")
            .build(),
        todos: meter.u64_counter("todo.attempts").with_description("Attempts at to-dos, by automation and outcome.").build(),
        todo_count: meter
            .i64_gauge("todo.count")
            .with_unit("{todo}")
            .with_description("To-dos of an automation, in all processes: open, due (open and not leased), failed.")
            .build(),
        todo_oldest: meter
            .f64_gauge("todo.oldest.age")
            .with_unit("s")
            .with_description("Age of an automation's oldest open to-do; 0 if there is none.")
            .build(),
    }
});

/// Reports the age of this process's last heartbeat whenever the metrics are read. So it grows if the heartbeat stands still.
pub(crate) fn heartbeat_age(age: impl Fn() -> Option<Duration> + Send + Sync + 'static) {
    // The meter keeps the callback, so the instrument can be dropped.
    let _ = global::meter("projections")
        .f64_observable_gauge("projection.heartbeat.age")
        .with_unit("s")
        .with_description("Time since the last successful heartbeat of this process's projections.")
        .with_callback(move |observer| {
            if let Some(age) = age() {
                observer.observe(age.as_secs_f64(), &[]);
            }
        })
        .build();
}
