//! Add Item through `event-store`, beside the same decision without the cache, through disintegrate-postgres, and the floor.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use cart_events::{CartId, DomainEvent, ProductId};
use disintegrate::NoSnapshot;
use disintegrate_postgres::decision_maker;
use event_store::{EventStore, StoreSettings};
use sqlx::{ConnectOptions, PgPool};
use tokio::task::JoinHandle;

use crate::{
    Bench,
    add_item::AddItem,
    database::{Database, FLOOR, LOG, Products, RIVAL, Rival, Table},
    floor::Floor,
    measure::{Load, Sample, Spread},
    report::{Contender, Key, Report, thousands},
};

/// With more events before, Cartlog is measured alone, as a rival's log would take twenty minutes and as many gigabytes.
const RIVALS_UP_TO: u64 = 1_000_000;
/// Filling so many events anew is quicker than removing what a measurement adds.
const FILLED_ANEW: u64 = 100_000;
/// Commands on the hot cart, until another takes its place: its items stay in its history, and a cart does not have thousands.
const HOT_CART_COMMANDS: u32 = 300;
/// Where the load is not all that can be, but what is offered: Add Items a second.
pub(crate) const OFFERED: u32 = 10_000;
/// At the least, beside VACUUM and ANALYZE and beside nothing: several of them are to fall into it.
const UPKEEP_FOR: Duration = Duration::from_secs(5);
/// Fresh processes that each ask for products which they do not know.
const FIRST_COMMANDS: usize = 40;

/// The settings of a service; without the cache, for a rival that has everything else as we have it.
pub(crate) fn settings(contender: Contender) -> StoreSettings {
    let ours = StoreSettings::default();
    if contender == Contender::Loading { StoreSettings { known_bytes: 0, ..ours } } else { ours }
}

/// The carts that commands go to.
#[derive(Debug, Clone, Copy)]
enum Carts {
    /// A task adds so many items to a cart, then takes another.
    Own { items: u32 },
    /// All tasks use one at a time.
    Hot,
}

/// What is added to which carts.
pub(crate) struct Work {
    carts: Vec<Mutex<(CartId, u32)>>,
    commands_a_cart: u32,
    hot: bool,
    products: Products,
}

impl Work {
    fn new(carts: Carts, products: Products, tasks: usize) -> Self {
        let (count, commands_a_cart, hot) = match carts {
            Carts::Own { items } => (tasks, items, false),
            Carts::Hot => (1, HOT_CART_COMMANDS, true),
        };
        Self { carts: (0..count).map(|_| Mutex::new((CartId::new(), 0))).collect(), commands_a_cart, hot, products }
    }

    /// Each task adds to carts of its own, one item each.
    pub(crate) fn one_item_each(products: Products, tasks: usize) -> Self {
        Self::new(Carts::Own { items: 1 }, products, tasks)
    }

    pub(crate) fn next(&self, task: usize) -> Result<AddItem, String> {
        let mut cart = self.carts[task % self.carts.len()].lock().unwrap_or_else(PoisonError::into_inner);
        if cart.1 == self.commands_a_cart {
            *cart = (CartId::new(), 0);
        }
        cart.1 += 1;
        AddItem::new(cart.0, self.products.any(), self.hot).map_err(|error| error.to_string())
    }
}

/// One log, the floor beside it, and disintegrate's log, all with as many events before.
pub(crate) struct Place {
    pub(crate) ours: Database,
    rival: Option<(Database, Rival)>,
    before: u64,
    /// For each measurement, as it is small; else what was added is removed.
    filled_anew: bool,
}

impl Place {
    pub(crate) async fn fill(bench: &Bench, before: u64, with_rival: bool) -> Result<Self> {
        bench.say(format!("filling a log with {} events", thousands(before)));
        let rival = if with_rival { Some(bench.server.rival().await?) } else { None };
        let place = Self { ours: bench.server.log().await?, rival, before, filled_anew: before <= FILLED_ANEW };
        place.refill(Contender::Cartlog).await?;
        if before <= RIVALS_UP_TO {
            place.refill(Contender::Floor).await?;
            place.refill(Contender::Disintegrate).await?;
        }
        Ok(place)
    }

