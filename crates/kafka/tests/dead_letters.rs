//! A message that cannot be read becomes a dead letter, and the message after it is translated.
use crate::common::*;
use kafka::client::Headers;
use rdkafka::{Message as _, producer::FutureRecord};
use test_support::eventually;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn unreadable_message_is_kept_with_reason_and_origin() {
    let (log, topic, group) = (Log::create().await, Topic::create(2).await, group());
    let (product, huge) = (Uuid::now_v7(), format!(r#"{{"product":"{}","count":1,"note":"{}"}}"#, Uuid::now_v7(), "x".repeat(900_000)));
    let missing = format!(r#"{{"product":"{product}"}}"#);
    let negative = message(product, -1);
    let cases: [(Option<&[u8]>, &str); 8] = [
        (Some(b"\xff\xfe not JSON"), "expected value at line 1 column 1"),
        (Some(b"tea"), "expected ident at line 1 column 2"),
        (Some(missing.as_bytes()), "missing field `count` at line 1 column 50"),
        (Some(negative.as_bytes()), "count: invalid value: integer `-1`, expected u32 at line 1 column 60"),
        (Some(b"[1, 2]"), "the value must be a JSON object"),
        (Some(b""), "the value is empty"),
        (None, "the value is empty"),
        (Some(huge.as_bytes()), "the value has 900070 bytes; the maximum is 65536"),
    ];
    let translator = Running::start(&log, &group, &[&topic]);
    topic.count(1, 0).await;
    for (count, (value, _)) in (1..).zip(&cases) {
        topic.send(1, Some(b"key"), *value, Some(headers(&[("shop", "Lübeck")]))).await;
        topic.count(1, count).await;
    }
    log.until_counts(&(0..9).collect::<Vec<_>>()).await;
    assert_eq!(log.counts().await, (0..9).collect::<Vec<_>>(), "in their order");

    for (letter, (offset, (value, reason))) in topic.dead_letters(cases.len()).iter().zip((1..).step_by(2).zip(&cases)) {
        assert_eq!(letter.payload().unwrap_or_default(), value.unwrap_or_default());
        assert_eq!(letter.payload().is_some(), value.is_some());
        assert_eq!(letter.key(), Some(b"key".as_slice()));
        let expected =
            [("shop", "Lübeck"), ("dead-letter-reason", reason), ("dead-letter-topic", &topic.name), ("dead-letter-partition", "1")];
        for (name, value) in expected {
            assert_eq!(header(letter, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(header(letter, "dead-letter-offset"), Some(i32::to_string(&offset)));
    }
    translator.until_ready().await;
    translator.stop().await;

    // A second translator writes none of them again.
    let translator = Running::start(&log, &group, &[&topic]);
    topic.count(1, 9).await;
    log.until_counts(&(0..10).collect::<Vec<_>>()).await;
    translator.stop().await;
    assert_eq!(topic.dead_letters(cases.len()).len(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn message_that_the_log_rejects_leaves_its_batch() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    sqlx::query(r#"ALTER TABLE event ADD CONSTRAINT no_13 CHECK (convert_from(payload, 'UTF8') NOT LIKE '%"count":13}%')"#)
        .execute(&log.pool)
        .await
        .expect("the log");
    for count in 10..20 {
        topic.count(0, count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[10, 11, 12, 14, 15, 16, 17, 18, 19]).await;
    log.until_stored(&group, &topic.name, 0, 10).await;
    let letters = topic.dead_letters(1);
    let reason = header(&letters[0], "dead-letter-reason").expect("a reason");
    assert!(reason.starts_with("the log refused the data") && reason.contains("no_13"), "{reason}");
    assert_eq!(header(&letters[0], "dead-letter-offset").as_deref(), Some("3"));
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn nothing_is_skipped_without_a_topic_for_dead_letters() {
    let (log, topic, group) = (Log::create().await, Topic::create_without_dead_letters(2).await, group());
    topic.send(0, None, Some(b"tea"), None).await;
    topic.count(0, 1).await;
    topic.count(1, 2).await;
    let translator = Running::start(&log, &group, &[&topic]);
    // The other partition continues.
    log.until_counts(&[2]).await;
    translator.until_waiting_for(&topic.dead_letters_name()).await;
    assert_eq!(log.stored_offset(&group, &topic.name, 0).await, None);

    topic.create_dead_letters().await;
    log.until_counts(&[1, 2]).await;
    assert_eq!(topic.dead_letters(1).len(), 1);
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn header_with_a_name_that_is_not_utf_8_does_no_harm() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    let value = message(Uuid::now_v7(), 1);
    raw::send_with_header(&topic.name, 0, value.as_bytes(), b"caf\xe9", b"1");
    raw::send_with_header(&topic.name, 0, message(Uuid::now_v7(), 2).as_bytes(), "café".as_bytes(), b"\xff");
    topic.count(0, 3).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[2, 3]).await;
    let letters = topic.dead_letters(1);
    assert_eq!(letters[0].payload(), Some(value.as_bytes()));
    assert_eq!(header(&letters[0], "dead-letter-reason").as_deref(), Some("the name of a header is not UTF-8"));
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn stub_takes_the_place_of_a_letter_that_its_topic_refuses() {
    let (log, topic, group) = (Log::create().await, Topic::create_without_dead_letters(1).await, group());
    topic.create_dead_letters_with("max.message.bytes", "2000").await;
    let noise = noise(5_000);
    topic.send(0, Some(b"key"), Some(&noise), None).await;
    topic.send(0, Some(b"key"), Some(b"tea"), None).await;
    topic.count(0, 1).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[1]).await;
    let letters = topic.dead_letters(2);
    let (stub, letter) = (&letters[0], &letters[1]);
    assert_eq!((stub.payload(), letter.payload()), (None, Some(b"tea".as_slice())));
    assert_eq!(stub.key(), Some(format!("{}/0/0", topic.name).as_bytes()));
    for (name, value) in [
        ("dead-letter-reason", "expected value at line 1 column 1"),
        ("dead-letter-topic", &topic.name),
        ("dead-letter-partition", "0"),
        ("dead-letter-offset", "0"),
        ("dead-letter-bytes", "5000"),
        ("dead-letter-sha256", &sha256(&noise)),
    ] {
        assert_eq!(header(stub, name).as_deref(), Some(value), "{name}");
    }
    assert!(header(stub, "dead-letter-stub").is_some_and(|why| why.contains("does not accept this message")));
    assert!(header(letter, "dead-letter-stub").is_none());
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn stub_takes_the_place_of_a_message_too_large_to_keep() {
    let (log, topic, group) = (Log::create().await, Topic::named(format!("counts-{}", Uuid::now_v7().simple())), group());
    create_topic_with(&topic.name, 1, "max.message.bytes", "20000000").await;
    topic.create_dead_letters().await;
    let noise = noise(5_000_000);
    let producer = producer(&[("message.max.bytes", "400000000"), ("compression.type", "zstd")]);
    for value in [&noise, &vec![0; 8_000_000]] {
        let record = FutureRecord::<[u8], _>::to(&topic.name).payload(value);
        producer.send(record, std::time::Duration::from_secs(20)).await.expect("the broker takes it");
    }
    let large = vec![b'x'; 2_000_000];
    let headers = kafka::client::to_send([("large", Some(&large[..]))]);
    producer
        .send(FutureRecord::<[u8], _>::to(&topic.name).payload(b"tea").headers(headers), std::time::Duration::from_secs(20))
        .await
        .expect("the broker takes it");
    topic.count(0, 1).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[1]).await;
    let letters = topic.dead_letters(3);
    for (stub, value) in letters.iter().zip([&noise, &vec![0; 8_000_000], &b"tea".to_vec()]) {
        assert_eq!(stub.payload(), None);
        assert_eq!(header(stub, "dead-letter-bytes"), Some(value.len().to_string()));
        assert_eq!(header(stub, "dead-letter-sha256"), Some(sha256(value)));
    }
    assert_eq!(header(&letters[2], "dead-letter-reason").as_deref(), Some("the key and the headers are too large"));
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn stub_takes_the_place_of_what_cannot_be_decompressed() {
    let (log, topic, group) = (Log::create().await, Topic::create(2).await, group());
    let producer =
        producer(&[("message.max.bytes", "400000000"), ("compression.type", "zstd"), ("linger.ms", "200"), ("batch.size", "400000000")]);
    topic.count(0, 1).await;
    // Past the largest batch that is read. It is 3 kB on the wire, and has two messages.
    let large = vec![0; 40_000_000];
    let send = || {
        let record = FutureRecord::<[u8], _>::to(&topic.name).partition(0).payload(&large);
        let sent = producer.send_result(record).map_err(|(error, _)| error).expect("room in the queue");
        async { sent.await.expect("an answer").expect("the broker takes it") }
    };
    let (first, second) = (send(), send());
    let (first, second) = (first.await, second.await);
    assert_eq!((first.offset, second.offset), (1, 2));
    topic.count(0, 2).await;
    topic.count(1, 3).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[1, 2, 3]).await;
    log.until_stored(&group, &topic.name, 0, 4).await;
    let stub = &topic.dead_letters(1)[0];
    assert_eq!(stub.payload(), None);
    assert_eq!(header(stub, "dead-letter-offset").as_deref(), Some("1"));
    assert_eq!(header(stub, "dead-letter-reason").as_deref(), Some("the messages from offset 1 to 2 cannot be decompressed"));
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn offset_set_by_an_operator_ends_the_wait_for_a_letter() {
    let (log, topic, group) = (Log::create().await, Topic::create_without_dead_letters(1).await, group());
    topic.count(0, 0).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 1).await;
    topic.send(0, None, Some(b"tea"), None).await;
    topic.count(0, 2).await;
    eventually("the partition waits", || async { (!translator.status.waiting().is_empty()).then_some(()) }).await;
    seek(&log, &group, 0, 2).await;
    log.until_counts(&[0, 2]).await;
    assert!(translator.status.waiting().is_empty(), "no partition waits");
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn letter_after_a_seek_is_written_once() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    topic.count(0, 0).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[0]).await;
    seek(&log, &group, 0, 0).await;
    // The translator may not know yet.
    topic.send(0, None, Some(b"tea"), None).await;
    log.until_counts(&[0, 0]).await;
    log.until_stored(&group, &topic.name, 0, 2).await;
    // A second letter would come before this one.
    topic.send(0, None, Some(b"coffee"), None).await;
    let values: Vec<_> = topic.dead_letters(2).iter().map(|letter| letter.payload().map(<[u8]>::to_vec)).collect();
    assert_eq!(values, [Some(b"tea".to_vec()), Some(b"coffee".to_vec())]);
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn forged_headers_are_not_kept() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    let forged = [("dead-letter-replayed", "0/0"), ("Dead-Letter-Dismissed", "0/0"), ("dead-letter-topic", "other"), ("shop", "Lübeck")];
    topic.send(0, None, None, Some(headers(&forged))).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 1).await;
    let letter = &topic.dead_letters(1)[0];
    let names: Vec<_> = Headers::of(letter, 10_000).read.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["shop", "dead-letter-reason", "dead-letter-topic", "dead-letter-partition", "dead-letter-offset"]);
    assert_eq!(header(letter, "dead-letter-topic").as_deref(), Some(&*topic.name));
    eventually("it is not retried", || async { translator.status.ready().ok() }).await;
    translator.stop().await;
}

/// Bytes that no compression shortens.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}
