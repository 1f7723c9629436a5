//! Add Item through `event-store`, with and without the state cache, beside disintegrate-postgres and the floor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use cart_events::{CartId, DomainEvent, ProductId};
use event_store::EventStore;
use sqlx::{ConnectOptions, PgPool};
use tokio::task::JoinHandle;

use crate::{
    add_item::AddItem,
    bench::Bench,
    database::{LOG, Products},
    floor::Floor,
    measure::{Load, Sample, Spread},
    place::{Place, RIVALS_UP_TO, cartlog, rotated, settings},
    report::{Contender, Key, Report},
    scenarios::{
        HOT_CART, NEW_PRODUCT, OFFERED, REPORTED_PRODUCT, counted_product, first_command, one_item, popular_product, thousands,
        upkeep_scenario,
    },
    work::{Carts, Work},
};

/// The shortest measurement with and without VACUUM and ANALYZE. Several runs of them must fit in.
const UPKEEP_FOR: Duration = Duration::from_secs(5);
/// New processes that each meet products for the first time.
const FIRST_COMMANDS: usize = 40;

/// VACUUM and ANALYZE of the log start once a second. Autovacuum checks once a minute.
struct Upkeep {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Result<u32, sqlx::Error>>,
}

impl Upkeep {
    fn begin(pool: PgPool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let running = tokio::spawn(async move {
            // Autovacuum's own pace.
            let mut connection = pool.acquire().await?;
            sqlx::query("SET vacuum_cost_delay = '2ms'").execute(&mut *connection).await?;
            let (mut times, mut begins) = (0, tokio::time::interval(Duration::from_secs(1)));
            begins.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !stopped.load(Ordering::Relaxed) {
                begins.tick().await;
                sqlx::query("VACUUM (ANALYZE) event").execute(&mut *connection).await?;
                times += 1;
            }
            connection.close().await?;
            Ok(times)
        });
        Self { stop, running }
    }

    /// How often VACUUM and ANALYZE have run.
    async fn end(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let times = self.running.await??;
        ensure!(times > 0, "nothing was vacuumed meanwhile");
        Ok(times)
    }
}

struct Scenario<'a> {
    name: String,
    place: &'a Place,
    carts: Carts,
    products: Products,
    contenders: &'static [Contender],
    levels: &'a [usize],
}

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let sizes = &bench.sizes;
    let mut places = vec![];
    for before in &sizes.before {
        places.push(Place::fill(bench, *before, *before <= RIVALS_UP_TO).await?);
    }
    let crowd = Crowd::fill(bench).await?;
    let loud = [sizes.loud()];

    let (one, shop, levels) = (Carts::Own { items: 1 }, Products::Many(1_000), &sizes.levels[..]);
    let contenders = |place: &Place| -> &'static [_] {
        if place.rival.is_some() { &Contender::OF_THE_LOG } else { &[Contender::Cartlog, Contender::Loading] }
    };
    let mut scenarios = vec![];
    for place in &places {
        scenarios.push(Scenario { name: one_item(place.before), place, carts: one, products: shop, contenders: contenders(place), levels });
    }
    if let Some(place) = places.first() {
        let variants =
            [("three items a cart", Carts::Own { items: 3 }, shop), (HOT_CART, Carts::Hot, shop), ("one product", one, Products::Many(1))];
        for (name, carts, products) in variants {
            scenarios.push(Scenario { name: name.to_owned(), place, carts, products, contenders: contenders(place), levels });
        }
    }
    for (name, product) in crowd.products() {
        let (place, products) = (&crowd.place, Products::One(product));
        scenarios.push(Scenario { name, place, carts: one, products, contenders: &[Contender::Cartlog], levels: &loud });
    }

    if let Some(place) = places.first() {
        // Both together use all of PostgreSQL's connections.
        let floor = Floor::connect(&place.ours, sizes.loud().min(64)).await?;
        report.pgbench = floor.against_pgbench(&place.ours, sizes.length).await?.map(Into::into);
        floor.close().await;
    }
    for round in 0..sizes.rounds {
        for tasks in &sizes.levels {
            bench.say(format!("log: round {} of {}, {tasks} tasks", round + 1, sizes.rounds));
            for scenario in rotated(&scenarios, round).filter(|scenario| scenario.levels.contains(tasks)) {
                for contender in rotated(scenario.contenders, round) {
                    let work = Work::new(scenario.carts, scenario.products, *tasks);
                    let sample = scenario.place.measure(*contender, work, *tasks, sizes.length).await?;
                    report.add(Key::new("log", &scenario.name, *tasks, *contender), sample);
                }
            }
        }
        crowd.first_commands(round, report).await?;
        if let Some(place) = places.last() {
            beside_upkeep(bench, place, round, report).await?;
        }
    }
    Ok(())
}

