//! Kafka as services see it: an address that leads to the broker, and its topics.

use std::path::Path;

use embedded::distribution::KafkaDistribution;
use embedded::error::Error;
use embedded::forwarder::Forwarder;
use embedded::kafka::{Kafka, Topic, create_topics, delete_topics};
use uuid::Uuid;

const PARTITIONS: i32 = 3;

#[derive(Debug)]
pub(super) struct Broker {
    /// A broker of its own, with the services' address; none if the broker belongs to others and is not disturbed.
    own: Option<(Kafka, Forwarder)>,
    /// The `bootstrap.servers` of clients that are not disturbed.
    servers: String,
    topics: Topics,
}

/// The topics' names.
#[derive(Debug, Clone)]
pub(super) struct Topics {
    pub(super) inventories: String,
    pub(super) price_changes: String,
    pub(super) published_carts: String,
}

impl Broker {
    /// Starts a broker and creates the topics.
    pub(super) async fn start(distribution: &KafkaDistribution, directory: &Path) -> Result<Self, Error> {
        let address = Forwarder::before(0).await?;
        let (kafka, port) = Kafka::start_forwarded(distribution, directory, address.port()).await?;
        address.move_to(port);
        let servers = kafka.bootstrap_servers();
        Self { own: Some((kafka, address)), servers, topics: Topics::new() }.with_topics().await
    }

    /// Creates the topics on a broker that runs.
    pub(super) async fn on(servers: String) -> Result<Self, Error> {
        Self { own: None, servers, topics: Topics::new() }.with_topics().await
    }

    async fn with_topics(self) -> Result<Self, Error> {
        let Topics { inventories, price_changes, published_carts } = &self.topics;
        let dead_letters = [inventories, price_changes].map(|topic| format!("{topic}.dead-letters"));
        let all: Vec<_> = [inventories, price_changes, published_carts].into_iter().chain(&dead_letters).map(|name| topic(name)).collect();
        create_topics(&self.servers, &all).await?;
        Ok(self)
    }

    pub(super) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The `bootstrap.servers` of clients that are not disturbed.
    pub(super) fn servers(&self) -> &str {
        &self.servers
    }

    /// The `bootstrap.servers` of the services.
    pub(super) fn address(&self) -> String {
        match &self.own {
            Some((_, address)) => format!("127.0.0.1:{}", address.port()),
            None => self.servers.clone(),
        }
    }

    pub(super) fn own(&mut self) -> Result<&mut (Kafka, Forwarder), Error> {
        self.own.as_mut().ok_or_else(|| Error::Refused("the broker belongs to others".to_owned()))
    }

    /// A broker that could not write has ended.
    pub(super) async fn start_if_it_ended(&mut self) -> Result<(), Error> {
        let (kafka, _) = self.own()?;
        match kafka.process().exited()? {
            Some(_) => kafka.restart().await,
            None => Ok(()),
        }
    }

    /// Deletes the topic of inventories, and creates it again.
    pub(super) async fn remake_inventories(&self) -> Result<(), Error> {
        delete_topics(&self.servers, &[&self.topics.inventories]).await?;
        create_topics(&self.servers, &[topic(&self.topics.inventories)]).await
    }

    pub(super) async fn end(self) -> Result<(), Error> {
        match self.own {
            Some((mut kafka, _)) => kafka.kill().await,
            None => Ok(()),
        }
    }
}

impl Topics {
    fn new() -> Self {
        let run = Uuid::now_v7().simple();
        let [inventories, price_changes, published_carts] =
            ["inventories", "price-changes", "published-carts"].map(|topic| format!("{topic}-{run}"));
        Self { inventories, price_changes, published_carts }
    }
}

fn topic(name: &str) -> Topic<'_> {
    Topic { name, partitions: PARTITIONS, max_message_bytes: None }
}
