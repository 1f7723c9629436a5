//! A message is sent when the broker acknowledges it.
use std::time::Duration;

use crate::common::*;
use kafka::{Brokers, CloudEvent, Publisher, PublisherSettings};
use rdkafka::Message as _;
use uuid::Uuid;

fn event(json: &[u8]) -> CloudEvent<'_> {
    let traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    CloudEvent {
        key: "a cart",
        id: "42",
        source: "/cartlog",
        event_type: "CartSubmitted",
        time: None,
        traceparent,
        causation_id: None,
        json,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: cargo dev test"]
async fn message_is_a_cloud_event() {
    let topic = Topic::create(3).await;
    let publisher = Publisher::new(&PublisherSettings::new(brokers())).expect("a producer");
    publisher.ready(&topic.name).await.expect("ready");
    publisher.send(&topic.name, &event(b"{\"cart\":1}")).await.expect("sent");
    publisher.send(&topic.name, &event(b"{\"cart\":1}")).await.expect("sent");
    let messages = read(&topic.name, 3, 2);
    assert_eq!(messages[0].partition(), messages[1].partition());
    for message in messages {
        assert_eq!((message.key(), message.payload()), (Some(b"a cart".as_slice()), Some(b"{\"cart\":1}".as_slice())));
        for (name, value) in [
            ("ce_specversion", "1.0"),
            ("ce_id", "42"),
            ("ce_source", "/cartlog"),
            ("ce_type", "CartSubmitted"),
            ("content-type", "application/json"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(header(&message, name).as_deref(), Some(value), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: cargo dev test"]
async fn acknowledged_message_is_not_sent_again() {
    let topic = Topic::create(1).await;
    let publisher = Publisher::new(&PublisherSettings::new(brokers())).expect("a producer");
    for value in ["1", "2", "3"] {
        publisher.send_once(&topic.name, &event(value.as_bytes())).await.expect("sent");
    }
    publisher.forget("42");
    publisher.send_once(&topic.name, &event(b"4")).await.expect("sent");
    let values: Vec<_> = read(&topic.name, 1, 2).iter().map(|message| message.payload().map(<[u8]>::to_vec)).collect();
    assert_eq!(values, [Some(b"1".to_vec()), Some(b"4".to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: cargo dev test"]
async fn permanent_errors_differ_from_transient_ones() {
    let topic = Topic::create(1).await;
    let publisher = Publisher::new(&PublisherSettings::new(brokers())).expect("a producer");
    let huge = vec![b'x'; 4 << 20];
    let error = publisher.send(&topic.name, &event(&huge)).await.expect_err("too large");
    assert!(error.is_permanent(), "{error:?}");
    // The next message is sent.
    publisher.send(&topic.name, &event(b"{}")).await.expect("sent");

    let missing = format!("missing-{}", Uuid::now_v7().simple());
    let error = publisher.send(&missing, &event(b"{}")).await.expect_err("no such topic");
    assert!(!error.is_permanent(), "{error:?}");
    assert_eq!(publisher.ready(&missing).await, Err(format!("the topic {missing}, which does not exist")));
    create_topic(&missing, 1).await;
    test_support::eventually("it is sent", || async { publisher.send(&missing, &event(b"{}")).await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_broker_is_an_error_within_the_timeout() {
    let brokers = Brokers::new("127.0.0.1:9", "test");
    let settings = PublisherSettings { message_timeout: Duration::from_millis(500), ..PublisherSettings::new(brokers) };
    let publisher = Publisher::new(&settings).expect("a producer");
    let error = publisher.send("carts", &event(b"{}")).await.expect_err("nobody is there");
    assert!(!error.is_permanent(), "{error:?}");
    let why = publisher.ready("carts").await.expect_err("nobody is there");
    assert!(why.starts_with("the broker at 127.0.0.1:9"), "{why}");
}
