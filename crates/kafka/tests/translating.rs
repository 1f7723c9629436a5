//! Each message is translated once, over redeliveries, rebalances and outages.
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::common::*;
use event_store::{Metadata, SourcePartition, Translated};
use futures::future::join_all;
use kafka::{Brokers, TranslatorSettings};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    producer::{FutureRecord, Producer as _},
};
use test_support::{eventually, kafka_bootstrap_servers};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn messages_are_translated_once_over_a_restart() {
    let (log, topic, group) = (Log::create().await, Topic::create(3).await, group());
    for count in 0..30 {
        topic.count(count % 3, count.into()).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&(0..30).collect::<Vec<_>>()).await;
    translator.until_ready().await;
    translator.stop().await;

    for count in 30..60 {
        topic.count(count % 3, count.into()).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&(0..60).collect::<Vec<_>>()).await;
    for partition in 0..3 {
        log.until_stored(&group, &topic.name, partition, 20).await;
    }
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn one_consumer_reads_several_topics() {
    let (log, one, two, group) = (Log::create().await, Topic::create(2).await, Topic::create(3).await, group());
    one.count(1, 1).await;
    two.count(2, 2).await;
    let translator = Running::start(&log, &group, &[&one, &two]);
    log.until_counts(&[1, 2]).await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn messages_of_a_key_keep_their_order() {
    let (log, topic, group) = (Log::create().await, Topic::create(4).await, group());
    let products: Vec<_> = (0..4).map(|_| Uuid::now_v7()).collect();
    let translator = Running::start(&log, &group, &[&topic]);
    for count in 0..100 {
        for (partition, product) in (0..).zip(&products) {
            topic.count_of(*product, partition, count).await;
        }
    }
    eventually("all are there", || async { (log.counts().await.len() >= 400).then_some(()) }).await;
    let mut by_product: HashMap<_, Vec<_>> = HashMap::new();
    for (product, count) in log.events().await {
        by_product.entry(product).or_default().push(count);
    }
    for product in products {
        assert_eq!(by_product[&product], (0..100).collect::<Vec<_>>());
    }
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn backlog_larger_than_the_queue_keeps_its_order() {
    const MESSAGES: i64 = 60_000;
    let (log, topic, group) = (Log::create().await, Topic::create(2).await, group());
    let (product, producer) = (Uuid::now_v7(), producer(&[("queue.buffering.max.messages", "1000000")]));
    let sends: Vec<_> = (0..MESSAGES)
        .map(|count| {
            let value = message(product, count);
            let record = FutureRecord::<[u8], String>::to(&topic.name).partition(i32::from(count % 20 == 0)).payload(&value);
            producer.send_result(record).map_err(|(error, _)| error).expect("room in the queue")
        })
        .collect();
    for sent in join_all(sends).await {
        sent.expect("an answer").expect("the broker takes it");
    }
    let started = Instant::now();
    let translator = Running::start(&log, &group, &[&topic]);
    eventually("all are there", || async {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&log.pool).await.expect("the log");
        (count >= MESSAGES).then_some(())
    })
    .await;
    println!("{MESSAGES} messages in {:?}", started.elapsed());
    let counts = log.counts().await;
    let (rare, many): (Vec<_>, Vec<_>) = counts.into_iter().partition(|count| count % 20 == 0);
    assert_eq!(rare, (0..MESSAGES).step_by(20).collect::<Vec<_>>());
    assert_eq!(many, (0..MESSAGES).filter(|count| count % 20 != 0).collect::<Vec<_>>());
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn offsets_committed_to_kafka_do_not_matter() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    for count in 0..5 {
        topic.count(0, count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[0, 1, 2, 3, 4]).await;
    translator.stop().await;

    // Kafka has the last offset. Someone commits the first one.
    let mut config = ClientConfig::new();
    let tool: BaseConsumer =
        config.set("bootstrap.servers", kafka_bootstrap_servers()).set("group.id", &group).create().expect("a consumer");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition(&topic.name, 0);
    let committed = tool.committed_offsets(offsets.clone(), Duration::from_secs(10)).expect("an answer");
    assert_eq!(committed.find_partition(&topic.name, 0).map(|found| found.offset()), Some(Offset::Offset(5)));
    offsets.set_partition_offset(&topic.name, 0, Offset::Offset(0)).expect("an offset");
    tool.commit(&offsets, CommitMode::Sync).expect("a commit");

    let translator = Running::start(&log, &group, &[&topic]);
    topic.count(0, 5).await;
    log.until_counts(&[0, 1, 2, 3, 4, 5]).await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn translators_that_die_lose_and_repeat_nothing() {
    let (log, topic, group) = (Log::create().await, Topic::create(6).await, group());
    let mut settings = TranslatorSettings::new(brokers(), &group);
    settings.session_timeout = Duration::from_secs(6);
    let start = || Running::start_with(settings.clone(), store(&log.database), &[&topic]);
    let first = start();
    let mut others = vec![];
    for count in 0..1_200 {
        topic.count(count % 6, count.into()).await;
        match count {
            200 | 400 => others.push(start()),
            700 => others.remove(0).kill(),
            900 => others.remove(0).stop().await,
            _ => {}
        }
    }
    log.until_counts(&(0..1_200).collect::<Vec<_>>()).await;
    first.stop().await;
    assert_eq!(log.counts().await.len(), 1_200);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn overtaken_translator_appends_nothing() {
    let (log, topic, group) = (Log::create().await, Topic::create(2).await, group());
    for count in 0..3 {
        topic.count(0, count).await;
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_stored(&group, &topic.name, 0, 3).await;

    // Another translator, which has got the partition, translates the next two. The first translator does not know.
    let source = SourcePartition { consumer: &group, topic: &topic.name, partition: 0 };
    let event = |count| (ShelfEvent::Counted { product_id: Uuid::now_v7(), count }, Metadata::default());
    let moved = log.store.append_from(source, Some(3), 5, &[event(3), event(4)]).await.expect("the log");
    assert!(matches!(moved, Translated::Appended { .. }), "{moved:?}");
    for count in 3..8 {
        topic.count(0, count).await;
        topic.count(1, 100 + count).await;
    }
    log.until_counts(&[0, 1, 2, 3, 4, 5, 6, 7, 103, 104, 105, 106, 107]).await;
    translator.until_ready().await;

    // An operator sets the offset back, and the messages are translated again.
    sqlx::query("UPDATE source_offset SET next_offset = 6 WHERE consumer = $1 AND partition = 0")
        .bind(&group)
        .execute(&log.pool)
        .await
        .expect("the log");
    topic.count(0, 8).await;
    log.until_counts(&[0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 103, 104, 105, 106, 107]).await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn gaps_after_transactions_are_skipped() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    let producer = producer(&[("transactional.id", &topic.name)]);
    let timeout = Duration::from_secs(20);
    producer.init_transactions(timeout).expect("transactions");
    let translator = Running::start(&log, &group, &[&topic]);
    let value = |count| message(Uuid::now_v7(), count);
    for (count, commit) in [(1, true), (2, false), (3, true), (4, false), (5, true)] {
        producer.begin_transaction().expect("a transaction");
        let value = value(count);
        producer.send(FutureRecord::<[u8], String>::to(&topic.name).payload(&value), timeout).await.expect("the broker takes it");
        if commit {
            producer.commit_transaction(timeout).expect("a commit");
        } else {
            producer.abort_transaction(timeout).expect("an abort");
        }
    }
    log.until_counts(&[1, 3, 5]).await;
    // Behind the last message is the end of its transaction. Retention may delete it, and the stored offset must not lie before it then.
    log.until_stored(&group, &topic.name, 0, 10).await;

    producer.begin_transaction().expect("a transaction");
    let values: Vec<_> = (0..3_000).map(value).collect();
    let sends = values.iter().map(|value| producer.send(FutureRecord::<[u8], String>::to(&topic.name).payload(value), timeout));
    for sent in join_all(sends).await {
        sent.expect("the broker takes it");
    }
    producer.abort_transaction(timeout).expect("an abort");
    log.until_stored(&group, &topic.name, 0, 3_011).await;
    let inspector = kafka::client::Inspector::new(&brokers()).expect("settings that librdkafka takes");
    let lags = kafka::lags(&inspector, &log.store, &group, vec![topic.name.clone()]).await.expect("the lag");
    assert_eq!(lags[&topic.name].lag, 0);
    translator.stop().await;

    // As after retention. A restart does not find its offset before the beginning.
    let mut until = TopicPartitionList::new();
    until.add_partition_offset(&topic.name, 0, Offset::End).expect("an offset");
    admin().delete_records(&until, &rdkafka::admin::AdminOptions::new()).await.expect("deleted");
    let translator = Running::start(&log, &group, &[&topic]);
    topic.count(0, 6).await;
    log.until_counts(&[1, 3, 5, 6]).await;
    translator.until_ready().await;
    // An open transaction is waited for.
    producer.begin_transaction().expect("a transaction");
    let open = value(7);
    producer.send(FutureRecord::<[u8], String>::to(&topic.name).payload(&open), timeout).await.expect("the broker takes it");
    topic.count(0, 8).await;
    assert_eq!(log.stored_offset(&group, &topic.name, 0).await, Some(3_012));
    producer.commit_transaction(timeout).expect("a commit");
    log.until_counts(&[1, 3, 5, 6, 7, 8]).await;
    log.until_stored(&group, &topic.name, 0, 3_015).await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn every_compression_is_read() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    for (count, compression) in (0..).zip(["none", "gzip", "snappy", "lz4", "zstd"]) {
        let value = message(Uuid::now_v7(), count) + &" ".repeat(2_000);
        let record = FutureRecord::<[u8], String>::to(&topic.name).payload(&value);
        producer(&[("compression.type", compression)]).send(record, Duration::from_secs(20)).await.expect("the broker takes it");
    }
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[0, 1, 2, 3, 4]).await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn event_carries_the_trace_and_place_of_its_message() {
    let (log, topic, group) = (Log::create().await, Topic::create(1).await, group());
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let send = |count, headers| {
        let (topic, value) = (&topic, message(Uuid::now_v7(), count));
        async move { topic.send(0, None, Some(value.as_bytes()), headers).await }
    };
    send(0, Some(headers(&[("traceparent", traceparent)]))).await;
    send(1, Some(headers(&[("traceparent", "nonsense")]))).await;
    send(2, None).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[0, 1, 2]).await;
    let metadata = log.metadata().await;
    assert_eq!(metadata[0]["traceparent"], traceparent);
    assert_ne!(metadata[1]["traceparent"], "nonsense");
    for (offset, metadata) in metadata.iter().enumerate() {
        assert_eq!(metadata["causation_id"], format!("{}/0/{offset}", topic.name));
    }
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn translator_waits_for_the_log() {
    let (log, topic, group) = (Log::create().await, Topic::create(2).await, group());
    topic.count(0, 0).await;
    let translator = Running::start(&log, &group, &[&topic]);
    log.until_counts(&[0]).await;

    // No role may connect, and every connection is ended, also those of the owner.
    let allow_connections = |allow: bool| {
        let (options, server) = (log.database.options(), log.database.options().database("postgres"));
        async move {
            let name = options.get_database().expect("a name");
            let server = sqlx::PgPool::connect_with(server).await.expect("the server");
            sqlx::query(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allow}")).execute(&server).await.expect("allowed");
            if !allow {
                let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
                sqlx::query(all).bind(name).execute(&server).await.expect("allowed");
            }
        }
    };
    allow_connections(false).await;
    for count in 1..11 {
        topic.count(i32::from(count > 5), count).await;
    }
    let why = translator.until_waiting_for("the log").await;
    assert!(why.contains(&topic.name), "{why}");
    allow_connections(true).await;
    log.until_counts(&(0..11).collect::<Vec<_>>()).await;
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn translator_waits_for_the_broker_until_shutdown() {
    let log = Log::create().await;
    let brokers = Brokers::new("127.0.0.1:9", "test");
    let topic = Topic::create(1).await;
    let translator = Running::start_with(TranslatorSettings::new(brokers, group()), store(&log.database), &[&topic]);
    assert_eq!(translator.until_waiting_for("broker").await, "the broker at 127.0.0.1:9");
    let started = Instant::now();
    translator.stop().await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn missing_topic_is_named_and_read_later() {
    let (log, other, group) = (Log::create().await, Topic::create(1).await, group());
    let missing = Topic::named(format!("{}-later", other.name));
    let translator = Running::start(&log, &group, &[&missing, &other]);
    other.count(0, 1).await;
    log.until_counts(&[1]).await;
    let why = translator.until_waiting_for("do not exist").await;
    assert!(
        why.contains(&missing.name) && why.contains(&missing.dead_letters_name()) && !why.contains(&format!("{},", other.name)),
        "{why}"
    );
    create_topic(&missing.name, 1).await;
    missing.create_dead_letters().await;
    missing.count(0, 2).await;
    log.until_counts(&[1, 2]).await;
    translator.until_ready().await;
    translator.stop().await;
}

/// A client that gets metadata without brokers forgets all of them, and never connects again. Each kind of client has its own way out.
const REPLACED_AFTER: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn consumer_that_forgot_its_brokers_is_replaced() {
    let (log, topic, group, broker) = (Log::create().await, Topic::create(1).await, group(), forgetful::Forgetful::start().await);
    let brokers = Brokers::new(&broker.address, "test").replaced_after(REPLACED_AFTER);
    topic.count(0, 1).await;
    let translator = Running::start_with(TranslatorSettings::new(brokers, &group), store(&log.database), &[&topic]);
    log.until_counts(&[1]).await;
    broker.fence(true);
    translator.until_waiting_for("the broker at").await;
    broker.fence(false);
    topic.count(0, 2).await;
    log.until_counts(&[1, 2]).await;
    translator.until_ready().await;
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn publisher_that_forgot_its_brokers_is_replaced() {
    let (topic, broker) = (Topic::create(1).await, forgetful::Forgetful::start().await);
    let brokers = Brokers::new(&broker.address, "test").replaced_after(REPLACED_AFTER);
    let settings = kafka::PublisherSettings { message_timeout: Duration::from_secs(1), ..kafka::PublisherSettings::new(brokers) };
    let publisher = kafka::Publisher::new(&settings).expect("a producer");
    let (key, source, event_type, traceparent, time) = ("cart", "/test", "test", None, None);
    let event = kafka::CloudEvent { key, id: "1", source, event_type, time, traceparent, causation_id: None, json: b"{}" };
    eventually("it is sent", || async { publisher.send(&topic.name, &event).await.ok() }).await;
    broker.fence(true);
    eventually("it has asked for metadata, and has no broker", || async {
        // It asks for metadata. Whether there is an answer does not matter.
        let _ = publisher.ready(&topic.name).await;
        publisher.send(&topic.name, &event).await.err()
    })
    .await;
    broker.fence(false);
    eventually("it is sent", || async { publisher.send(&topic.name, &event).await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn half_open_connection_costs_seconds() {
    let (log, topic, group, broker) = (Log::create().await, Topic::create(1).await, group(), forgetful::Forgetful::start().await);
    topic.count(0, 1).await;
    let settings = TranslatorSettings::new(Brokers::new(&broker.address, "test"), &group);
    let translator = Running::start_with(settings, store(&log.database), &[&topic]);
    log.until_counts(&[1]).await;
    translator.until_ready().await;
    broker.fall_silent();
    let started = Instant::now();
    topic.count(0, 2).await;
    log.until_counts(&[1, 2]).await;
    // 61 s with librdkafka's own timeout.
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    translator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
async fn lost_answer_to_a_join_costs_seconds() {
    let (log, topic, group, broker) = (Log::create().await, Topic::create(1).await, group(), forgetful::Forgetful::start().await);
    topic.count(0, 1).await;
    let mut settings = TranslatorSettings::new(Brokers::new(&broker.address, "test"), &group);
    settings.session_timeout = Duration::from_secs(6);
    broker.lose_join();
    let started = Instant::now();
    let translator = Running::start_with(settings, store(&log.database), &[&topic]);
    log.until_counts(&[1]).await;
    assert!(broker.has_lost_join());
    // 5 minutes with librdkafka's own interval between polls, which is also its limit for this answer.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    translator.stop().await;
}
