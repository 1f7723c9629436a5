//! A client of the shop's HTTP routes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::catalogue::Product;
use embedded::error::{Error, chain};

/// The number of requests at a time. On a slow machine the day takes longer, and no request fails for that.
const AT_A_TIME: usize = 64;
/// The pause between two attempts if the answer has no Retry-After.
const PAUSE: Duration = Duration::from_secs(1);

/// A client that retries while the shop is unavailable.
#[derive(Debug, Clone)]
pub struct Shop {
    client: reqwest::Client,
    door: Arc<Semaphore>,
    commands: String,
    projections: String,
    internal: String,
    patience: Duration,
    lost: Arc<AtomicU64>,
    repeated: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Accepted,
    /// Refused by the domain, with the error code.
    Refused(String),
    /// Refused after an earlier answer was lost. The earlier attempt may have been carried out.
    RefusedAfterAll(String),
}

/// An answer, and whether an earlier answer to the same request was lost.
struct Attempted {
    answer: Response,
    after_a_loss: bool,
}

/// The answer of Cart Items.
#[derive(Debug, Clone, Deserialize)]
pub struct CartItems {
    /// The cart's total.
    pub total_price: String,
    /// The cart's items.
    pub data: Vec<CartItem>,
}

/// An item in a cart.
#[derive(Debug, Clone, Deserialize)]
pub struct CartItem {
    /// Its id.
    pub item_id: Uuid,
    /// Its product.
    pub product_id: Uuid,
    /// Its description.
    pub description: String,
    /// Its price.
    pub price: String,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
}

impl Shop {
    /// Makes a client for the URLs of cart-commands, of cart-projections, and of the back office's queries. It retries for as long as
    /// `patience`.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(commands: &str, projections: &str, internal: &str, patience: Duration) -> Result<Self, Error> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().map_err(|error| Error::Http(chain(&error)))?;
        let door = Arc::new(Semaphore::new(AT_A_TIME));
        let [commands, projections, internal] = [commands, projections, internal].map(str::to_owned);
        Ok(Self { client, door, commands, projections, internal, patience, lost: Arc::default(), repeated: Arc::default() })
    }

    /// The number of lost answers. Their requests were sent again.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The requests that were sent again because an answer asked for it, by the answer's error code.
    #[must_use]
    pub fn repeated(&self) -> BTreeMap<String, u64> {
        self.repeated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds an item.
    ///
    /// # Errors
    /// The shop stays unavailable, or gives an unexpected answer.
    pub async fn add(&self, cart: Uuid, item: Uuid, product: &Product) -> Result<Answer, Error> {
        let body = json!({
            "cart_id": cart, "item_id": item, "product_id": product.id, "description": product.description,
            "image": "picture.png", "price": product.price.to_string(),
        });
        self.command(&format!("additem/{cart}"), body).await
    }

    /// Removes an item.
    ///
    /// # Errors
    /// The shop stays unavailable, or gives an unexpected answer.
    pub async fn remove(&self, cart: Uuid, item: Uuid) -> Result<Answer, Error> {
        self.command(&format!("removeitem/{cart}"), json!({"cart_id": cart, "item_id": item})).await
    }

    /// Clears a cart.
    ///
    /// # Errors
    /// The shop stays unavailable, or gives an unexpected answer.
    pub async fn clear(&self, cart: Uuid) -> Result<Answer, Error> {
        self.command(&format!("clearcart/{cart}"), json!({})).await
    }

    /// Submits a cart.
    ///
    /// # Errors
    /// The shop stays unavailable, or gives an unexpected answer.
    pub async fn submit(&self, cart: Uuid) -> Result<Answer, Error> {
        self.command(&format!("submitcart/{cart}"), json!({"cart_id": cart})).await
    }

    /// Reads a cart's items.
    ///
    /// # Errors
    /// The shop stays unavailable, or gives an unexpected answer.
    pub async fn items(&self, cart: Uuid) -> Result<CartItems, Error> {
        let route = format!("{}/{cart}/cartitems", self.projections);
        self.ask(&route).await?.json().await.map_err(|error| Error::Http(format!("GET {route}: {}", chain(&error))))
    }

    /// Reads a product's inventory; none if it was never reported.
    ///
    /// # Errors
    /// The shop stays unavailable, or gives an unexpected answer.
    pub async fn inventory(&self, product: Uuid) -> Result<Option<u64>, Error> {
        let route = format!("{}/inventories/{product}", self.internal);
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

    /// Sends a request again while the shop is unavailable or the answer is lost. Waits as long as Retry-After says.
    async fn patiently<F>(&self, mut send: impl FnMut() -> F) -> Result<Attempted, Error>
    where
        F: Future<Output = Result<Response, reqwest::Error>>,
    {
        let start = Instant::now();
        let mut after_a_loss = false;
        loop {
            // Nobody closes this semaphore.
            let inside = self.door.acquire().await.ok();
            let answer = send().await;
            drop(inside);
            let given_up = start.elapsed() >= self.patience;
            let pause = match answer {
                Ok(answer) if !is_unavailable(answer.status()) || given_up => return Ok(Attempted { answer, after_a_loss }),
                Ok(answer) => {
                    let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                    // 503 means that nothing was done, unless the code is outcome_unknown.
                    let status = answer.status();
                    let code = answer.json::<Refusal>().await.map_or_else(|_| status.to_string(), |refusal| refusal.code);
                    let unknown = status != StatusCode::SERVICE_UNAVAILABLE || code == "outcome_unknown";
                    *self.repeated.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
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

/// Tells whether the shop, or the proxy before it, was unavailable.
fn is_unavailable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

async fn unexpected(request: &str, answer: Response) -> Error {
    let status = answer.status();
    Error::Http(format!("{request} was answered {status}: {}", answer.text().await.unwrap_or_default()))
}
