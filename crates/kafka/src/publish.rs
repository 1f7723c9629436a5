//! From the log to Kafka: messages as CloudEvents, acknowledged by the broker.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_store::{correlation, trace};
use opentelemetry::{KeyValue, global, metrics::Histogram};
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::Producer as _,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{Instrument, Span, field::Empty};

use crate::client::{
    brokers::Brokers,
    error::{SendError, StartError, causes},
    inspect::topic_exists,
    producer::{Outgoing, Producer},
    traceparent,
};

/// The most ids that [`Publisher::send_once`] remembers.
const MAX_ACKNOWLEDGED: usize = 100_000;
/// How long a readiness check waits for the broker.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Made at first use, which is after the service has installed its meter.
static PUBLICATIONS: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    global::meter("kafka")
        .f64_histogram("publication.duration")
        .with_unit("s")
        .with_description(
            "Time from the event to the end of an attempt to publish it, by topic and outcome: acknowledged, unacknowledged (retried) or \
             refused (given up).",
        )
        .with_boundaries(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0])
        .build()
});

/// The settings of a [`Publisher`].
#[derive(Debug, Clone)]
pub struct PublisherSettings {
    /// The brokers.
    pub brokers: Brokers,
    /// How long a send may take.
    pub message_timeout: Duration,
}

impl PublisherSettings {
    /// Returns settings with 5 s for a send.
    pub fn new(brokers: Brokers) -> Self {
        Self { brokers, message_timeout: Duration::from_secs(5) }
    }
}

impl PublisherSettings {
    pub(crate) fn producer(&self) -> ClientConfig {
        self.brokers.producer(self.message_timeout)
    }
}

/// A message in the binary mode of CloudEvents' Kafka binding: the value is the data, and the attributes are headers.
#[derive(Debug, Clone, Copy)]
pub struct CloudEvent<'a> {
    /// The key. Messages with one key keep their order.
    pub key: &'a str,
    /// The id. Together with the source, it tells a consumer that a message was sent twice.
    pub id: &'a str,
    /// The source of the event, as a URI reference.
    pub source: &'a str,
    /// The type of the event.
    pub event_type: &'a str,
    /// The time of the event, if it is known.
    pub time: Option<OffsetDateTime>,
    /// The W3C trace context of the event's cause. The current span takes precedence.
    pub traceparent: Option<&'a str>,
    /// The event's position in the log.
    pub causation_id: Option<&'a str>,
    /// The data, as JSON.
    pub json: &'a [u8],
}

/// Sends messages. Cheap to clone; the clones share one producer.
#[derive(Clone)]
pub struct Publisher {
    producer: Arc<Producer>,
    brokers: Brokers,
    /// The ids of messages that the broker has acknowledged, and that [`Publisher::forget`] did not forget.
    acknowledged: Arc<Mutex<HashSet<String>>>,
}

impl Publisher {
    /// Creates a publisher. It connects at the first message.
    ///
    /// # Errors
    /// If librdkafka does not accept the settings.
    pub fn new(settings: &PublisherSettings) -> Result<Self, StartError> {
        let producer = Arc::new(Producer::new(settings.producer(), &settings.brokers)?);
        Ok(Self { producer, brokers: settings.brokers.clone(), acknowledged: Arc::default() })
    }