    async fn refill(&self, contender: Contender) -> Result<()> {
        let Some((pool, table)) = self.table(contender) else { return Ok(()) };
        sqlx::raw_sql(&format!("TRUNCATE {}", table.name)).execute(pool).await?;
        table.add_carts(pool, self.before / 2, Products::Many(1_000)).await
    }

    /// The log as it was when it was filled, after a checkpoint. A very large one keeps what measurements add, some hundredths of it: what was
    /// removed from its end would have to be skipped there, which is nothing that happens to a log.
    pub(crate) async fn again(&self, contender: Contender) -> Result<()> {
        match self.table(contender) {
            _ if self.before > RIVALS_UP_TO => {}
            Some((pool, table)) if !self.filled_anew => table.cut(pool, self.before).await?,
            _ => self.refill(contender).await?,
        }
        self.ours.checkpoint().await
    }

    fn table(&self, contender: Contender) -> Option<(&PgPool, Table)> {
        Some(match contender {
            Contender::Disintegrate => (&self.rival.as_ref()?.0.pool, RIVAL),
            Contender::Floor => (&self.ours.pool, FLOOR),
            _ => (&self.ours.pool, LOG),
        })
    }

    /// One measurement. What is measured has run for a moment before, so that connections and statements are there.
    pub(crate) async fn measure(&self, contender: Contender, work: Work, tasks: usize, length: Duration) -> Result<Sample> {
        self.again(contender).await?;
        let work = Arc::new(work);
        match contender {
            Contender::Cartlog | Contender::Loading => cartlog(&self.ours, contender, work, Load::Tasks(tasks), length).await,
            Contender::Disintegrate => {
                let (_, store) = self.rival.as_ref().ok_or_else(|| anyhow!("disintegrate's log was not made"))?;
                let maker = decision_maker(store.clone(), NoSnapshot);
                Ok(warmed_up(Load::Tasks(tasks), length, move |task| {
                    let (maker, command) = (maker.clone(), work.next(task));
                    async move { maker.make(command?).await.map(drop).map_err(|error| format!("{error:?}")) }
                })
                .await)
            }
            _ => {
                let floor = Floor::connect(&self.ours, tasks).await?;
                let of_operation = floor.clone();
                let sample = warmed_up(Load::Tasks(tasks), length, move |task| {
                    let (floor, command) = (of_operation.clone(), work.next(task));
                    async move { floor.insert(task, &command?).await }
                })
                .await;
                floor.close().await;
                Ok(sample)
            }
        }
    }
}

/// Add Item by a process of its own, on a log as it stands.
pub(crate) async fn cartlog(
    database: &Database,
    contender: Contender,
    work: impl Into<Arc<Work>>,
    load: Load,
    length: Duration,
) -> Result<Sample> {
    let options = database.options_as("cartlog_commands")?.disable_statement_logging();
    let store = EventStore::<DomainEvent>::new(options, settings(contender));
    let (of_operation, work) = (store.clone(), work.into());
    let sample = warmed_up(load, length, move |task| {
        let (store, command) = (of_operation.clone(), work.next(task));
        async move { store.decide(&command?).await.map(drop).map_err(|error| format!("{error:?}")) }
    })
    .await;
    store.close().await;
    Ok(sample)
}

/// VACUUM and ANALYZE of the log, begun once a second: sixty times as often as autovacuum looks whether there is reason to.
struct Upkeep {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Result<u32, sqlx::Error>>,
}

