//! Inventory messages from Kafka into the log by inventory-translator, built for release, beside the floor with one connection.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cart_events::ProductId;
use embedded::kafka::{Topic, create_topics};
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use shop::services::TRANSLATOR;
use uuid::Uuid;

use crate::{
    bench::{Bench, kill},
    database::{LOG, Products},
    measure::Sample,
    place::{Place, rotated},
    report::{Contender, Key, Report},
    scenarios::{KAFKA_IN, thousands},
    work::Work,
};

const DEADLINE: Duration = Duration::from_secs(300);

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let place = Place::fill(bench, bench.sizes.before.first().copied().unwrap_or_default(), false).await?;
    for round in 0..bench.sizes.rounds {
        bench.say(format!("kafka: round {} of {}, {} messages", round + 1, bench.sizes.rounds, thousands(bench.sizes.messages)));
        for contender in rotated(&[Contender::Cartlog, Contender::Floor], round) {
            let sample = if *contender == Contender::Floor {
                place.measure(*contender, Work::one_item_each(Products::Many(1_000), 1), 1, bench.sizes.length).await?
            } else {
                place.again(*contender).await?;
                translate(bench, &place).await?
            };
            report.add(Key::new("kafka", KAFKA_IN, 1, *contender), sample);
        }
    }
    Ok(())
}

/// Measures from the first event in the log to the last. All messages are in the topic before the translator starts.
async fn translate(bench: &Bench, place: &Place) -> Result<Sample> {
    let messages = bench.sizes.messages;
    let servers = bench.kafka.as_deref().context("--kafka is needed")?.to_owned();
    let topics = ["inventories", "price-changes"].map(|name| format!("{name}-{}", Uuid::now_v7().simple()));
    let dead_letters = topics.clone().map(|topic| format!("{topic}.dead-letters"));
    let all: Vec<_> = topics.iter().chain(&dead_letters).map(|name| Topic { name, partitions: 6, max_message_bytes: None }).collect();
    create_topics(&servers, &all).await?;
    let [inventories, price_changes] = topics;
    let (to, topic) = (servers.clone(), inventories.clone());
    tokio::task::spawn_blocking(move || produce(&to, &topic, messages)).await??;

    let head = LOG.head(&place.ours.pool).await?;
    let environment = vec![
        ("KAFKA_BOOTSTRAP_SERVERS".to_owned(), servers),
        ("CARTLOG_CONSUMER_GROUP".to_owned(), inventories.clone()),
        ("CARTLOG_INVENTORIES_TOPIC".to_owned(), inventories),
        ("CARTLOG_PRICE_CHANGES_TOPIC".to_owned(), price_changes),
    ];
    let service = bench.start(TRANSLATOR, "bench", &place.ours, environment).await?;
    let started = Instant::now();
    let seconds = loop {
        // Positions have no gaps.
        let done: i64 = sqlx::query_scalar("SELECT max(event_id) - $1 FROM event").bind(head).fetch_one(&place.ours.pool).await?;
        if u64::try_from(done)? >= messages {
            let span = "SELECT extract(epoch FROM max(inserted_at) - min(inserted_at))::float8 FROM event WHERE event_id > $1";
            break sqlx::query_scalar::<_, f64>(span).bind(head).fetch_one(&place.ours.pool).await?;
        }
        if started.elapsed() > DEADLINE {
            bail!("after {} s, {done} of {messages} messages were in the log", DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    kill(vec![service]).await?;
    Ok(Sample::of_whole(messages as f64, Duration::from_secs_f64(seconds)))
}

fn produce(servers: &str, topic: &str, messages: u64) -> Result<()> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("linger.ms", "20")
        .set("queue.buffering.max.messages", "1000000")
        .create()?;
    let products: Vec<_> = (0..1_000).map(|_| ProductId::new().to_string()).collect();
    for (n, product) in (1..=messages).zip(products.iter().cycle()) {
        let payload = format!(r#"{{"product_uuid":"{product}","inventory":{n}}}"#);
        let mut record = BaseRecord::to(topic).key(product).payload(&payload);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    Ok(producer.flush(Duration::from_secs(60))?)
}
