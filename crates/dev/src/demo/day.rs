//! The course of the day.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::addresses::Addresses;
use super::check::{Checks, Lost, Outcome};
use embedded::database;
use embedded::error::{Error, chain};
use embedded::report::Report;
use shop::catalogue::Catalogue;
use shop::client::Shop;
use shop::ledger::Ledger;
use shop::model::{self, Model};
use shop::published::Published;
use shop::shopper;
use shop::supply::Supply;
use shop::topics;

/// The time in which the system must make progress.
const SETTLED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// The kind of day.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The number of shoppers.
    pub shoppers: u32,
    /// The time over which they arrive.
    pub over: Duration,
    /// How long a shopper retries while the shop is unavailable or busy.
    pub patience: Duration,
    /// Answers may be lost, because processes are killed during the day.
    pub outages: bool,
}

/// Simulates the day and compares its result with the log.
pub(crate) async fn live(addresses: &Addresses, plan: Plan, report: &Report) -> Result<Checks, Error> {
    let pool = database::connect(&addresses.database).await?;
    let day = Day {
        shop: Shop::new(&addresses.commands, &addresses.projections, &addresses.internal, plan.patience)?,
        supply: Supply::new(&addresses.kafka)?,
        catalogue: Arc::new(Catalogue::draw()),
        ledger: Arc::new(Ledger::default()),
        published: Published::follow(&addresses.kafka, topics::PUBLISHED_CARTS).await?,
        began_at: model::head(&pool).await?,
        pool,
        report: *report,
        plan,
    };
    day.morning().await?;
    let watched = day.watched_cart().await?;
    day.open(watched).await?;
    day.evening().await
}

struct Day {
    shop: Shop,
    supply: Supply,
    catalogue: Arc<Catalogue>,
    ledger: Arc<Ledger>,
    published: Published,
    began_at: i64,
    pool: PgPool,
    report: Report,
    plan: Plan,
}

impl Day {
    /// Reports every inventory over Kafka, and waits until the shop shows it.
    async fn morning(&self) -> Result<(), Error> {
        let products = self.catalogue.all();
        self.report.say(format!("morning: the stock of {} products comes in over Kafka", products.len()));
        for product in products {
            self.supply.inventory(product.id, product.inventory).await?;
        }
        for product in products {
            self.knows(product.id, product.inventory).await?;
        }
        self.report.say(format!("the shop opens; there is no {} today", name(&self.catalogue.never_in_stock().description)));
        Ok(())
    }

    async fn knows(&self, product: Uuid, inventory: u32) -> Result<(), Error> {
        until(&format!("the shop to show the inventory of {product}"), SETTLED + self.plan.patience, async || {
            Ok(self.shop.inventory(product).await? == Some(u64::from(inventory)))
        })
        .await
    }

    /// Fills a cart with the product whose price will change, and leaves it open.
    async fn watched_cart(&self) -> Result<Uuid, Error> {
        let cart = Uuid::now_v7();
        self.ledger.cart(cart);
        for product in [self.catalogue.changes_price(), &self.catalogue.all()[5]] {
            let answer = self.shop.add(cart, Uuid::now_v7(), product).await?;
            self.ledger.added(answer);
        }
        Ok(cart)
    }

    /// Lets the shoppers visit. At noon, when half of them have left, a product runs out and a price changes.
    async fn open(&self, watched: Uuid) -> Result<(), Error> {
        let shoppers = self.plan.shoppers;
        let bar = self.report.bar(u64::from(shoppers), "           shoppers {bar:40} {pos}/{len}  {msg}");
        let mut visits = JoinSet::new();
        for number in 0..shoppers {
            let arrival = self.plan.over * number / shoppers;
            let (shop, catalogue, ledger) = (self.shop.clone(), Arc::clone(&self.catalogue), Arc::clone(&self.ledger));
            visits.spawn(async move {
                tokio::time::sleep(arrival).await;
                if let Err(error) = shopper::visit(&shop, &catalogue, &ledger).await {
                    ledger.expect(false, || chain(&error));
                }
            });
        }
        let mut left = 0;
        let mut noon = None;
        while let Some(visit) = visits.join_next().await {
            self.ledger.expect(visit.is_ok(), || "a shopper's visit broke off".to_owned());
            left += 1;
            bar.inc(1);
            bar.set_message(format!("{} carts published", self.published.count()));
            if noon.is_none() && left * 2 >= shoppers {
                bar.suspend(|| self.report.say("noon: one product runs out, another's price changes"));
                noon = Some(self.noon().await?);
            }
        }
        bar.finish_and_clear();
        self.report.say(format!("{shoppers} shoppers came and went"));
        self.archived(watched).await
    }

    async fn noon(&self) -> Result<(), Error> {
        self.supply.inventory(self.catalogue.runs_out().id, 0).await?;
        let product = self.catalogue.changes_price();
        self.supply.price(product.id, product.price, product.price + rust_decimal::Decimal::ONE).await
    }

    /// Waits until the price change has archived the item in the open cart.
    async fn archived(&self, watched: Uuid) -> Result<(), Error> {
        let changed = self.catalogue.changes_price();
        let what = format!("the {} to leave a cart after its price changed", name(&changed.description));
        until(&what, SETTLED + self.plan.patience, async || {
            let cart = self.shop.items(watched).await?;
            Ok(cart.data.iter().all(|item| item.product_id != changed.id))
        })
        .await?;
        let cart = self.shop.items(watched).await?;
        let left: Vec<String> = cart.data.iter().map(|item| format!("{} at {}", name(&item.description), item.price)).collect();
        self.report.say(format!(
            "the {} at {} was archived out of cart {watched}; it still holds: {}, total {}",
            name(&changed.description),
            changed.price,
            left.join(", "),
            cart.total_price
        ));
        Ok(())
    }

    /// Waits until the system has processed everything, and compares.
    async fn evening(&self) -> Result<Checks, Error> {
        self.report.say("evening: waiting until everything is published and archived");
        let mut progress = (0, 0);
        let limit = SETTLED + self.plan.patience;
        let mut deadline = Instant::now() + limit;
        loop {
            let model = Model::of(&model::read(&self.pool, self.began_at).await?, self.began_at)?;
            let unfinished = model.unfinished().len();
            let settled = self.published.count() >= model.submissions.len() && unfinished == 0;
            if progress != (self.published.count(), unfinished) {
                progress = (self.published.count(), unfinished);
                deadline = Instant::now() + limit;
            }
            if settled || Instant::now() >= deadline {
                return Ok(Checks::of(
                    &model,
                    &Outcome {
                        catalogue: &self.catalogue,
                        // The morning's inventories, and one at noon.
                        inventories_sent: self.catalogue.all().len() + 1,
                        answered: &self.ledger.entries(),
                        received: &self.published.received(),
                        requests_again: self.shop.repeated(),
                        lost: if self.plan.outages { Lost::Expected(self.shop.lost()) } else { Lost::Unexpected(self.shop.lost()) },
                    },
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn until(what: &str, limit: Duration, condition: impl AsyncFn() -> Result<bool, Error>) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    while !condition().await? {
        if Instant::now() >= deadline {
            return Err(Error::Refused(format!("waited {} s in vain for {what}", limit.as_secs())));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// "A blue tea pot" within a sentence.
fn name(description: &str) -> &str {
    description.strip_prefix("A ").unwrap_or(description)
}
