//! Builds Cart Items from an existing log: cart-projections, built for release, beside disintegrate's `PgEventListener`. Both take the same
//! events into tables of the same shape.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use async_trait::async_trait;
use cart_events::CartStream;
use disintegrate::{EventListener, PersistedEvent, StreamQuery, query};
use disintegrate_postgres::{PgEventListener, PgEventListenerConfig};
use shop::services::PROJECTIONS;
use sqlx::PgPool;
use tokio::sync::oneshot;

use crate::{
    bench::{Bench, kill},
    database::{LOG, Products, RIVAL},
    measure::{Load, Sample},
    place::{cartlog, rotated},
    report::{Contender, Key, Report},
    scenarios::{ALONE, BESIDE, CAUGHT_UP, FOLLOWING, OFFERED, OFFERED_ALONE, OFFERED_BESIDE, caught_up_with, thousands},
    work::Work,
};

/// The default of `projection_batch`. A read model that is further behind is catching up, not following.
const BATCH: i64 = 10_000;
/// How long a read model may stand still.
const DEADLINE: Duration = Duration::from_secs(120);
/// Long enough that the first second, in which the read models start, weighs little.
const BESIDE_FOR: Duration = Duration::from_secs(10);
/// How much longer disintegrate's measurement takes than another. It need not reach the end.
const LENGTHS: u32 = 5;

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for round in 0..bench.sizes.rounds {
        bench.say(format!("projections: round {} of {}, {} events", round + 1, bench.sizes.rounds, thousands(bench.sizes.events)));
        for contender in rotated(&[Contender::Cartlog, Contender::Disintegrate], round) {
            let sample = if *contender == Contender::Cartlog { ours(bench, bench.sizes.events).await? } else { theirs(bench).await? };
            report.add(Key::new("projections", CAUGHT_UP, 1, *contender), sample);
        }
        let loud = Load::Tasks(bench.sizes.loud());
        let offered = Load::Offered(OFFERED);
        let beside = [(ALONE, loud), (BESIDE, loud), (FOLLOWING, loud), (OFFERED_ALONE, offered), (OFFERED_BESIDE, offered)];
        for (scenario, load) in rotated(&beside, round) {
            let (sample, behind) = appending(bench, scenario, *load).await?;
            if let Some(behind) = behind {
                report.value(format!("{scenario}, round {}: at the end Cart Items was behind by", round + 1), behind as f64, "positions");
            }
            report.add(Key::new("projections", *scenario, load.tasks(), Contender::Cartlog), sample);
        }
    }
    Ok(())
}

/// Compares logs of several sizes. Each log is dropped after its measurement, because a large one fills a disk.
pub(crate) async fn catch_up(bench: &Bench, report: &mut Report) -> Result<()> {
    for round in 0..bench.sizes.rounds {
        for events in rotated(&bench.sizes.before, round) {
            bench.say(format!("catchup: round {} of {}, {} events", round + 1, bench.sizes.rounds, thousands(*events)));
            report.add(Key::new("catchup", caught_up_with(*events), 1, Contender::Cartlog), ours(bench, *events).await?);
            bench.server.drop_all().await?;
        }
    }
    Ok(())
}

/// Measures from the start of the process until its checkpoint is at the head. Its other read models are built at the same time.
async fn ours(bench: &Bench, events: u64) -> Result<Sample> {
    let carts = events / 2;
    let database = bench.server.log().await?;
    let pool = &database.pool;
    LOG.add_carts(pool, carts, Products::Many(1_000)).await?;
    let head = LOG.head(pool).await?;
    let started = Instant::now();
    let service = bench.start(PROJECTIONS, "bench", &database, vec![]).await?;
    reached(pool, CART_ITEMS, head).await?;
    let elapsed = started.elapsed();
    let build: String =
        sqlx::query_scalar("SELECT build FROM projection WHERE name = 'cart_items' AND status = 'serving'").fetch_one(pool).await?;
    let items: i64 = sqlx::query_scalar(&format!("SELECT count(*) FROM {build}.cart_items_item")).fetch_one(pool).await?;
    ensure!(u64::try_from(items)? == carts, "Cart Items has {items} items of {carts}");
    kill(vec![service]).await?;
    Ok(Sample::of_whole(head as f64, elapsed))
}

const CART_ITEMS: &str = "cart_items";

