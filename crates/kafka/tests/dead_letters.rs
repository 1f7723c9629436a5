//! A message that cannot be read becomes a dead letter, and the message after it is translated.
use crate::common::*;
use rdkafka::Message as _;
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
