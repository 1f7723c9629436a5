//! Metrics of the store, through the globally installed OpenTelemetry meter.

use std::{sync::LazyLock, time::Duration};

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge, Histogram},
};

pub(crate) struct Metrics {
    pub(crate) append_queue_duration: Histogram<f64>,
    pub(crate) append_duration: Histogram<f64>,
    pub(crate) append_batch: Histogram<u64>,
    pub(crate) appends: Counter<u64>,
    pub(crate) conflicts: Counter<u64>,
    pub(crate) command_timeouts: Counter<u64>,
    pub(crate) state_cache_hits: Counter<u64>,
    pub(crate) state_cache_misses: Counter<u64>,
    pub(crate) state_cache_evictions: Counter<u64>,
    pub(crate) unknown_outcomes: Counter<u64>,
    pub(crate) head: Gauge<i64>,
    pub(crate) lock_wait: Gauge<f64>,
    query_waits: Histogram<f64>,
}

impl Metrics {
    /// Starts each counter at 0, so that Prometheus' `rate()` sees the first increment.
    pub(crate) fn begin(&self) {
        let here = [&self.appends, &self.conflicts, &self.command_timeouts, &self.unknown_outcomes];
        for counter in here.into_iter().chain([&self.state_cache_hits, &self.state_cache_evictions]) {
            counter.add(0, &[]);
        }
    }
}

/// Records how long a query waited for a position, and the outcome.
pub fn record_query_wait(query: &'static str, time: Duration, outcome: &'static str) {
    METRICS.query_waits.record(time.as_secs_f64(), &[KeyValue::new("query", query), KeyValue::new("outcome", outcome)]);
}

/// Created at first use, which is after the service has installed its meter.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = global::meter("event-store");
    Metrics {
        append_queue_duration: meter
            .f64_histogram("log.append.queue.duration")
            .with_unit("s")
            .with_description("Time from queueing an append to sending the call that carries it.")
            .with_boundaries(vec![0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0])
            .build(),
        append_duration: meter
            .f64_histogram("log.append.duration")
            .with_unit("s")
            .with_description("Time from sending a call that appends to its answer.")
            .with_boundaries(vec![0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0])
            .build(),
        append_batch: meter
            .u64_histogram("log.append.batch")
            .with_description("Appends in one call.")
            .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
            .build(),
        appends: meter.u64_counter("log.appends").with_description("Appends written.").build(),
        conflicts: meter
            .u64_counter("log.conflicts")
            .with_description("Appends whose condition failed. Their commands decide again.")
            .build(),
        state_cache_hits: meter.u64_counter("state_cache.hits").with_description("States that a decision found in the cache.").build(),
        state_cache_misses: meter
            .u64_counter("state_cache.misses")
            .with_description("States that a decision did not find in the cache and started empty.")
            .build(),
        state_cache_evictions: meter
            .u64_counter("state_cache.evictions")
            .with_description("States evicted because the cache was full.")
            .build(),
        command_timeouts: meter.u64_counter("log.command.timeouts").with_description("Commands and reads that ran out of time.").build(),
        unknown_outcomes: meter
            .u64_counter("log.unknown_outcomes")
            .with_description("Calls whose connection was lost before their answer. Their outcomes are looked up.")
            .build(),
        head: meter.i64_gauge("log.head").with_description("The newest position that this process has seen.").build(),
        lock_wait: meter
            .f64_gauge("log.lock.wait")
            .with_unit("s")
            .with_description(
                "Longest wait for a lock in the database, by the role that holds it and lock: append or other. 0 below 1 second for append, and below 3 for other.",
            )
            .build(),
        query_waits: meter
            .f64_histogram("query.wait.duration")
            .with_unit("s")
            .with_description("Time that queries waited for a position, by query and outcome: reached, timed_out, parked or fault.")
            .with_boundaries(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
            .build(),
    }
});

/// Reports the size of a store's state cache whenever the metrics are read.
pub(crate) fn state_cache_size(bytes: impl Fn() -> Option<u64> + Send + Sync + 'static) {
    // The meter keeps the callback, so the instrument can be dropped.
    let _ = global::meter("event-store")
        .u64_observable_gauge("state_cache.size")
        .with_unit("By")
        .with_description("Estimated bytes of the cached states.")
        .with_callback(move |observer| {
            if let Some(bytes) = bytes() {
                observer.observe(bytes, &[]);
            }
        })
        .build();
}

/// Reports a store's connections whenever the metrics are read, under the names of the semantic conventions. The appender's two
/// connections are not part of the pool.
pub(crate) fn connections(counts: impl Fn() -> Option<Connections> + Clone + Send + Sync + 'static) {
    let pool = |name: &'static str| KeyValue::new("db.client.connection.pool.name", name);
    let state = |word: &'static str| KeyValue::new("db.client.connection.state", word);
    let meter = global::meter("event-store");
    let (count, max) = (counts.clone(), counts);
    // As above.
    let _ = meter
        .i64_observable_up_down_counter("db.client.connection.count")
        .with_unit("{connection}")
        .with_description("Connections to the database, by pool and state (idle or used).")
        .with_callback(move |observer| {
            if let Some(Connections { idle, used, .. }) = count() {
                observer.observe(idle, &[pool("log"), state("idle")]);
                observer.observe(used, &[pool("log"), state("used")]);
            }
        })
        .build();
    let _ = meter
        .i64_observable_up_down_counter("db.client.connection.max")
        .with_unit("{connection}")
        .with_description("The most connections to the database that a pool may open.")
        .with_callback(move |observer| {
            if let Some(Connections { max, .. }) = max() {
                observer.observe(max, &[pool("log")]);
            }
        })
        .build();
}

/// The number of a pool's connections.
pub(crate) struct Connections {
    pub(crate) idle: i64,
    pub(crate) used: i64,
    pub(crate) max: i64,
}
