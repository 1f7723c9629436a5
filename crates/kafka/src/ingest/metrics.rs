//! The metrics of a translator, through the globally installed OpenTelemetry meter.

use std::sync::{LazyLock, Weak};

use opentelemetry::{
    KeyValue, global,
    metrics::{AsyncInstrument, Counter, Histogram, Meter},
};

use super::status::Status;

pub(crate) struct Metrics {
    pub(crate) messages: Counter<u64>,
    pub(crate) dead_letters: Counter<u64>,
    pub(crate) batch: Histogram<u64>,
    pub(crate) offset_conflicts: Counter<u64>,
    pub(crate) faults: Counter<u64>,
}

fn meter() -> Meter {
    global::meter("kafka")
}

/// Created at first use, after the service has installed its meter.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = meter();
    Metrics {
        messages: meter.u64_counter("translation.messages").with_description("Messages that became events, by topic.").build(),
        dead_letters: meter
            .u64_counter("translation.dead_letters")
            .with_description("Messages that could not be translated, by topic.")
            .build(),
        batch: meter
            .u64_histogram("translation.batch")
            .with_description("Messages per call to the log.")
            .with_boundaries(vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0])
            .build(),
        offset_conflicts: meter
            .u64_counter("translation.offset.conflicts")
            .with_description("Batches that were not written because another translator had moved the stored offset, by topic.")
            .build(),
        faults: meter
            .u64_counter("translation.faults")
            .with_description("Failed attempts to write a batch, which are retried, by topic.")
            .build(),
    }
});

/// Starts the counters of a topic at 0, so that Prometheus' `rate()` sees the first increment.
pub(crate) fn begin(topic: &str) {
    for counter in [&METRICS.messages, &METRICS.dead_letters, &METRICS.offset_conflicts, &METRICS.faults] {
        counter.add(0, &[KeyValue::new("topic", topic.to_owned())]);
    }
}

/// Registers the gauges of the partitions that this process has. They are read on request, so a revoked partition leaves no stale value.
pub(crate) fn observe(status: &Weak<Status>) {
    let of = |read: fn(&Status) -> Vec<(String, i32, i64)>| {
        let status = status.clone();
        move |observer: &dyn AsyncInstrument<i64>| {
            for (topic, partition, value) in status.upgrade().as_deref().map(read).unwrap_or_default() {
                observer.observe(value, &[KeyValue::new("topic", topic), KeyValue::new("partition", i64::from(partition))]);
            }
        }
    };
    let meter = meter();
    meter
        .i64_observable_gauge("translation.lag")
        .with_description("Offsets of a partition that are not translated yet.")
        .with_callback(of(Status::lags))
        .build();
    meter
        .i64_observable_gauge("translation.blocked")
        .with_description("1 while a partition waits for an operator, otherwise 0.")
        .with_callback(of(Status::blocked))
        .build();
}