/// Measures Add Item on the largest log, with and without VACUUM and ANALYZE at the same time.
async fn beside_upkeep(bench: &Bench, place: &Place, round: usize, report: &mut Report) -> Result<()> {
    let sizes = &bench.sizes;
    bench.say(format!("log: round {} of {}, beside VACUUM and ANALYZE", round + 1, sizes.rounds));
    let length = if sizes.quick { sizes.length } else { sizes.length.max(UPKEEP_FOR) };
    let (loud, offered) = (Load::Tasks(sizes.loud()), Load::Offered(OFFERED));
    for (load, beside) in rotated(&[(loud, false), (loud, true), (offered, false), (offered, true)], round) {
        place.again(Contender::Cartlog).await?;
        let upkeep = beside.then(|| Upkeep::begin(place.ours.pool.clone()));
        let work = Work::one_item_each(Products::Many(1_000), sizes.loud());
        let sample = cartlog(&place.ours, Contender::Cartlog, work, *load, length).await?;
        if let Some(upkeep) = upkeep {
            let times = upkeep.end().await?;
            let scenario = upkeep_scenario(place.before, *load, true);
            report.value(format!("{scenario}, round {}: VACUUM and ANALYZE ran", round + 1), times.into(), "times");
        }
        report.add(Key::new("log", upkeep_scenario(place.before, *load, *beside), load.tasks(), Contender::Cartlog), sample);
    }
    Ok(())
}

/// A log with one product in very many carts, and another one whose inventory changed very often.
struct Crowd {
    place: Place,
    popular: ProductId,
    counted: ProductId,
    /// A product whose inventory was reported once: the least that can be read.
    reported: ProductId,
    /// Like `reported`, for the first commands of a process: PostgreSQL plans a connection's first statements.
    others: Vec<ProductId>,
    size: u64,
}

impl Crowd {
    async fn fill(bench: &Bench) -> Result<Self> {
        let size = bench.sizes.crowd;
        // No rival takes part.
        let place = Place::fill(bench, 1_000, false).await?;
        let [popular, counted, reported] = [(); 3].map(|()| ProductId::new());
        let others = (0..16).map(|_| ProductId::new()).collect();
        let mut crowd = Self { place, popular, counted, reported, others, size };
        bench.say(format!("filling it with a product in {0} carts, and one with {0} inventory changes", thousands(size)));
        let pool = &crowd.place.ours.pool;
        LOG.add_carts(pool, size, Products::One(crowd.popular)).await?;
        LOG.add_inventories(pool, size, crowd.counted).await?;
        for product in crowd.others.iter().chain([&crowd.reported]) {
            LOG.add_inventories(pool, 1, *product).await?;
        }
        crowd.place.before = u64::try_from(LOG.head(pool).await?)?;
        crowd.place.filled_again = false;
        Ok(crowd)
    }

    fn products(&self) -> [(String, ProductId); 4] {
        [
            (NEW_PRODUCT.to_owned(), ProductId::new()),
            (popular_product(self.size), self.popular),
            (counted_product(self.size), self.counted),
            (REPORTED_PRODUCT.to_owned(), self.reported),
        ]
    }

    /// Times the first command on each product, each in a new store.
    async fn first_commands(&self, round: usize, report: &mut Report) -> Result<()> {
        let kinds = self.products();
        let mut times = vec![vec![]; kinds.len()];
        for turn in 0..FIRST_COMMANDS {
            let options = self.place.ours.options_as("cartlog_commands")?.disable_statement_logging();
            let store = EventStore::<DomainEvent>::new(options, settings(Contender::Cartlog));
            // This warms up connections and statements, but not these products' states. The appender uses its two connections in turn. A
            // command with a conflict makes two calls. One command without a conflict in between spreads the conflicts over both.
            for half in self.others.chunks(self.others.len() / 2) {
                for product in half {
                    store.decide(&AddItem::new(CartId::new(), *product, false)?).await?;
                }
                store.decide(&AddItem::new(CartId::new(), ProductId::new(), false)?).await?;
            }
            // In four turns, each kind follows each other kind once (E. J. Williams' squares, 1949).
            for kind in [0, 1, 3, 2].map(|step| (step + round + turn) % 4) {
                let product = if kind == 0 { ProductId::new() } else { kinds[kind].1 };
                let command = AddItem::new(CartId::new(), product, false)?;
                let started = Instant::now();
                store.decide(&command).await?;
                times[kind].push(started.elapsed().as_secs_f64());
            }
            store.close().await;
        }
        for ((name, _), times) in kinds.iter().zip(times) {
            let middle = Spread::of(times).map_or(f64::NAN, |spread| spread.median);
            let sample = Sample { per_second: 1.0 / middle, p50_ms: Some(middle * 1_000.0), ..Sample::default() };
            report.add(Key::new("log", first_command(name), 1, Contender::Cartlog), sample);
        }
        Ok(())
    }
}