/// Waits until the serving builds of the named projections have reached a position.
async fn reached(pool: &PgPool, name: &str, head: i64) -> Result<()> {
    let mut last = (-1, Instant::now());
    let reached = "SELECT coalesce(min(position), 0) FROM checkpoint JOIN projection USING (name, build)
                   WHERE name LIKE $1 AND status = 'serving'";
    loop {
        let position: i64 = sqlx::query_scalar(reached).bind(name).fetch_one(pool).await?;
        if position >= head {
            return Ok(());
        }
        if position > last.0 {
            last = (position, Instant::now());
        } else if last.1.elapsed() > DEADLINE {
            bail!("{name} stands still at position {position} of {head} for {} s", DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Measures Add Item on a log that is being projected, has been projected, or is not projected. If it is, returns also the lag at the end.
async fn appending(bench: &Bench, scenario: &str, load: Load) -> Result<(Sample, Option<i64>)> {
    let projected = ![ALONE, OFFERED_ALONE].contains(&scenario);
    let database = bench.server.log().await?;
    let pool = &database.pool;
    LOG.add_carts(pool, bench.sizes.events / 2, Products::Many(1_000)).await?;
    let head = LOG.head(pool).await?;
    database.checkpoint().await?;
    let mut services = vec![];
    if projected {
        services.push(bench.start(PROJECTIONS, "beside", &database, vec![]).await?);
        if scenario == FOLLOWING {
            reached(pool, CART_ITEMS, head).await?;
            // The sizes are known by now.
            reached(pool, "%", head).await?;
        }
    }
    let work = Work::one_item_each(Products::Many(1_000), bench.sizes.loud());
    let length = if bench.sizes.quick { bench.sizes.length } else { bench.sizes.length.max(BESIDE_FOR) };
    let sample = cartlog(&database, Contender::Cartlog, work, load, length).await?;
    let mut behind = None;
    if projected {
        let position = "SELECT coalesce(min(position), 0) FROM checkpoint WHERE name = 'cart_items'";
        let position: i64 = sqlx::query_scalar(position).fetch_one(pool).await?;
        let left = LOG.head(pool).await? - position;
        if scenario == FOLLOWING && left > BATCH {
            bench.say("projections: they did not keep up, so it says less");
        } else if scenario != FOLLOWING && position >= head {
            bench.say("projections: they had caught up before the measurement's end, so it says less");
        }
        behind = Some(left);
    }
    kill(services).await?;
    Ok((sample, behind))
}

/// Counts the events that it handles within a time.
async fn theirs(bench: &Bench) -> Result<Sample> {
    let (database, store) = bench.server.rival().await?;
    RIVAL.add_carts(&database.pool, bench.sizes.events / 2, Products::Many(1_000)).await?;
    // The tables of migrations/0003_read_models.sql.
    let tables = "CREATE TABLE cart_items_cart (cart_id uuid PRIMARY KEY);
        CREATE TABLE cart_items_item (
            cart_id uuid NOT NULL, item_id uuid NOT NULL, product_id uuid NOT NULL, description text NOT NULL, image text NOT NULL,
            price numeric(12,2) NOT NULL, fingerprint text NOT NULL, position bigint NOT NULL, PRIMARY KEY (cart_id, item_id))";
    sqlx::raw_sql(tables).execute(&database.pool).await?;
    let handled = Arc::new(AtomicU64::new(0));
    let pool = PgPool::connect(&database.url).await?;
    let listener = Listener { pool: pool.clone(), query: query!(CartStream), handled: handled.clone() };
    let config = PgEventListenerConfig::poller(Duration::from_millis(50));
    let running = PgEventListener::builder(store).register_listener(listener, config);
    let started = Instant::now();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(running.start_with_shutdown(async { drop(stopped.await) }));
    let length = bench.sizes.length * LENGTHS;
    while started.elapsed() < length && handled.load(Ordering::Relaxed) < bench.sizes.events && !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let sample = Sample::of_whole(handled.load(Ordering::Relaxed) as f64, started.elapsed());
    // The listener checks for the shutdown between reads only, and one read is the whole log. So a failing handler ends it.
    pool.close().await;
    drop(stop);
    task.await??;
    Ok(sample)
}

/// Handlers get single events and may get one twice, so each inserts its row only if the row is missing.
struct Listener {
    pool: PgPool,
    query: StreamQuery<i64, CartStream>,
    handled: Arc<AtomicU64>,
}

#[async_trait]
impl EventListener<i64, CartStream> for Listener {
    type Error = sqlx::Error;

    fn id(&self) -> &'static str {
        "cart_items"
    }

    fn query(&self) -> &StreamQuery<i64, CartStream> {
        &self.query
    }

    async fn handle(&self, event: PersistedEvent<i64, CartStream>) -> Result<(), sqlx::Error> {
        let position = event.id();
        let statement = match event.into_inner() {
            CartStream::CartCreated { cart_id } => {
                sqlx::query("INSERT INTO cart_items_cart VALUES ($1) ON CONFLICT DO NOTHING").bind(cart_id.uuid())
            }
            CartStream::ItemAdded { cart_id, item_id, product_id, description, image, price, device_fingerprint } => {
                sqlx::query("INSERT INTO cart_items_item VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING")
                    .bind(cart_id.uuid())
                    .bind(item_id.uuid())
                    .bind(product_id.uuid())
                    .bind(String::from(description))
                    .bind(String::from(image))
                    .bind(price.decimal())
                    .bind(device_fingerprint)
                    .bind(position)
            }
            // The log contains only these two types.
            _ => return Ok(()),
        };
        statement.execute(&self.pool).await?;
        self.handled.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
