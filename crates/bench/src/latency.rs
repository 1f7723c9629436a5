//! How soon the read model and the archiving follow an event. Also what idle services ask of the database.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use cart_events::{CartId, DomainEvent, ProductId};
use event_store::{EventStore, Position, StoreSettings};
use serde_json::json;
use shop::services::{COMMANDS, PROJECTIONS, TRANSLATOR};
use sqlx::ConnectOptions;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    add_item::AddItem,
    bench::{Bench, kill},
    client::Client,
    database::{LOG, Products},
    measure::Sample,
    report::{Contender, Key, Report},
    scenarios::{ARCHIVED, SERVICES_IDLE, VISIBLE},
    system::System,
};

/// The time between two new carts with an item. Each writes two events, so 1,000 events are written a second.
const BETWEEN_CARTS: Duration = Duration::from_millis(2);
/// One in this many commands is followed by a query.
const ASKED: u64 = 5;
/// Carts that hold a product whose price changes.
const CARTS: usize = 3;
/// Running work has ended by then and is counted: PostgreSQL's sessions report their statistics within 10 seconds.
const SETTLED: Duration = Duration::from_secs(12);

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.say("projections: the four services, for latencies");
    let system = System::start(bench, "latency").await?;
    let options = system.database.options_as(COMMANDS.role)?.disable_statement_logging();
    let latency = Latency { store: EventStore::new(options, StoreSettings::default()), system };
    for round in 0..bench.sizes.rounds {
        bench.say(format!("projections: latencies, round {} of {}", round + 1, bench.sizes.rounds));
        report.add(Key::new("projections", VISIBLE, 1, Contender::Cartlog), latency.visible(bench.sizes.length).await?);
        report.add(Key::new("projections", ARCHIVED, 1, Contender::Cartlog), latency.archived(bench.sizes.length).await?);
    }
    report.value(SERVICES_IDLE, latency.idle(bench).await?, "queries a second");
    kill(latency.system.services).await
}

struct Latency {
    system: System,
    /// The bench's own store, which appends beside the services.
    store: EventStore<DomainEvent>,
}

impl Latency {
    /// Measures from a command's return until a query with its position is answered over HTTP. The query's own time is included.
    async fn visible(&self, length: Duration) -> Result<Sample> {
        let url = self.system.url(PROJECTIONS)?;
        let idle: Arc<Mutex<Vec<Client>>> = Arc::default();
        let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let mut ticks = interval(BETWEEN_CARTS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut running = JoinSet::new();
        // Connections and prepared statements are made before the time counts.
        let counted_from = Instant::now() + length / 5;
        let until = counted_from + length;
        let mut from = None;
        let mut number = 0;
        while Instant::now() < until {
            ticks.tick().await;
            number += 1;
            let counts = Instant::now() >= counted_from;
            if counts && from.is_none() {
                from = Some((Instant::now(), LOG.head(&self.system.database.pool).await?));
            }
            let asks = number % ASKED == 0;
            let command = AddItem::new(CartId::new(), Products::Many(1_000).any(), false)?;
            let (store, url, idle, times) = (self.store.clone(), url.clone(), idle.clone(), times.clone());
            running.spawn(async move {
                let position = store.decide(&command).await.map_err(|error| anyhow!("{error:?}"))?;
                if asks {
                    let answered = Instant::now();
                    let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let mut client = match kept {
                        Some(client) => client,
                        None => Client::connect(&url).await?,
                    };
                    let path = format!("/{}/cartitemsfromdb?min_position={position}&timeout=30", command.cart_id);
                    let shown = client.get(&path).await.map_err(|error| anyhow!(error))?;
                    ensure!(String::from_utf8_lossy(shown).contains(&command.item_id.to_string()), "the item is not shown");
                    if counts {
                        times.lock().unwrap_or_else(PoisonError::into_inner).push(answered.elapsed());
                    }
                    idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
                }
                Ok(())
            });
        }
        let (began, head) = from.context("the measurement is too short")?;
        let elapsed = began.elapsed();
        let events = LOG.head(&self.system.database.pool).await? - head;
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
        // The rate is that of the events: the queries waited at this rate.
        Ok(Sample { per_second: events as f64 / elapsed.as_secs_f64(), ..Sample::of_each(times, elapsed) })
    }

    /// Measures from PriceChanged to its last ItemArchived by the times in the log, each taken shortly before the commit.
    async fn archived(&self, length: Duration) -> Result<Sample> {
        let pool = &self.system.database.pool;
        let mut client = Client::connect(&self.system.url(TRANSLATOR)?).await?;
        let mut times = vec![];
        let mut started = None;
        loop {
            let product = ProductId::new();
            let mut added = Position::START;
            for _ in 0..CARTS {
                added = self.store.decide(&AddItem::new(CartId::new(), product, false)?).await.map_err(|error| anyhow!("{error:?}"))?;
            }
            let seen = "SELECT coalesce(min(position), 0) >= $1 FROM checkpoint WHERE name = 'archive_item'";
            self.system.until("Archive Item to see what was added", seen, added.0).await?;
            let body = json!({"product_id": product, "old_price": "9.99", "new_price": "8.99"}).to_string();
            let answer = client.post(&format!("/changeprice/{product}"), &body).await.map_err(|error| anyhow!(error))?;
            let (_, changed): (ProductId, i64) = serde_json::from_slice(answer)?;
            let done = format!("SELECT count(*) >= {CARTS} FROM event WHERE event_id > $1 AND event_type = 'ItemArchived'");
            self.system.until("the items to be archived", &done, changed).await?;
            let took = "SELECT extract(epoch FROM max(a.inserted_at) - min(p.inserted_at))::float8 FROM event a, event p
                        WHERE a.event_id > $1 AND a.event_type = 'ItemArchived' AND p.event_id = $1";
            let took: f64 = sqlx::query_scalar(took).bind(changed).fetch_one(pool).await?;
            match started {
                None => started = Some(Instant::now()),
                Some(started) => {
                    times.push(Duration::try_from_secs_f64(took)?);
                    if started.elapsed() >= length {
                        return Ok(Sample::of_each(times, started.elapsed()));
                    }
                }
            }
        }
    }

    /// Measures the transactions per second of all services together while nobody sends a request.
    async fn idle(&self, bench: &Bench) -> Result<f64> {
        self.store.close().await;
        // The statistics count this database, so they are read from another one.
        let pool = bench.server.pool().await?;
        let name = self.system.database.options_as(COMMANDS.role)?.get_database().map(str::to_owned);
        let transactions = async || -> Result<i64> {
            let count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1";
            Ok(sqlx::query_scalar(count).bind(&name).fetch_one(&pool).await?)
        };
        tokio::time::sleep(SETTLED).await;
        let length = (bench.sizes.length * 5).clamp(Duration::from_secs(5), Duration::from_secs(10));
        bench.say(format!("projections: {} s without anything to do", length.as_secs()));
        let (before, started) = (transactions().await?, Instant::now());
        tokio::time::sleep(length).await;
        Ok((transactions().await? - before) as f64 / started.elapsed().as_secs_f64())
    }
}
