//! The four services on a database of the bench, with topics of their own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use embedded::kafka::{Topic, create_topics};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{Consumer, StreamConsumer},
};
use shop::services::{COMMANDS, Kind, PROJECTIONS, PUBLISHER, Service, TRANSLATOR};
use uuid::Uuid;

use crate::{
    bench::Bench,
    database::{Database, LOG},
};

const PARTITIONS: i32 = 6;
/// How long anything may take that follows by itself. The read models of ten million events take minutes.
const DEADLINE: Duration = Duration::from_secs(900);

/// The four services.
pub(crate) struct System {
    pub(crate) database: Database,
    pub(crate) services: Vec<Service>,
    servers: String,
    published_carts: String,
}

impl System {
    /// Starts the services on a new log. `name` is part of the names of their logs.
    pub(crate) async fn start(bench: &Bench, name: &str) -> Result<Self> {
        Self::start_on(bench, name, bench.server.log().await?).await
    }

    /// Starts the services on a log that is filled already.
    pub(crate) async fn start_on(bench: &Bench, name: &str, database: Database) -> Result<Self> {
        let servers = bench.kafka.clone().context("--kafka is needed")?;
        Self::start_with(bench, name, database, servers).await
    }

    /// Starts the services on a log, with these brokers.
    pub(crate) async fn start_with(bench: &Bench, name: &str, database: Database, servers: String) -> Result<Self> {
        let run = Uuid::now_v7().simple();
        let topics = ["inventories", "price-changes", "published-carts"].map(|topic| format!("{topic}-{run}"));
        let dead_letters = [0, 1].map(|topic| format!("{}.dead-letters", topics[topic]));
        let all: Vec<_> =
            topics.iter().chain(&dead_letters).map(|name| Topic { name, partitions: PARTITIONS, max_message_bytes: None }).collect();
        create_topics(&servers, &all).await?;
        let [inventories, price_changes, published_carts] = topics;
        let environment: Vec<_> = [
            ("KAFKA_BOOTSTRAP_SERVERS", &servers),
            ("CARTLOG_CONSUMER_GROUP", &inventories),
            ("CARTLOG_INVENTORIES_TOPIC", &inventories),
            ("CARTLOG_PRICE_CHANGES_TOPIC", &price_changes),
            ("CARTLOG_PUBLISHED_CARTS_TOPIC", &published_carts),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .into();
        let start = async |kind| bench.start(kind, name, &database, environment.clone()).await;
        let services = vec![start(COMMANDS).await?, start(TRANSLATOR).await?, start(PROJECTIONS).await?, start(PUBLISHER).await?];
        Ok(Self { database, services, servers, published_carts })
    }

    pub(crate) fn url(&self, kind: Kind) -> Result<String> {
        let service = self.services.iter().find(|service| service.kind() == kind);
        Ok(service.with_context(|| format!("{} does not run", kind.name))?.url())
    }

    /// Reads the published carts from the beginning.
    pub(crate) fn consumer(&self) -> Result<StreamConsumer> {
        // Nothing is committed, but the setting is required.
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.servers)
            .set("group.id", &self.published_carts)
            .set("enable.auto.commit", "false")
            .create()?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(&self.published_carts, partition, Offset::Beginning)?;
        }
        consumer.assign(&partitions)?;
        Ok(consumer)
    }

    /// Repeats a statement about a position until it returns true.
    pub(crate) async fn until(&self, what: &str, sql: &str, position: i64) -> Result<()> {
        let started = Instant::now();
        while !sqlx::query_scalar::<_, bool>(sql).bind(position).fetch_one(&self.database.pool).await? {
            if started.elapsed() > DEADLINE {
                bail!("waited {} s in vain for {what}", DEADLINE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        Ok(())
    }

    /// Waits until every projection has applied the log as it is now, and every cart is published. Each question reads one row of an index,
    /// so it does not slow what it waits for.
    pub(crate) async fn until_settled(&self) -> Result<()> {
        let head = LOG.head(&self.database.pool).await?;
        let settled = "SELECT (SELECT coalesce(min(position), 0) >= $1 FROM checkpoint) AND (
                           SELECT position FROM todo WHERE automation = 'publish_cart' AND status = 'open' ORDER BY position LIMIT 1) IS NULL";
        self.until("the projections and the publications", settled, head).await
    }
}
