//! A steady load: commands and queries over HTTP, inventories and price changes over Kafka.
//!
//! A request that fails is not sent again, because services and servers are being disturbed. The history keeps what was asked and answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::history::{Answer, Command, History, Unseen};
use crate::services;
use crate::suppliers::{Kind, Orders, Supplier};
use embedded::error::{Error, chain};

/// The number of shoppers at a time.
const SHOPPERS: u64 = 12;
/// Few products: a price change then affects many carts.
const PRODUCTS: usize = 24;
/// A frozen process does not answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
const QUERY_TIMEOUT: Duration = Duration::from_secs(4);

/// The current ports of the services. A restarted process has another port.
#[derive(Debug, Clone)]
pub struct Ports {
    /// The ports of the cart-commands replicas.
    pub commands: Vec<Arc<AtomicU16>>,
    /// The ports of the cart-projections replicas.
    pub projections: Vec<Arc<AtomicU16>>,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    /// The orders for the supplier of inventories; see [`Load::pause_inventories`] and [`Load::send_inventories`].
    inventories: watch::Sender<Orders>,
    tasks: JoinSet<Result<(), Error>>,
}

impl Load {
    /// Starts shoppers and suppliers. The seed determines what they do.
    ///
    /// # Errors
    /// A client cannot be made.
    pub fn start(seed: u64, ports: &Ports, kafka: &str, topics: [String; 2], history: &Arc<History>) -> Result<Self, Error> {
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
                history: history.clone(),
                random: StdRng::seed_from_u64(seed ^ shopper << 32),
                left: vec![],
                stopped: stopped.clone(),
            };
            tasks.spawn(shopper.shop());
        }
        let inventories = watch::Sender::new(Orders::default());
        for (kind, topic) in [Kind::Inventory, Kind::Price].into_iter().zip(topics) {
            let random = StdRng::seed_from_u64(seed ^ (kind as u64 + SHOPPERS) << 32);
            let supplier = Supplier::new(kafka, topic, kind, products.clone(), history.clone(), random)?;
            // Only inventories are paused.
            let what = if kind == Kind::Inventory { inventories.clone() } else { watch::Sender::new(Orders::default()) };
            tasks.spawn(supplier.supply(stopped.clone(), what));
        }
        Ok(Self { stop, inventories, tasks })
    }

    /// Sends no more inventories until [`resume_inventories`](Self::resume_inventories), and waits until the last one is sent or given up.
    pub async fn pause_inventories(&self) {
        self.inventories.send_modify(|what| what.paused = true);
        self.until(|what| !what.sending).await;
    }

    /// Sends this many inventories without a pause between them, and waits until the last one is sent or given up. `remade` is that of
    /// [`Sent`](crate::history::Sent::remade).
    pub async fn send_inventories(&self, count: usize, remade: Option<u32>) {
        self.inventories.send_modify(|what| (what.at_once, what.remade) = (count, remade));
        self.until(|what| what.at_once == 0 && !what.sending).await;
    }

    /// Sends inventories as before [`pause_inventories`](Self::pause_inventories).
    pub fn resume_inventories(&self) {
        self.inventories.send_modify(|what| what.paused = false);
    }

    async fn until(&self, is_so: impl Fn(&Orders) -> bool) {
        // We have the sender, so the channel stays open.
        let _ = self.inventories.subscribe().wait_for(|what| is_so(what)).await;
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
    history: Arc<History>,
    random: StdRng,
    /// Open carts, with the items that were added to them.
    left: Vec<(Uuid, Vec<Uuid>)>,
    stopped: watch::Receiver<bool>,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
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
                    self.command("removeitem", cart, json!({"cart_id": cart, "item_id": item})).await;
                }
            }
            if self.random.random_bool(0.07) {
                self.command("clearcart", cart, json!({})).await;
                self.add(cart, &mut items).await;
            }
            let submits = self.random.random_bool(0.55);
            if submits && self.command("submitcart", cart, json!({"cart_id": cart})).await != Answer::Unknown {
                continue;
            }
            // A shopper who got no answer comes back, too.
            self.left.insert(0, (cart, items));
            self.left.truncate(10);
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
        if let Answer::Done(position) = self.command("additem", cart, body).await
            && self.random.random_bool(0.3)
        {
            let route =
                if self.random.random_bool(0.7) { format!("{cart}/cartitemsfromdb") } else { format!("cartswithproducts/{product}") };
            self.query(&format!("{route}?min_position={position}&timeout=2"), cart, item).await;
        }
    }

    async fn command(&mut self, route: &str, cart: Uuid, body: Value) -> Answer {
        self.pause().await;
        let port = self.ports.commands.choose(&mut self.random).map(|port| port.load(Ordering::Relaxed)).unwrap_or_default();
        let url = format!("{}/{route}/{cart}", services::url(port));
        let trace = Uuid::new_v4().simple().to_string();
        let request =
            self.commands.post(&url).header("traceparent", format!("00-{trace}-{:016x}-01", self.random.random_range(1..u64::MAX)));
        let sent = Instant::now();
        let answered = async {
            let answer = request.json(&body).send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        };
        let answer = match answered.await {
            Ok((status, text)) => {
                self.history.answered(route, status);
                self.read(&url, status, &text)
            }
            Err(_) => {
                self.history.answered(route, "nothing");
                Answer::Unknown
            }
        };
        self.history.command(Command { route: route.to_owned(), cart, trace, sent, answer: answer.clone() });
        answer
    }

    fn read(&self, url: &str, status: StatusCode, text: &str) -> Answer {
        let code = serde_json::from_str::<Refusal>(text).map(|refusal| refusal.code);
        match (status, code) {
            (StatusCode::OK, _) => match serde_json::from_str::<(Uuid, i64)>(text) {
                Ok((_, position)) => Answer::Done(position),
                Err(_) => {
                    self.history.surprise(format!("POST {url} was answered {text}"));
                    Answer::Unknown
                }
            },
            (StatusCode::SERVICE_UNAVAILABLE, Ok(code)) if code == "outcome_unknown" => Answer::Unknown,
            // A refusal, a cart whose first Add Item failed, an unavailable log, or a request that a busy machine did not read in time.
            (StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT, Ok(code)) => {
                Answer::NotDone(format!("{} {code}", status.as_u16()))
            }
            _ => {
                self.history.surprise(format!("POST {url} was answered {status}: {text}"));
                Answer::Unknown
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
            self.history.answered("query", "nothing");
            return;
        };
        self.history.answered("query", status);
        match status {
            StatusCode::OK if text.contains(&item.to_string()) => {}
            // A cart may be unknown after a restore that lost it.
            StatusCode::OK | StatusCode::NOT_FOUND => {
                self.history.unseen(Unseen { cart, item, request: format!("GET {url}: {status} {text}") });
            }
            // A process that was frozen finds that the request took too long to arrive.
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => {}
            _ => self.history.surprise(format!("GET {url} was answered {status}: {text}")),
        }
    }

    /// Pauses between two commands, because the load must leave the machine some capacity.
    async fn pause(&mut self) {
        let pause = Duration::from_millis(self.random.random_range(50..250));
        tokio::time::sleep(pause).await;
    }
}
