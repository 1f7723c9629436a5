//! Whole shoppers, and the publication of their carts, with the four services built for release, beside plain SQL.
//!
//! A shopper puts three items into a new cart, looks at it, and submits it: five requests over HTTP.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use cart_events::CartId;
use embedded::{distribution, kafka::Kafka, layout::Layout};
use rdkafka::Message;
use shop::services::{COMMANDS, PROJECTIONS};
use tokio::time::timeout;

use crate::{
    add_item::AddItem,
    bench::{Bench, kill},
    client::{Client, Clients},
    database::{LOG, Products},
    floor::Floor,
    measure::{Load, Sample},
    place::{rotated, warmed_up},
    plain::Plain,
    report::{Contender, Key, Report},
    scenarios::{ONE_INSERT, PUBLICATIONS, PUBLISHED, SHOPPER, SUBMITS, thousands},
    sizes::Sizes,
    system::System,
};

const SUBJECT: &str = "shop";
/// One in this many of the messages of the part kafka is a cart to publish.
const SHARE: u64 = 10;
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let sizes = &bench.sizes;
    bench.say("shop: the four services");
    // It takes the broker away, so it has one of its own.
    let layout = Layout::discover()?;
    let distribution = distribution::kafka(&layout, &bench.screen).await?;
    let mut broker = Kafka::start_on_free_ports(&distribution, &layout.scratch("bench-broker")?).await?;
    let system = System::start_with(bench, "shop", bench.server.log().await?, broker.bootstrap_servers()).await?;
    for round in 0..sizes.rounds {
        for tasks in sizes.crowds() {
            bench.say(format!("shop: round {} of {}, {tasks} shoppers at once", round + 1, sizes.rounds));
            for contender in rotated(&[Contender::Cartlog, Contender::PlainSql], round) {
                let sample = match contender {
                    Contender::Cartlog => shoppers(&system, tasks, sizes).await?,
                    _ => plain(&system, tasks, sizes).await?,
                };
                report.add(Key::new(SUBJECT, SHOPPER, tasks, *contender), sample);
            }
        }
        bench.say(format!("shop: round {} of {}, publications", round + 1, sizes.rounds));
        report.add(Key::new(SUBJECT, PUBLISHED, 1, Contender::Cartlog), published(&system, sizes).await?);
        for contender in rotated(&[Contender::Cartlog, Contender::Floor], round) {
            let sample = match contender {
                Contender::Cartlog => caught_up(bench, &system, &mut broker).await?,
                _ => one_insert(&system, sizes).await?,
            };
            let scenario = if *contender == Contender::Cartlog { PUBLICATIONS } else { ONE_INSERT };
            report.add(Key::new(SUBJECT, scenario, 1, *contender), sample);
        }
    }
    kill(system.services).await?;
    broker.kill().await?;
    Ok(())
}

/// Measures whole shoppers. The publisher publishes the rest afterwards, which does not count.
async fn shoppers(system: &System, tasks: usize, sizes: &Sizes) -> Result<Sample> {
    system.database.checkpoint().await?;
    let commands = Clients::connect(&[system.url(COMMANDS)?], tasks).await?;
    let projections = Clients::connect(&[system.url(PROJECTIONS)?], tasks).await?;
    let sample = warmed_up(Load::Tasks(tasks), sizes.length, move |task| {
        let (commands, projections) = (commands.clone(), projections.clone());
        async move {
            let (mut commands, mut projections) = (commands.of(task).await, projections.of(task).await);
            shopper(&mut commands, &mut projections).await
        }
    })
    .await;
    system.until_settled().await?;
    Ok(sample)
}

async fn shopper(commands: &mut Client, projections: &mut Client) -> Result<(), String> {
    let cart = CartId::new();
    add_items(commands, cart, 3).await?;
    let shown = projections.get(&format!("/{cart}/cartitems")).await?;
    let items = shown.windows(9).filter(|part| part == b"\"item_id\"").count();
    if items != 3 {
        return Err(format!("the cart shows {items} items: {}", String::from_utf8_lossy(shown)));
    }
    submit(commands, cart).await
}

async fn add_items(commands: &mut Client, cart: CartId, items: usize) -> Result<(), String> {
    for _ in 0..items {
        let add = AddItem::new(cart, Products::Many(1_000).any(), false).map_err(|error| error.to_string())?;
        commands.post(&format!("/additem/{cart}"), &add.json()).await?;
    }
    Ok(())
}

