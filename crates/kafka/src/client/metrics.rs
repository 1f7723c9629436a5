//! What every client counts, through the globally installed OpenTelemetry meter.

use std::sync::LazyLock;

use opentelemetry::{KeyValue, global, metrics::Gauge};
use rdkafka::Statistics;

/// Made at first use, which is after the service has installed its meter.
static CONNECTED: LazyLock<Gauge<u64>> = LazyLock::new(|| {
    global::meter("kafka")
        .u64_gauge("broker.connected")
        .with_description("1 where this process's client (consumer or producer) is connected to a broker, else 0.")
        .build()
});

/// What a client's statistics say, which come every second.
pub(crate) fn connection(client: &'static str, statistics: &Statistics) {
    CONNECTED.record(u64::from(is_connected(statistics)), &[KeyValue::new("client", client)]);
}

/// Whether any broker is connected.
pub(crate) fn is_connected(statistics: &Statistics) -> bool {
    statistics.brokers.values().any(|broker| broker.state == "UP")
}
