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
    sqlx::query("UPDATE source_offset SET next_offset = 0 WHERE consumer = $1").bind(&group).execute(&log.pool).await.expect("the log");
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
    let why = translator.until_waiting_for("is blocked").await;
    assert!(why.contains("translate is 5,") && why.contains("ends at 1"), "{why}");
    assert_eq!(log.counts().await, [0, 1, 2, 3, 4]);
    translator.stop().await;
}