async fn submit(commands: &mut Client, cart: CartId) -> Result<(), String> {
    commands.post(&format!("/submitcart/{cart}"), &format!(r#"{{"cart_id":"{cart}"}}"#)).await.map(drop)
}

async fn plain(system: &System, tasks: usize, sizes: &Sizes) -> Result<Sample> {
    system.database.checkpoint().await?;
    Plain::shopper().measure(&system.database, tasks, sizes).await
}

async fn one_insert(system: &System, sizes: &Sizes) -> Result<Sample> {
    system.database.checkpoint().await?;
    let floor = Floor::connect(&system.database, 1).await?;
    let of_operation = floor.clone();
    let sample = warmed_up(Load::Tasks(1), sizes.length, move |task| {
        let floor = of_operation.clone();
        async move {
            let command = AddItem::new(CartId::new(), Products::Many(1_000).any(), false).map_err(|error| error.to_string())?;
            floor.insert(task, &command).await
        }
    })
    .await;
    floor.close().await;
    Ok(sample)
}

/// Measures how fast carts are published that were submitted while the broker was away: from its return to the last CartPublished.
async fn caught_up(bench: &Bench, system: &System, broker: &mut Kafka) -> Result<Sample> {
    let carts = bench.sizes.messages / SHARE;
    bench.say(format!("shop: {} carts to publish", thousands(carts)));
    let pool = system.database.pool.clone();
    broker.process().freeze()?;
    LOG.add_submitted_carts(&pool, carts).await?;
    let head = LOG.head(&pool).await?;
    let missed = "SELECT (SELECT min(position) >= $1 FROM checkpoint WHERE name = 'publish_cart')
                  AND EXISTS (SELECT FROM todo WHERE status = 'open' AND last_error IS NOT NULL)";
    system.until("the publisher to miss the broker", missed, head).await?;
    let returned: f64 = sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8").fetch_one(&pool).await?;
    broker.process().thaw()?;
    system.until_settled().await?;
    let published = "SELECT count(*), coalesce(extract(epoch FROM max(inserted_at)), 0)::float8 FROM event
                     WHERE event_id > $1 AND event_type = 'CartPublished'";
    let (published, last): (i64, f64) = sqlx::query_as(published).bind(head).fetch_one(&pool).await?;
    ensure!(u64::try_from(published)? == carts, "of {carts} carts, {published} were published");
    Ok(Sample::of_whole(carts as f64, Duration::try_from_secs_f64(last - returned)?))
}

/// Measures from Submit Cart's answer until a consumer has the message, while carts are submitted at a fixed rate.
async fn published(system: &System, sizes: &Sizes) -> Result<Sample> {
    let seconds = if sizes.quick { 1 } else { 10 };
    let carts: Vec<_> = (0..SUBMITS * seconds).map(|_| CartId::new()).collect();
    let commands = Clients::connect(&[system.url(COMMANDS)?], 16).await?;
    for cart in &carts {
        add_items(&mut *commands.of(0).await, *cart, 1).await.map_err(|error| anyhow!(error))?;
    }
    let consumer = system.consumer()?;
    let next_key = async || {
        let message = timeout(DEADLINE, consumer.recv()).await.context("no message came")??;
        anyhow::Ok(message.key().map(String::from_utf8_lossy).unwrap_or_default().into_owned())
    };
    // A consumer needs half a second until its first message.
    let first = CartId::new();
    add_items(&mut *commands.of(0).await, first, 1).await.map_err(|error| anyhow!(error))?;
    submit(&mut *commands.of(0).await, first).await.map_err(|error| anyhow!(error))?;
    while next_key().await? != first.to_string() {}
    let mut missing: BTreeMap<String, usize> = carts.iter().enumerate().map(|(number, cart)| (cart.to_string(), number)).collect();
    let receiving = async {
        let mut received = vec![None; carts.len()];
        while !missing.is_empty() {
            if let Some(number) = missing.remove(&next_key().await?) {
                received[number] = Some(Instant::now());
            }
        }
        anyhow::Ok(received)
    };
    let answered: Arc<Mutex<Vec<Option<Instant>>>> = Arc::new(Mutex::new(vec![None; carts.len()]));
    let (answers, to_submit) = (answered.clone(), Arc::new(carts.clone()));
    let submitting = async {
        let load = Load::Offered(SUBMITS);
        let sample = load
            .put(Duration::from_secs(seconds.into()), move |number| {
                let (commands, answers, carts) = (commands.clone(), answers.clone(), to_submit.clone());
                async move {
                    let Some(cart) = carts.get(number) else { return Ok(()) };
                    submit(&mut *commands.of(number).await, *cart).await?;
                    answers.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(Instant::now());
                    Ok(())
                }
            })
            .await;
        ensure!(sample.first_failure.is_none(), "Submit Cart failed: {:?}", sample.first_failure);
        Ok(())
    };
    let (received, ()) = tokio::try_join!(receiving, submitting)?;
    let answered = answered.lock().unwrap_or_else(PoisonError::into_inner);
    let took = received.iter().zip(answered.iter()).filter_map(|(received, answered)| {
        // The message may arrive before the answer is read.
        Some((*received)?.saturating_duration_since((*answered)?))
    });
    Ok(Sample::of_each(took.collect(), Duration::from_secs(seconds.into())))
}
