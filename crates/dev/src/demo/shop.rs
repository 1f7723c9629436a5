//! The shop as its customers see it: HTTP.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::catalogue::Product;
use crate::error::{Error, chain};
use crate::services::{COMMANDS, PROJECTIONS};
use crate::state::Up;

/// How many requests are under way at a time, so that the day is as long as the machine is slow and fails nowhere.
const AT_A_TIME: usize = 64;
/// How often a busy shop is asked again before that counts as a fault.
const ATTEMPTS: u32 = 5;

/// A client of the routes.
#[derive(Debug, Clone)]
pub(crate) struct Shop {
    client: reqwest::Client,
    door: Arc<Semaphore>,
    commands: String,
    projections: String,
}

/// What a command was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    /// Refused by the domain, with the word that says why.
    Refused(String),
}

/// The answer of Cart Items.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CartItems {
    pub(crate) total_price: String,
    pub(crate) data: Vec<CartItem>,
}

/// An item in a cart.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CartItem {
    pub(crate) item_id: Uuid,
    pub(crate) product_id: Uuid,
    pub(crate) description: String,
    pub(crate) price: String,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
}

impl Shop {
    pub(crate) fn new(up: &Up) -> Result<Self, Error> {
        let url = |name: &str| {
            let found = up.services.iter().find(|service| service.name == name);
            found.map(|service| service.url.clone()).ok_or_else(|| Error::Missing(format!("{name} is not up")))
        };
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().map_err(|error| Error::Http(chain(&error)))?;
        let door = Arc::new(Semaphore::new(AT_A_TIME));
        Ok(Self { client, door, commands: url(COMMANDS.name)?, projections: url(PROJECTIONS.name)? })
    }

    pub(crate) async fn add(&self, cart: Uuid, item: Uuid, product: &Product) -> Result<Answer, Error> {
        let body = json!({
            "cart_id": cart, "item_id": item, "product_id": product.id, "description": product.description,
            "image": "picture.png", "price": product.price.to_string(),
        });
        self.command(&format!("additem/{cart}"), body).await
    }

    pub(crate) async fn remove(&self, cart: Uuid, item: Uuid) -> Result<Answer, Error> {
        self.command(&format!("removeitem/{cart}"), json!({"cart_id": cart, "item_id": item})).await
    }

    pub(crate) async fn clear(&self, cart: Uuid) -> Result<Answer, Error> {
        self.command(&format!("clearcart/{cart}"), json!({})).await
    }

    pub(crate) async fn submit(&self, cart: Uuid) -> Result<Answer, Error> {
        self.command(&format!("submitcart/{cart}"), json!({"cart_id": cart})).await
    }

    pub(crate) async fn items(&self, cart: Uuid) -> Result<CartItems, Error> {
        let route = format!("{}/{cart}/cartitems", self.projections);
        self.ask(&route).await?.json().await.map_err(|error| Error::Http(format!("GET {route}: {}", chain(&error))))
    }

    /// What the shop believes to have of a product; none where it heard nothing yet.
    pub(crate) async fn inventory(&self, product: Uuid) -> Result<Option<u64>, Error> {
        let route = format!("{}/inventories/{product}", self.projections);
        let answer: Result<Value, _> = self.ask(&route).await?.json().await;
        let answer = answer.map_err(|error| Error::Http(format!("GET {route}: {}", chain(&error))))?;
        Ok(answer.get("inventory").and_then(Value::as_u64))
    }

    async fn command(&self, route: &str, body: Value) -> Result<Answer, Error> {
        let url = format!("{}/{route}", self.commands);
        let answer = self.patiently(|| self.client.post(&url).json(&body).send()).await?;
        match answer.status() {
            StatusCode::OK => Ok(Answer::Accepted),
            StatusCode::CONFLICT => {
                let refusal: Result<Refusal, _> = answer.json().await;
                let refusal = refusal.map_err(|error| Error::Http(format!("POST {url}: {}", chain(&error))))?;
                Ok(Answer::Refused(refusal.code))
            }
            _ => Err(unexpected(&format!("POST {url}"), answer).await),
        }
    }

    async fn ask(&self, url: &str) -> Result<Response, Error> {
        let answer = self.patiently(|| self.client.get(url).send()).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            _ => Err(unexpected(&format!("GET {url}"), answer).await),
        }
    }

    /// Asks again where the shop says that it is busy, after the time that it names.
    async fn patiently<F>(&self, mut send: impl FnMut() -> F) -> Result<Response, Error>
    where
        F: Future<Output = Result<Response, reqwest::Error>>,
    {
        let mut attempt = 1;
        loop {
            // Only a closed semaphore gives nothing, and nobody closes this one.
            let inside = self.door.acquire().await.ok();
            let answer = send().await.map_err(|error| Error::Http(chain(&error)))?;
            drop(inside);
            if answer.status() != StatusCode::SERVICE_UNAVAILABLE || attempt == ATTEMPTS {
                return Ok(answer);
            }
            let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            tokio::time::sleep(Duration::from_secs(after.unwrap_or(1))).await;
            attempt += 1;
        }
    }
}

async fn unexpected(request: &str, answer: Response) -> Error {
    let status = answer.status();
    Error::Http(format!("{request} was answered {status}: {}", answer.text().await.unwrap_or_default()))
}
