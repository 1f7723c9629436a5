//! The shop as its customers see it: HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::catalogue::Product;
use embedded::error::{Error, chain};

/// How many requests are under way at a time, so that the day is as long as the machine is slow and fails nowhere.
const AT_A_TIME: usize = 64;
/// Between two attempts, where the shop names no time.
const PAUSE: Duration = Duration::from_secs(1);

/// A client of the routes.
#[derive(Debug, Clone)]
pub struct Shop {
    client: reqwest::Client,
    door: Arc<Semaphore>,
    commands: String,
    projections: String,
    patience: Duration,
    lost: Arc<AtomicU64>,
}

/// What a command was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// Refused by the domain, with the word that says why.
    Refused(String),
    /// Refused as well, but an answer was lost before: it may have been carried out then.
    RefusedAfterAll(String),
}

/// An answer, and whether one before it was lost: what was asked may have been done then.
struct Attempted {
    answer: Response,
    after_a_loss: bool,
}

/// The answer of Cart Items.
#[derive(Debug, Clone, Deserialize)]
pub struct CartItems {
    pub total_price: String,
    pub data: Vec<CartItem>,
}

/// An item in a cart.
#[derive(Debug, Clone, Deserialize)]
pub struct CartItem {
    pub item_id: Uuid,
    pub product_id: Uuid,
    pub description: String,
    pub price: String,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
}

impl Shop {
    pub fn new(commands: &str, projections: &str, patience: Duration) -> Result<Self, Error> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().map_err(|error| Error::Http(chain(&error)))?;
        let door = Arc::new(Semaphore::new(AT_A_TIME));
        let (commands, projections) = (commands.to_owned(), projections.to_owned());
        Ok(Self { client, door, commands, projections, patience, lost: Arc::default() })
    }

    /// How many answers were lost on their way, and asked for again.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub async fn add(&self, cart: Uuid, item: Uuid, product: &Product) -> Result<Answer, Error> {
        let body = json!({
            "cart_id": cart, "item_id": item, "product_id": product.id, "description": product.description,
            "image": "picture.png", "price": product.price.to_string(),
        });
        self.command(&format!("additem/{cart}"), body).await
    }

    pub async fn remove(&self, cart: Uuid, item: Uuid) -> Result<Answer, Error> {
        self.command(&format!("removeitem/{cart}"), json!({"cart_id": cart, "item_id": item})).await
    }

    pub async fn clear(&self, cart: Uuid) -> Result<Answer, Error> {
        self.command(&format!("clearcart/{cart}"), json!({})).await
    }

    pub async fn submit(&self, cart: Uuid) -> Result<Answer, Error> {
        self.command(&format!("submitcart/{cart}"), json!({"cart_id": cart})).await
    }

    pub async fn items(&self, cart: Uuid) -> Result<CartItems, Error> {
        let route = format!("{}/{cart}/cartitems", self.projections);
        self.ask(&route).await?.json().await.map_err(|error| Error::Http(format!("GET {route}: {}", chain(&error))))
    }

    /// What the shop believes to have of a product; none where it heard nothing yet.
    pub async fn inventory(&self, product: Uuid) -> Result<Option<u64>, Error> {
        let route = format!("{}/inventories/{product}", self.projections);
        let answer: Result<Value, _> = self.ask(&route).await?.json().await;
        let answer = answer.map_err(|error| Error::Http(format!("GET {route}: {}", chain(&error))))?;
        Ok(answer.get("inventory").and_then(Value::as_u64))
    }

    async fn command(&self, route: &str, body: Value) -> Result<Answer, Error> {
        let url = format!("{}/{route}", self.commands);
        let Attempted { answer, after_a_loss } = self.patiently(|| self.client.post(&url).json(&body).send()).await?;
        match answer.status() {
            StatusCode::OK => Ok(Answer::Accepted),
            StatusCode::CONFLICT => {
                let refusal: Result<Refusal, _> = answer.json().await;
                let refusal = refusal.map_err(|error| Error::Http(format!("POST {url}: {}", chain(&error))))?;
                Ok(if after_a_loss { Answer::RefusedAfterAll(refusal.code) } else { Answer::Refused(refusal.code) })
            }
            _ => Err(unexpected(&format!("POST {url}"), answer).await),
        }
    }

    async fn ask(&self, url: &str) -> Result<Response, Error> {
        let Attempted { answer, .. } = self.patiently(|| self.client.get(url).send()).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            _ => Err(unexpected(&format!("GET {url}"), answer).await),
        }
    }

    /// Asks again where the shop is away or busy, after the time that it names, and where an answer was lost.
    async fn patiently<F>(&self, mut send: impl FnMut() -> F) -> Result<Attempted, Error>
    where
        F: Future<Output = Result<Response, reqwest::Error>>,
    {
        let start = Instant::now();
        let mut after_a_loss = false;
        loop {
            // Only a closed semaphore gives nothing, and nobody closes this one.
            let inside = self.door.acquire().await.ok();
            let answer = send().await;
            drop(inside);
            let given_up = start.elapsed() >= self.patience;
            let pause = match answer {
                Ok(answer) if !is_away(answer.status()) || given_up => return Ok(Attempted { answer, after_a_loss }),
                Ok(answer) => {
                    let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                    // Some say that they have done nothing, and some that they do not know.
                    let unknown = answer.status() != StatusCode::SERVICE_UNAVAILABLE
                        || answer.json::<Refusal>().await.is_ok_and(|refusal| refusal.code == "outcome_unknown");
                    after_a_loss |= unknown;
                    self.lost.fetch_add(unknown.into(), Ordering::Relaxed);
                    after.map_or(PAUSE, Duration::from_secs)
                }
                Err(error) if given_up => return Err(Error::Http(chain(&error))),
                Err(_) => {
                    after_a_loss = true;
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// The shop, or what stands before it, has nobody who could answer.
fn is_away(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

async fn unexpected(request: &str, answer: Response) -> Error {
    let status = answer.status();
    Error::Http(format!("{request} was answered {status}: {}", answer.text().await.unwrap_or_default()))
}