    /// Sends a message as [`send`](Self::send) does, unless the broker has acknowledged a message with this id to this publisher. So a
    /// retry of what comes after the acknowledgement sends nothing again. [`forget`](Self::forget) ends that.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_once(&self, topic: &str, event: &CloudEvent<'_>) -> Result<(), SendError> {
        if self.acknowledged().contains(event.id) {
            return Ok(());
        }
        self.send(topic, event).await?;
        let mut acknowledged = self.acknowledged();
        // Forgotten ids cost duplicates, which a consumer drops.
        if acknowledged.len() >= MAX_ACKNOWLEDGED {
            acknowledged.clear();
        }
        acknowledged.insert(event.id.to_owned());
        Ok(())
    }

    /// Forgets that the broker has acknowledged a message with this id.
    pub fn forget(&self, id: &str) {
        self.acknowledged().remove(id);
    }

    fn acknowledged(&self) -> MutexGuard<'_, HashSet<String>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message and returns when every in-sync replica has it. One call writes it once. A second call after an error may write it
    /// again, with the same id.
    ///
    /// # Errors
    /// If the broker does not acknowledge the message within the message timeout, or refuses it.
    pub async fn send(&self, topic: &str, event: &CloudEvent<'_>) -> Result<(), SendError> {
        let span = tracing::info_span!(
            "send",
            otel.name = format!("send {topic}"),
            otel.kind = "producer",
            otel.status_code = Empty,
            messaging.system = "kafka",
            messaging.operation.type = "send",
            messaging.destination.name = topic,
            messaging.message.id = event.id,
        );
        let sending = async {
            // The consumer continues the trace of this span.
            let traceparent = trace::current_traceparent();
            let headers = headers(&CloudEvent { traceparent: traceparent.as_deref().or(event.traceparent), ..*event });
            let message = Outgoing { topic, partition: None, key: Some(event.key.as_bytes()), value: Some(event.json), headers };
            let outcome = self.producer.send(message).await;
            if outcome.is_err() {
                Span::current().record("otel.status_code", "ERROR");
            }
            outcome
        };
        let outcome = sending.instrument(span).await;
        if let Some(happened) = event.time {
            record(topic, happened, &outcome);
        }
        outcome
    }

    /// Checks that the brokers answer and have the topic.
    ///
    /// # Errors
    /// The reason why the publisher waits, for an operator.
    pub async fn ready(&self, topic: &str) -> Result<(), String> {
        let (producer, asked) = (self.producer.current(), topic.to_owned());
        // The question blocks its thread.
        let exists = tokio::task::spawn_blocking(move || topic_exists(producer.client(), &asked, CHECK_TIMEOUT)).await;
        match exists {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(format!("the topic {topic}, which does not exist")),
            Ok(Err(error)) => Err(format!("the broker at {}{} ({error})", self.brokers.bootstrap_servers, self.brokers.authentication)),
            Err(error) => Err(causes(&error)),
        }
    }
}

/// Records the time from an event to the outcome of sending it.
fn record(topic: &str, happened: OffsetDateTime, outcome: &Result<(), SendError>) {
    let word = match outcome {
        Ok(()) => "acknowledged",
        Err(error) if error.is_permanent() => "refused",
        Err(_) => "unacknowledged",
    };
    // The times are of two clocks, which may differ.
    let seconds = (OffsetDateTime::now_utc() - happened).as_seconds_f64().max(0.0);
    PUBLICATIONS.record(seconds, &[KeyValue::new("topic", topic.to_owned()), KeyValue::new("outcome", word)]);
}

fn headers(event: &CloudEvent<'_>) -> OwnedHeaders {
    let time = event.time.and_then(|time| time.format(&Rfc3339).ok());
    let correlation_id = correlation::current();
    [
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some(event.id)),
        ("ce_source", Some(event.source)),
        ("ce_type", Some(event.event_type)),
        ("ce_time", time.as_deref()),
        ("content-type", Some("application/json")),
        (traceparent::HEADER, event.traceparent),
        (correlation::HEADER, correlation_id.as_deref()),
        ("x-causation-id", event.causation_id),
    ]
    .into_iter()
    .filter(|(_, value)| value.is_some())
    .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value }))
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers as _;

    use super::*;

    #[test]
    fn attributes_are_headers() {
        let event = CloudEvent {
            key: "cart",
            id: "42",
            source: "/cartlog",
            event_type: "CartSubmitted",
            time: Some(OffsetDateTime::UNIX_EPOCH),
            traceparent: None,
            causation_id: Some("7"),
            json: b"{}",
        };
        let headers = headers(&event);
        let written: Vec<_> =
            headers.iter().map(|header| (header.key, header.value.map(String::from_utf8_lossy).unwrap_or_default())).collect();
        let expected = [
            ("ce_specversion", "1.0"),
            ("ce_id", "42"),
            ("ce_source", "/cartlog"),
            ("ce_type", "CartSubmitted"),
            ("ce_time", "1970-01-01T00:00:00Z"),
            ("content-type", "application/json"),
            ("x-causation-id", "7"),
        ];
        assert_eq!(written, expected.map(|(key, value)| (key, value.into())));
    }
}