impl Upkeep {
    fn begin(pool: PgPool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let running = tokio::spawn(async move {
            // At autovacuum's own pace.
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

    /// How often it was done.
    async fn end(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let times = self.running.await??;
        ensure!(times > 0, "nothing was vacuumed meanwhile");
        Ok(times)
    }
}

/// So long it takes until the pages that are used are in memory again, after another log was, and their first changes since a checkpoint are
/// written: with 10 million events some thousand more pages than with 10 thousand. Seen there in steps of 250 ms: the first did 13 % less
/// than those after it, of which none was better than another.
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures after a tenth of the time that does not count, and [`WARM_UP`] at the least.
pub(crate) async fn warmed_up<O, F>(load: Load, length: Duration, operation: O) -> Sample
where
    O: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    // What is quick says nothing, and is no longer for it.
    load.put((length / 10).max(WARM_UP.min(length)), operation.clone()).await;
    load.put(length, operation).await
}

struct Scenario<'a> {
    name: String,
    place: &'a Place,
    carts: Carts,
    products: Products,
    contenders: &'static [Contender],
    levels: &'a [usize],
}

/// The names of scenarios that the bars speak of.
pub(crate) fn one_item(before: u64) -> String {
    format!("a new cart each, {} events before", thousands(before))
}
/// With as many tasks as the bars speak of, or with what is offered; while it is vacuumed and analysed, or is not.
pub(crate) fn upkeep_scenario(before: u64, load: Load, beside: bool) -> String {
    let beside = if beside { "while VACUUM and ANALYZE run" } else { "with neither VACUUM nor ANALYZE" };
    match load {
        Load::Tasks(_) => format!("{}, {beside}", one_item(before)),
        Load::Offered(rate) => format!("Add Item, {} a second, {} events before, {beside}", thousands(rate.into()), thousands(before)),
    }
}
pub(crate) const HOT_CART: &str = "one hot cart";
pub(crate) const NEW_PRODUCT: &str = "a new process, a new product";
pub(crate) const REPORTED_PRODUCT: &str = "a new process, a product with one inventory change";
pub(crate) fn popular_product(crowd: u64) -> String {
    format!("a new process, a product in {} carts", thousands(crowd))
}
pub(crate) fn counted_product(crowd: u64) -> String {
    format!("a new process, a product with {} inventory changes", thousands(crowd))
}
/// The same, of which only the first command on that product counts.
pub(crate) fn first_command(scenario: &str) -> String {
    format!("{scenario}: the first command on it")
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
        // With both at it, PostgreSQL has no more connections than for this.
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

/// Add Item on the largest log, which is vacuumed and analysed at the same time, or is not.
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

/// All of them, in each round from another one on.
pub(crate) fn rotated<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    let (end, start) = all.split_at(round % all.len().max(1));
    start.iter().chain(end)
}

/// A log in which one product is in very many carts, and another one's inventory changed very often.
struct Crowd {
    place: Place,
    popular: ProductId,
    counted: ProductId,
    /// Its inventory was reported once: what is to be read of it cannot be less.
    reported: ProductId,
    /// As `reported`, for processes to begin with: what a connection does for the first time, PostgreSQL has to plan.
    others: Vec<ProductId>,
    size: u64,
}

impl Crowd {
    async fn fill(bench: &Bench) -> Result<Self> {
        let size = bench.sizes.crowd;
        // No rival is asked.
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
        crowd.place.filled_anew = false;
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

    /// In fresh stores, each product's first command is timed.
    async fn first_commands(&self, round: usize, report: &mut Report) -> Result<()> {
        let kinds = self.products();
        let mut times = vec![vec![]; kinds.len()];
        for turn in 0..FIRST_COMMANDS {
            let options = self.place.ours.options_as("cartlog_commands")?.disable_statement_logging();
            let store = EventStore::<DomainEvent>::new(options, settings(Contender::Cartlog));
            // Connections and statements, but not these products' states. The appender takes its two connections in turn: a command that meets
            // a conflict needs both, a call after the other, so all conflicts would fall to the one, if not for one that meets none.
            for half in self.others.chunks(self.others.len() / 2) {
                for product in half {
                    store.decide(&AddItem::new(CartId::new(), *product, false)?).await?;
                }
                store.decide(&AddItem::new(CartId::new(), ProductId::new(), false)?).await?;
            }
            // In four turns each kind follows each other one once (E. J. Williams' squares, 1949).
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
