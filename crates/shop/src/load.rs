//! A steady load: commands and queries over HTTP, inventories and price changes over Kafka.
//!
//! A request that fails is not sent again, because services and database are being killed. The answers are kept for the comparison with the
//! log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::services;
use embedded::error::{Error, chain};

/// The number of shoppers at a time.
const SHOPPERS: u64 = 12;
/// Few products: a price change then affects many carts.
const PRODUCTS: usize = 24;
/// A frozen process does not answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
const QUERY_TIMEOUT: Duration = Duration::from_secs(4);
/// Nobody kills Kafka.
const SEND_DEADLINE: Duration = Duration::from_secs(60);

/// The current ports of the services. A restarted process has another port.
#[derive(Debug, Clone)]
pub struct Ports {
    /// The port of cart-commands.
    pub commands: Arc<AtomicU16>,
    /// The ports of the cart-projections replicas.
    pub projections: Vec<Arc<AtomicU16>>,
}

/// The answers that the load got.
#[derive(Debug, Default)]
pub struct Told {
    entries: Mutex<Entries>,
    commands: AtomicU64,
}

/// The answers, for the comparison with the log.
#[derive(Debug, Default, Clone)]
pub struct Entries {
    /// The carts of acknowledged commands, by the answered position.
    pub acknowledged: BTreeMap<i64, Uuid>,
    /// Items that a query did not show although it named their position. They must have left their carts.
    pub unseen: Vec<Unseen>,
    /// The inventories of each product that the broker acknowledged, in order.
    pub inventories: BTreeMap<Uuid, Vec<u64>>,
    /// The new prices of each product that the broker acknowledged, in order.
    pub prices: BTreeMap<Uuid, Vec<String>>,
    /// The number of each answer.
    pub answers: BTreeMap<String, u64>,
    /// Answers that must not occur.
    pub surprises: Vec<String>,
}

/// An item that was not shown.
#[derive(Debug, Clone)]
pub struct Unseen {
    /// The item's cart.
    pub cart: Uuid,
    /// The item.
    pub item: Uuid,
    /// The request and its answer.
    pub request: String,
}

impl Told {
    /// The answers so far.
    #[must_use]
    pub fn entries(&self) -> Entries {
        self.lock().clone()
    }

    /// The number of acknowledged commands.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// The number of acknowledged messages.
    #[must_use]
    pub fn messages(&self) -> usize {
        let entries = self.lock();
        entries.inventories.values().map(Vec::len).sum::<usize>() + entries.prices.values().map(Vec::len).sum::<usize>()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, product: Uuid, message: &Value) {
        let mut entries = self.lock();
        if let Some(inventory) = message["inventory"].as_u64() {
            entries.inventories.entry(product).or_default().push(inventory);
        }
        if let Some(price) = message["new_price"].as_str() {
            entries.prices.entry(product).or_default().push(price.to_owned());
        }
    }

    fn answered(&self, what: &str, answer: impl std::fmt::Display) {
        *self.lock().answers.entry(format!("{what}: {answer}")).or_default() += 1;
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Result<(), Error>>,
}

impl Load {
    /// Starts shoppers and suppliers. The seed determines what they do.
    ///
    /// # Errors
    /// A client cannot be made.
    pub fn start(seed: u64, ports: &Ports, kafka: &str, topics: [String; 2], told: &Arc<Told>) -> Result<Self, Error> {
        let (stop, stopped) = watch::channel(false);
        let client = |timeout| reqwest::Client::builder().timeout(timeout).build().map_err(|error| Error::Http(chain(&error)));
        let (commands, queries) = (client(COMMAND_TIMEOUT)?, client(QUERY_TIMEOUT)?);
        let products: Arc<[Uuid]> = (0..PRODUCTS).map(|_| Uuid::now_v7()).collect();
        let mut tasks = JoinSet::new();
        for shopper in 0..SHOPPERS {
            let shopper = Shopper {
                commands: commands.clone(),
                queries: queries.clone(),
                ports: ports.clone(),
                products: products.clone(),
                told: told.clone(),
                random: StdRng::seed_from_u64(seed ^ shopper << 32),
                left: vec![],
                stopped: stopped.clone(),
            };
            tasks.spawn(shopper.shop());
        }
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", kafka)
            .set("enable.idempotence", "true")
            .create()
            .map_err(|error| unsent(&error))?;
        for (kind, topic) in [Kind::Inventory, Kind::Price].into_iter().zip(topics) {
            let supplier = Supplier {
                producer: producer.clone(),
                topic,
                kind,
                products: products.clone(),
                told: told.clone(),
                random: StdRng::seed_from_u64(seed ^ (kind as u64 + SHOPPERS) << 32),
            };
            tasks.spawn(supplier.supply(stopped.clone()));
        }
        Ok(Self { stop, tasks })
    }

    /// Stops after the requests that are running.
    ///
    /// # Errors
    /// A part of the load ended early.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|error| Error::Refused(format!("a part of the load ended early: {error}")))??;
        }
        Ok(())
    }
}

struct Shopper {
    commands: reqwest::Client,
    queries: reqwest::Client,
    ports: Ports,
    products: Arc<[Uuid]>,
    told: Arc<Told>,
    random: StdRng,
    /// Open carts, with the items that were added to them.
    left: Vec<(Uuid, Vec<Uuid>)>,
    stopped: watch::Receiver<bool>,
}

