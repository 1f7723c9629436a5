//! The metrics of every client, through the globally installed OpenTelemetry meter.

use std::sync::LazyLock;

use opentelemetry::{KeyValue, global, metrics::Gauge};
use rdkafka::Statistics;

/// Created at first use, after the service has installed its meter.
static CONNECTED: LazyLock<Gauge<u64>> = LazyLock::new(|| {
    global::meter("kafka")
        .u64_gauge("broker.connected")
        .with_description("1 while the client (consumer or producer) of this process is connected to a broker, otherwise 0.")
        .build()
});

/// Records the statistics of a client, which arrive every second.
pub(crate) fn connection(client: &'static str, statistics: &Statistics) {
    CONNECTED.record(u64::from(is_connected(statistics)), &[KeyValue::new("client", client)]);
}

/// Returns whether any broker is connected.
pub(crate) fn is_connected(statistics: &Statistics) -> bool {
    statistics.brokers.values().any(|broker| broker.state == "UP")
}
