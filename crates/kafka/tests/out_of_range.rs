//! A stored offset that the partition does not have blocks the partition; it never jumps.
use crate::common::*;
use event_store::SourcePartition;
use rdkafka::{Offset, TopicPartitionList, admin::AdminOptions};
use test_support::eventually;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn offset_beyond_the_end_blocks_until_an_operator_seeks() {
    let (log, topic, group) = (Log::create().await, Topic::create(2).await, group());
    // As after the topic was created again.
    let source = SourcePartition { consumer: &group, topic: &topic.name, partition: 0 };
    log.store.append_from(source, None, 120, &[]).await.expect("the log");
    for count in 0..4 {
        topic.count(0, count).await;
        topic.count(1, 10 + count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    let why = translator.until_waiting_for("is blocked").await;
    assert!(why.contains(&format!("{}/0: ", topic.name)) && why.contains("translate is 120,") && why.contains("ends at 4"), "{why}");
    // The other partition continues.
    topic.count(1, 14).await;
    log.until_counts(&[10, 11, 12, 13, 14]).await;
    assert_eq!(log.stored_offset(&group, &topic.name, 0).await, Some(120));

    let command = format!("cartctl translations seek {} 0 --group {group} --to 0.", topic.name);
    assert!(why.contains(&command), "{why}");
    // As that command does.
    sqlx::query("UPDATE source_offset SET next_offset = 0 WHERE consumer = $1 AND partition = 0")
        .bind(&group)
        .execute(&log.pool)
        .await
        .expect("the log");
    log.until_counts(&[0, 1, 2, 3, 10, 11, 12, 13, 14]).await;
    translator.until_ready().await;
    topic.count(0, 4).await;
    log.until_counts(&[0, 1, 2, 3, 4, 10, 11, 12, 13, 14]).await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn offset_deleted_by_retention_blocks_the_partition() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    for count in 0..10 {
        topic.count(0, count).await;
    }
    let source = SourcePartition { consumer: &group, topic: &topic.name, partition: 0 };
    log.store.append_from(source, None, 2, &[]).await.expect("the log");
    let mut until = TopicPartitionList::new();
    until.add_partition_offset(&topic.name, 0, Offset::Offset(6)).expect("an offset");
    admin().delete_records(&until, &AdminOptions::new()).await.expect("deleted");

    let translator = Running::start(&log, &group, &[&topic]);
    let why = translator.until_waiting_for("is blocked").await;
    assert!(why.contains("translate is 2,") && why.contains("begins at 6"), "{why}");
    assert!(log.counts().await.is_empty());

    // The partition resumes when the offset is in range.
    sqlx::query("UPDATE source_offset SET next_offset = 8 WHERE consumer = $1").bind(&group).execute(&log.pool).await.expect("the log");
    log.until_counts(&[8, 9]).await;
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn new_partition_starts_at_its_first_offset() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    for count in 0..10 {
        topic.count(0, count).await;
    }
    let mut until = TopicPartitionList::new();
    until.add_partition_offset(&topic.name, 0, Offset::Offset(6)).expect("an offset");
    admin().delete_records(&until, &AdminOptions::new()).await.expect("deleted");
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[6, 7, 8, 9]).await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn topic_created_again_blocks_a_running_translator() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    for count in 0..5 {
        topic.count(0, count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 5).await;
    translator.until_ready().await;
    admin().delete_topics(&[&topic.name], &AdminOptions::new()).await.expect("deleted");
    eventually("the topic can be created again", || async {
        let new = rdkafka::admin::NewTopic::new(&topic.name, 1, rdkafka::admin::TopicReplication::Fixed(1));
        let made = admin().create_topics([&new], &AdminOptions::new()).await.ok()?;
        made.into_iter().all(|topic| topic.is_ok()).then_some(())
    })
    .await;
    Topic::named(&topic.name).count(0, 100).await;
    let why = translator.until_waiting_for("ends at 1").await;
    assert!(why.contains("translate is 5,") && why.contains("is blocked"), "{why}");
    assert_eq!(log.counts().await, [0, 1, 2, 3, 4]);
    translator.stop().await;
}

/// Deletes a topic and creates it again with as many messages.
async fn create_again(topic: &Topic, messages: i64) {
    let deleted = admin().delete_topics(&[&topic.name], &AdminOptions::new()).await;
    assert!(deleted.is_ok(), "{deleted:?}");
    eventually("the topic can be created again", || async {
        let new = rdkafka::admin::NewTopic::new(&topic.name, 1, rdkafka::admin::TopicReplication::Fixed(1));
        let made = admin().create_topics([&new], &AdminOptions::new()).await.ok()?;
        made.into_iter().all(|topic| topic.is_ok()).then_some(())
    })
    .await;
    let topic = Topic::named(&topic.name);
    for count in 0..messages {
        topic.count(0, 100 + count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn longer_recreated_topic_blocks_at_the_next_start() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    for count in 0..5 {
        topic.count(0, count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 5).await;
    translator.stop().await;
    // The same topic is not taken for another one.
    topic.count(0, 5).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 6).await;
    translator.until_ready().await;
    translator.stop().await;

    create_again(&topic, 9).await;
    let translator = Running::start(&log, &group, &[&topic]);
    let why = translator.until_waiting_for("is blocked").await;
    assert!(why.contains("the message at offset 5 is not the one that was read there"), "{why}");
    assert_eq!(log.counts().await, [0, 1, 2, 3, 4, 5]);

    seek(&log, &group, 0, 0).await;
    log.until_stored(&group, &topic.name, 0, 9).await;
    assert_eq!(log.counts().await.len(), 6 + 9);
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn longer_recreated_topic_blocks_a_running_translator() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    for count in 0..3 {
        topic.count(0, count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 3).await;
    let started = std::time::Instant::now();
    create_again(&topic, 20).await;
    let why = translator.until_waiting_for("the message at offset 2 is not the one that was read there").await;
    println!("blocked after {:?}: {why}", started.elapsed());
    assert_eq!(log.counts().await, [0, 1, 2], "no message of the new topic is translated before");
    seek(&log, &group, 0, 0).await;
    log.until_stored(&group, &topic.name, 0, 20).await;
    translator.until_ready().await;
    assert_eq!(log.counts().await, (0..3).chain(100..120).collect::<Vec<_>>());
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn topic_created_again_and_again_stays_blocked_when_it_grows() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    topic.count(0, 0).await;
    topic.count(0, 1).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 2).await;
    let mut translated = vec![0, 1];
    for (before, messages) in [(2, 20), (20, 40), (40, 60)] {
        // The partition ends before the stored offset, and grows past it.
        create_again(&topic, 1).await;
        translator.until_waiting_for("ends at 1").await;
        let again = Topic::named(&topic.name);
        for count in 1..messages {
            again.count(0, 100 + count).await;
        }
        translator.until_waiting_for(&format!("the message at offset {} is not the one that was read there", before - 1)).await;
        assert_eq!(log.counts().await, translated, "no message of the new topic is translated before");
        seek(&log, &group, 0, 0).await;
        log.until_stored(&group, &topic.name, 0, messages).await;
        translator.until_ready().await;
        translated.extend(100..100 + messages);
        assert_eq!(log.counts().await, translated);
    }
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn offset_of_a_quiet_partition_is_picked_up() {
    let (log, topic, group) = (Log::create().await, Topic::create(2).await, group());
    for count in 0..3 {
        topic.count(0, count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[0, 1, 2]).await;
    let started = std::time::Instant::now();
    seek(&log, &group, 0, 1).await;
    log.until_counts(&[0, 1, 1, 2, 2]).await;
    assert!(started.elapsed() < std::time::Duration::from_secs(6), "{:?}", started.elapsed());
    log.until_stored(&group, &topic.name, 0, 3).await;
    translator.stop().await;
}