impl Shopper {
    async fn shop(mut self) -> Result<(), Error> {
        while !*self.stopped.borrow() {
            let returns = !self.left.is_empty() && self.random.random_bool(0.3);
            let again = if returns { self.left.pop() } else { None };
            let (cart, mut items) = again.unwrap_or_else(|| (Uuid::now_v7(), vec![]));
            for _ in 0..self.random.random_range(1..=4) {
                self.add(cart, &mut items).await;
                if self.random.random_bool(0.15)
                    && let Some(item) = items.choose(&mut self.random).copied()
                {
                    self.command(&format!("removeitem/{cart}"), json!({"cart_id": cart, "item_id": item})).await;
                }
            }
            if self.random.random_bool(0.07) {
                self.command(&format!("clearcart/{cart}"), json!({})).await;
                self.add(cart, &mut items).await;
            }
            if self.random.random_bool(0.55) {
                self.command(&format!("submitcart/{cart}"), json!({"cart_id": cart})).await;
            } else {
                self.left.insert(0, (cart, items));
                self.left.truncate(10);
            }
        }
        Ok(())
    }

    async fn add(&mut self, cart: Uuid, items: &mut Vec<Uuid>) {
        let (item, product) = (Uuid::now_v7(), self.products.choose(&mut self.random).copied().unwrap_or_default());
        let price = format!("{}.{:02}", self.random.random_range(0..500), self.random.random_range(0..100));
        let body = json!({
            "cart_id": cart, "item_id": item, "product_id": product, "description": format!("A thing, {price} €"),
            "image": "thing.png", "price": price,
        });
        items.push(item);
        if let Some(position) = self.command(&format!("additem/{cart}"), body).await
            && self.random.random_bool(0.3)
        {
            let route =
                if self.random.random_bool(0.7) { format!("{cart}/cartitemsfromdb") } else { format!("cartswithproducts/{product}") };
            self.query(&format!("{route}?min_position={position}&timeout=2"), cart, item).await;
        }
    }

    /// Answers the position of an acknowledged command.
    async fn command(&mut self, route: &str, body: Value) -> Option<i64> {
        self.pause().await;
        let what = route.split('/').next().unwrap_or_default().to_owned();
        let url = format!("{}/{route}", services::url(self.ports.commands.load(Ordering::Relaxed)));
        let answer = async {
            let answer = self.commands.post(&url).json(&body).send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        };
        let (status, text) = match answer.await {
            Ok(answer) => answer,
            Err(_) => {
                self.told.answered(&what, "nothing");
                return None;
            }
        };
        self.told.answered(&what, status);
        match status {
            StatusCode::OK => {
                let Ok((cart, position)) = serde_json::from_str::<(Uuid, i64)>(&text) else {
                    self.told.lock().surprises.push(format!("POST {url} was answered {text}"));
                    return None;
                };
                self.told.commands.fetch_add(1, Ordering::Relaxed);
                self.told.lock().acknowledged.insert(position, cart);
                Some(position)
            }
            // A refusal, a cart whose first Add Item failed, an unavailable log, or a request that a busy machine did not read in time.
            StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => None,
            _ => {
                self.told.lock().surprises.push(format!("POST {url} was answered {status}: {text}"));
                None
            }
        }
    }

    /// Queries a random replica. The answer must hold the item, unless the item has left its cart.
    async fn query(&mut self, route: &str, cart: Uuid, item: Uuid) {
        let replica = self.random.random_range(0..self.ports.projections.len());
        let url = format!("{}/{route}", services::url(self.ports.projections[replica].load(Ordering::Relaxed)));
        let answer = async {
            let answer = self.queries.get(&url).send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        };
        let Ok((status, text)) = answer.await else {
            self.told.answered("query", "nothing");
            return;
        };
        self.told.answered("query", status);
        match status {
            StatusCode::OK if text.contains(&item.to_string()) => {}
            StatusCode::OK => self.told.lock().unseen.push(Unseen { cart, item, request: format!("GET {url}: {text}") }),
            // A process that was frozen finds that the request took too long to arrive.
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => {}
            _ => self.told.lock().surprises.push(format!("GET {url} was answered {status}: {text}")),
        }
    }

    /// Pauses between two commands, because the load must leave the machine some capacity.
    async fn pause(&mut self) {
        let pause = Duration::from_millis(self.random.random_range(50..250));
        tokio::time::sleep(pause).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Inventory,
    Price,
}

/// Sends inventories or price changes over Kafka.
struct Supplier {
    producer: FutureProducer,
    topic: String,
    kind: Kind,
    products: Arc<[Uuid]>,
    told: Arc<Told>,
    random: StdRng,
}

impl Supplier {
    async fn supply(mut self, stopped: watch::Receiver<bool>) -> Result<(), Error> {
        let mut number = 0_u64;
        while !*stopped.borrow() {
            number += 1;
            let product = self.products.choose(&mut self.random).copied().unwrap_or_default();
            let (message, pause) = match self.kind {
                Kind::Inventory => {
                    // Sometimes out of stock, until the next message.
                    let inventory = if self.random.random_bool(0.1) { 0 } else { number };
                    (json!({"product_uuid": product, "inventory": inventory}), self.random.random_range(50..400))
                }
                Kind::Price => {
                    let price = |number: u64| format!("{}.{:02}", number / 100, number % 100);
                    let message = json!({"product_uuid": product, "old_price": price(number - 1), "new_price": price(number)});
                    (message, self.random.random_range(200..900))
                }
            };
            let (key, payload) = (product.to_string(), message.to_string());
            let record = FutureRecord::to(&self.topic).key(&key).payload(&payload);
            self.producer.send(record, SEND_DEADLINE).await.map_err(|(error, _)| unsent(&error))?;
            self.told.sent(product, &message);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }
}

fn unsent(error: &rdkafka::error::KafkaError) -> Error {
    Error::Kafka { what: "send to Kafka".to_owned(), reason: error.to_string() }
}
