//! From here to Kafka: messages as CloudEvents, sent once the broker says so.

use std::{sync::Arc, time::Duration};

use event_store::trace;
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::Producer as _,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    Brokers, PublisherSettings, SendError, StartError,
    error::causes,
    metrics::METRICS,
    producer::{Outgoing, Producer, topic_exists},
    traceparent,
};

/// How long a readiness check asks the broker.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A message, in the binary mode of CloudEvents' Kafka binding: the value is the data, the attributes are headers.
#[derive(Debug, Clone, Copy)]
pub struct CloudEvent<'a> {
    /// The key: messages of one key keep their order.
    pub key: &'a str,
    /// What a consumer knows a message sent twice by, together with the source.
    pub id: &'a str,
    /// Where it happened, as a URI reference.
    pub source: &'a str,
    /// What kind of event it is.
    pub event_type: &'a str,
    /// When it happened, where that is known.
    pub time: Option<OffsetDateTime>,
    /// The W3C trace context of what caused it, for where this process has none.
    pub traceparent: Option<&'a str>,
    /// The data, as JSON.
    pub json: &'a [u8],
}

/// Sends messages. Cheap to clone; the clones share one producer.
#[derive(Clone)]
pub struct Publisher {
    producer: Arc<Producer>,
    brokers: Brokers,
}

impl Publisher {
    /// Connects when it is first needed, and again whenever it must.
    ///
    /// # Errors
    /// Where librdkafka does not take the settings.
    pub fn new(settings: &PublisherSettings) -> Result<Self, StartError> {
        let producer = Arc::new(Producer::new(settings.producer(), &settings.brokers)?);
        Ok(Self { producer, brokers: settings.brokers.clone() })
    }

    /// Sends a message, and answers once every in-sync replica has it. Within one call it is written once; sent by another call, as after
    /// an error, it may be there twice, with the same id.
    ///
    /// # Errors
    /// Where the broker has not acknowledged it within the message timeout, or never will.
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
            // Whoever reads it goes on from here.
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
            METRICS.sent(topic, happened, &outcome);
        }
        outcome
    }

    /// Whether the brokers answer and have the topic.
    ///
    /// # Errors
    /// What is waited for, as words for an operator.
    pub async fn ready(&self, topic: &str) -> Result<(), String> {
        let (producer, asked) = (self.producer.current(), topic.to_owned());
        // It blocks: not on a thread that others need.
        let exists = tokio::task::spawn_blocking(move || topic_exists(producer.client(), &asked, CHECK_TIMEOUT)).await;
        match exists {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(format!("the topic {topic}, which does not exist")),
            Ok(Err(error)) => Err(format!("the broker at {}{} ({error})", self.brokers.bootstrap_servers, self.brokers.refusal)),
            Err(error) => Err(causes(&error)),
        }
    }
}

fn headers(event: &CloudEvent<'_>) -> OwnedHeaders {
    let time = event.time.and_then(|time| time.format(&Rfc3339).ok());
    [
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some(event.id)),
        ("ce_source", Some(event.source)),
        ("ce_type", Some(event.event_type)),
        ("ce_time", time.as_deref()),
        ("content-type", Some("application/json")),
        (traceparent::HEADER, event.traceparent),
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
    fn attributes_are_headers_and_absent_ones_are_not_there() {
        let event = CloudEvent {
            key: "cart",
            id: "42",
            source: "/cartlog",
            event_type: "CartSubmitted",
            time: Some(OffsetDateTime::UNIX_EPOCH),
            traceparent: None,
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
        ];
        assert_eq!(written, expected.map(|(key, value)| (key, value.into())));
    }
}
