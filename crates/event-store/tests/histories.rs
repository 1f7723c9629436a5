//! Exactness: several processes run random decisions over overlapping boundaries, while processes die, freeze and lose connections.
//! `test_support::histories` records and checks the histories. `CHECK_SEED` chooses the commands.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot continue fails")]
#![allow(clippy::print_stdout, reason = "a failed test shows its seed and its history's summary")]

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use cart_events::{CartId, CartStream, DomainEvent, Inventory, InventoryStream, ProductId, examples::Shopping};
use disintegrate::StateQuery;
use embedded::forwarder::Forwarder;
use event_store::{Decided, Decision, Dependent, EventStore, Position, State, StoreSettings};
use futures::TryStreamExt;
use sqlx::{Connection, PgPool};
use test_support::{
    Database, TestLog, blocking, eventually,
    histories::{CommandId, Happened, Outcome, Setup, Spec, Summary, Workers, read_log, seeds, settings, translate},
};
use tokio::task::JoinHandle;

/// Sizes of the state cache: off, so small that states are evicted all the time, and ample.
const CACHE_BYTES: [usize; 3] = [0, 20_000, 16 << 20];

/// Not a test of its own: the other tests' worker processes run it.
#[test]
fn worker_runs_commands_when_started_as_a_process() {
    test_support::histories::work_if_asked();
}

/// Commands that a process runs at once: few, and many.
const TASKS: [u32; 2] = [6, 48];

fn workers(database: &Database, seed: u64, state_cache_bytes: usize, tasks: u32) -> Workers {
    workers_on(database.url_as("cartlog_commands"), seed, state_cache_bytes, tasks)
}

fn workers_on(database_url: String, seed: u64, state_cache_bytes: usize, tasks: u32) -> Workers {
    let setup = Setup {
        database_url,
        seed,
        processes: 3,
        tasks,
        state_cache_bytes,
        worker: "histories::worker_runs_commands_when_started_as_a_process",
    };
    Workers::start(setup, Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Returns every seed with every number of tasks.
fn seeds_and_tasks() -> impl Iterator<Item = (u64, u32)> {
    seeds().into_iter().flat_map(|seed| TASKS.map(|tasks| (seed, tasks))).inspect(|(seed, tasks)| println!("seed {seed}, {tasks} tasks"))
}

/// Checks while it runs that a reader who sees an event sees all events before it.
struct CommitOrder {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<u32>,
}

impl CommitOrder {
    fn watch(pool: PgPool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let looking = tokio::spawn(async move {
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                let (newest, count): (i64, i64) =
                    sqlx::query_as("SELECT coalesce(max(event_id), 0), count(*) FROM event").fetch_one(&pool).await.unwrap();
                assert_eq!(newest, count, "an event is visible, and an earlier one is not");
                looks += 1;
                // Leaves time to the processes under test.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            looks
        });
        Self { stop, looking }
    }

    async fn held(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.looking.await.unwrap() > 10, "it was looked at often enough to mean something");
    }
}

/// Waits until each task has had about two more commands answered.
async fn until_each_answered(workers: &mut Workers, tasks: u32) {
    let all = workers.running();
    workers.until_answered(2 * tasks as usize + 20, &all).await;
}

/// Checks that the history had enough of everything to be worth checking.
#[track_caller]
fn meant_something(summary: &Summary) {
    println!("{summary}");
    let Summary { written, empty, refused, conflicts, .. } = *summary;
    assert!(written > 150 && empty > 50 && refused > 80 && conflicts > 20, "{summary}");
}

/// Checks also that every command learned its outcome within its time.
#[track_caller]
fn meant_something_and_answered_all(summary: &Summary) {
    meant_something(summary);
    assert_eq!((summary.unknown, summary.undone), (0, 0), "{summary}");
}

/// Checks also that the outcome of some calls had to be looked up.
#[track_caller]
fn meant_something_and_lost_answers(summary: &Summary) {
    meant_something(summary);
    assert!(summary.looked_up > 0, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn decisions_of_several_processes_are_exact() {
    for (seed, (state_cache_bytes, tasks)) in seeds().into_iter().cycle().zip(CACHE_BYTES.into_iter().zip([TASKS[0], TASKS[1], TASKS[1]])) {
        println!("seed {seed}, {state_cache_bytes} bytes of cache, {tasks} tasks");
        let database = Database::create_for_any_event().await;
        let pool = database.pool().await;
        let order = CommitOrder::watch(pool.clone());
        let store = EventStore::new(database.options(), StoreSettings::default());
        // More events than one answer holds.
        translate(&store, seed, 0, 1_000).await;
        let mut workers = workers(&database, seed, state_cache_bytes, tasks);
        for number in 1_000..1_030 {
            translate(&store, seed, number, number + 1).await;
            let all = workers.running();
            workers.until_answered(2, &all).await;
        }
        until_each_answered(&mut workers, tasks).await;
        order.held().await;
        meant_something_and_answered_all(&workers.check(&pool).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_killed_process_loses_and_doubles_no_append() {
    for (seed, tasks) in seeds_and_tasks() {
        let database = Database::create_for_any_event().await;
        let pool = database.pool().await;
        let order = CommitOrder::watch(pool.clone());
        let mut workers = workers(&database, seed, CACHE_BYTES[2], tasks);
        for _ in 0..6 {
            until_each_answered(&mut workers, tasks).await;
            let all = workers.running();
            workers.kill(all[0]).await;
            workers.start_one();
        }
        order.held().await;
        meant_something_and_answered_all(&workers.check(&pool).await);
    }
}

const CUT: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
    WHERE usename = 'cartlog_commands' AND datname = current_database()";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn cut_connections_lose_and_double_no_append() {
    for (seed, tasks) in seeds_and_tasks() {
        let database = Database::create_for_any_event().await;
        let pool = database.pool().await;
        let order = CommitOrder::watch(pool.clone());
        let mut workers = workers(&database, seed, CACHE_BYTES[2], tasks);
        let all = workers.running();
        for _ in 0..15 {
            workers.until_answered(8, &all).await;
            let cut: i64 = sqlx::query_scalar(CUT).fetch_one(&pool).await.unwrap();
            assert!(cut > 0);
        }
        until_each_answered(&mut workers, tasks).await;
        order.held().await;
        meant_something_and_lost_answers(&workers.check(&pool).await);
    }
}

/// A server that ends a connection rarely does so between commit and answer. Here every cut is there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_answer_lost_after_the_commit_is_recovered() {
    for (seed, tasks) in seeds_and_tasks() {
        let database = Database::create_for_any_event().await;
        let pool = database.pool().await;
        let order = CommitOrder::watch(pool.clone());
        let forwarder = Forwarder::before(database.options().get_port()).await.unwrap();
        let port = |port: u16| format!(":{port}/");
        let database_url = database.url_as("cartlog_commands").replace(&port(database.options().get_port()), &port(forwarder.port()));
        let mut workers = workers_on(database_url, seed, CACHE_BYTES[2], tasks);
        let all = workers.running();
        for _ in 0..15 {
            workers.until_answered(8, &all).await;
            forwarder.lose_answers();
        }
        until_each_answered(&mut workers, tasks).await;
        order.held().await;
        meant_something_and_lost_answers(&workers.check(&pool).await);
    }
}

/// The longest delay that a process frozen at the worst moment may cause for others. It is a promise, so it is a bound on time.
const FROZEN_DELAYS: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_frozen_process_holds_up_no_other_and_resumes_when_thawed() {
    for (seed, tasks) in seeds_and_tasks() {
        let database = Database::create_for_any_event().await;
        let pool = database.pool().await;
        let order = CommitOrder::watch(pool.clone());
        let mut workers = workers(&database, seed, CACHE_BYTES[2], tasks);
        let all = workers.running();
        for round in 0..12 {
            workers.until_answered(5, &all).await;
            // Every other round it is frozen during recovery, which holds the lock.
            if round % 2 == 0 {
                sqlx::query(CUT).execute(&pool).await.unwrap();
            }
            let frozen = all[round % all.len()];
            workers.freeze(frozen);
            let others: Vec<_> = all.iter().copied().filter(|process| *process != frozen).collect();
            let going_on = tokio::time::timeout(FROZEN_DELAYS, workers.until_answered(8, &others)).await;
            assert!(going_on.is_ok(), "the other processes stand still");
            workers.thaw(frozen);
            workers.until_answered(5, &[frozen]).await;
        }
        until_each_answered(&mut workers, tasks).await;
        order.held().await;
        meant_something_and_lost_answers(&workers.check(&pool).await);
    }
}

/// Recovery looks an outcome up under the lock, on each of a process's two connections. The server releases the lock without the process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_process_frozen_during_recovery_holds_up_no_other() {
    let database = Database::create_for_any_event().await;
    let pool = database.pool().await;
    let mut workers = workers(&database, seeds()[0], CACHE_BYTES[2], TASKS[1]);
    let all = workers.running();
    until_each_answered(&mut workers, TASKS[1]).await;
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *holding).await.unwrap();
    let wait_for_the_lock = async |in_what: &str| {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cartlog_commands' AND datname = current_database() \
                AND wait_event = 'relation' AND query {in_what} '%append_events%'"
        );
        eventually(in_what, || async {
            let waiting: i64 = sqlx::query_scalar(&sql).fetch_one(&pool).await.unwrap();
            (waiting >= 2 * all.len() as i64).then_some(())
        })
        .await;
    };
    wait_for_the_lock("LIKE").await;
    sqlx::query(CUT).execute(&pool).await.unwrap();
    wait_for_the_lock("NOT LIKE").await;
    workers.freeze(all[0]);
    holding.rollback().await.unwrap();
    let going_on = tokio::time::timeout(FROZEN_DELAYS, workers.until_answered(8, &all[1..])).await;
    assert!(going_on.is_ok(), "the other processes stand still");
    workers.thaw(all[0]);
    until_each_answered(&mut workers, TASKS[1]).await;
    meant_something_and_lost_answers(&workers.check(&pool).await);
}

/// The worst moment: the server holds the lock, has begun to answer an append, and nobody reads the answer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_process_frozen_in_a_large_answer_holds_up_no_other() {
    let database = Database::create_for_any_event().await;
    let mut workers = workers(&database, seeds()[0], CACHE_BYTES[2], TASKS[1]);
    let all = workers.running();
    workers.until_answered(10, &all).await;
    let mut frozen = sqlx::PgConnection::connect_with(&database.options_as("cartlog_commands")).await.unwrap();
    // A thousand query items, each of which finds every event in the log.
    let mut answer = sqlx::query(
        "SELECT append_events(array_fill(0, ARRAY[1000]), array_fill('Opened,Put,Taken,Described,Counted,Noted'::text, ARRAY[1000]), \
            array_fill(0::bigint, ARRAY[1000]), array_fill(false, ARRAY[1000]), \
            array_fill(NULL::uuid, ARRAY[1000]), array_fill(NULL::uuid, ARRAY[1000]), array_fill(NULL::uuid, ARRAY[1000]), \
            '{}', '{}', '{}', '{}', '{}', '{}', '{}')",
    )
    .fetch(&mut frozen);
    answer.try_next().await.unwrap().unwrap();
    let going_on = tokio::time::timeout(FROZEN_DELAYS, workers.until_answered(8, &all)).await;
    assert!(going_on.is_ok(), "the other processes stand still");
    let rest = answer.try_for_each(|_| async { Ok(()) }).await;
    assert!(rest.is_err(), "the answer was too small to be stuck");
    workers.check(&database.pool().await).await;
}

/// Runs commands one after the other, on alternating stores, with a translator's events in between. Returns the outcomes and the log.
async fn one_after_the_other(seed: u64, stores: usize, state_cache_bytes: usize) -> (Vec<Outcome>, Vec<(i64, Happened)>) {
    let database = Database::create_for_any_event().await;
    let stores: Vec<_> =
        (0..stores).map(|_| EventStore::<Happened>::new(database.options_as("cartlog_commands"), settings(state_cache_bytes))).collect();
    let translator = EventStore::new(database.options(), StoreSettings::default());
    let mut outcomes = vec![];
    for number in 0..300 {
        let command = CommandId { process: 0, task: 0, number };
        // Two commands a store: each store finds some states as it left them, and some changed.
        let store = &stores[number as usize / 2 % stores.len()];
        outcomes.push(Spec::of(seed, command).run(store).await.0);
        if number % 10 == 0 {
            translate(&translator, seed, number / 10, number / 10 + 1).await;
        }
    }
    (outcomes, read_log(&database.pool().await).await)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn every_answer_is_the_same_with_and_without_the_state_cache() {
    for seed in seeds() {
        for stores in [1, 2] {
            let [nothing, little, plenty] = CACHE_BYTES.map(|state_cache_bytes| one_after_the_other(seed, stores, state_cache_bytes));
            let (outcomes, log) = nothing.await;
            assert!(log.len() > 200 && outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused { .. })), "seed {seed}");
            for known in [little.await, plenty.await] {
                let differs = (0..).zip(outcomes.iter().zip(&known.0)).find(|(_, (without, with))| without != with);
                assert_eq!(differs, None, "CHECK_SEED={seed}, {stores} stores: the command, without and with the cache");
                assert_eq!(log, known.1, "CHECK_SEED={seed}, {stores} stores");
            }
        }
    }
}

/// Like Submit Cart: reads the cart, and then the inventories of its products.
struct Submit(Shopping);

#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
struct Cart {
    #[id]
    cart_id: CartId,
    products: Vec<ProductId>,
    submitted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(InventoryStream)]
struct Stock {
    #[id]
    product_id: ProductId,
    is_out: bool,
}

impl State for Cart {
    fn mutate(&mut self, event: CartStream, _: Position) {
        match event {
            CartStream::ItemAdded { product_id, .. } => self.products.push(product_id),
            CartStream::CartSubmitted { .. } => self.submitted = true,
            _ => {}
        }
    }
}

impl State for Stock {
    const NEWEST_SUFFICES: bool = true;

    fn mutate(&mut self, InventoryStream::InventoryChanged { inventory, .. }: InventoryStream, _: Position) {
        self.is_out = inventory == Inventory::OUT_OF_STOCK;
    }
}

impl Decision for Submit {
    type Event = DomainEvent;
    type StateQuery = Dependent<Cart, Vec<Stock>>;
    type Error = &'static str;

    fn state_query(&self) -> Dependent<Cart, Vec<Stock>> {
        Dependent::new(Cart { cart_id: self.0.cart_id, products: vec![], submitted: false }, |cart| {
            cart.products.iter().map(|product_id| Stock { product_id: *product_id, is_out: false }).collect()
        })
    }

    fn process(&self, (cart, stocks): &(Cart, Vec<Stock>)) -> Result<Decided<DomainEvent>, &'static str> {
        match cart {
            Cart { submitted: true, .. } => Err("submitted"),
            Cart { products, .. } if products.is_empty() => Err("empty"),
            _ if stocks.iter().any(|stock| stock.is_out) => Err("out of stock"),
            Cart { products, .. } => Ok(Decided::Events(vec![self.0.submitted(products.len())])),
        }
    }
}

/// Counts how often the decision returns events. The first time, something else happens before the append.
struct Counted {
    decision: Submit,
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    happens: AtomicU32,
}

impl Counted {
    fn new(cart: Shopping, meanwhile: impl FnOnce() + Send + 'static) -> Self {
        Self { decision: Submit(cart), meanwhile: Mutex::new(Some(Box::new(meanwhile))), happens: AtomicU32::new(0) }
    }
}

impl Decision for Counted {
    type Event = DomainEvent;
    type StateQuery = Dependent<Cart, Vec<Stock>>;
    type Error = &'static str;

    fn state_query(&self) -> Dependent<Cart, Vec<Stock>> {
        self.decision.state_query()
    }

    fn process(&self, state: &(Cart, Vec<Stock>)) -> Result<Decided<DomainEvent>, &'static str> {
        let decided = self.decision.process(state)?;
        self.happens.fetch_add(1, Ordering::SeqCst);
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        Ok(decided)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn submits_of_carts_with_different_products_never_conflict() {
    for state_cache_bytes in CACHE_BYTES {
        let log = TestLog::<DomainEvent>::create().await;
        let carts: Vec<_> = (0..120).map(|_| Shopping::new()).collect();
        log.append(carts.iter().flat_map(|cart| cart.with_items(3).chain([cart.inventory(0, 5), cart.inventory(1, 7)]))).await;
        let stores = [0, 1].map(|_| EventStore::<DomainEvent>::new(log.database.options(), settings(state_cache_bytes)));
        let submits: Vec<_> = (0..)
            .zip(carts)
            .map(|(n, cart)| {
                let store = stores[n % stores.len()].clone();
                tokio::spawn(async move {
                    let submit = Counted::new(cart, || {});
                    store.decide(&submit).await.unwrap();
                    submit.happens.into_inner()
                })
            })
            .collect();
        for submit in submits {
            assert_eq!(submit.await.unwrap(), 1, "the submit conflicted with another cart");
        }
    }
}

/// An event of a cart, or of another cart.
type Happens = fn(&Shopping, &Shopping) -> DomainEvent;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_submit_conflicts_only_with_changes_of_its_own_products() {
    for state_cache_bytes in CACHE_BYTES {
        // The event in between, how often the submit then decides, and whether it succeeds.
        let between: [(Happens, u32, bool); 5] = [
            (|_, other| other.submitted(2), 1, true),
            (|_, other| other.inventory(0, 0), 1, true),
            // A product that is not in the cart.
            (|cart, _| cart.inventory(3, 0), 1, true),
            (|cart, _| cart.inventory(1, 5), 2, true),
            (|cart, _| cart.inventory(1, 0), 1, false),
        ];
        let log = Arc::new(TestLog::<DomainEvent>::create().await);
        let store = EventStore::<DomainEvent>::new(log.database.options(), settings(state_cache_bytes));
        for (happens, decided, submitted) in between {
            let (cart, other) = (Shopping::new(), Shopping::new());
            log.append(cart.with_items(2).chain(other.with_items(2))).await;
            let (event, appends) = (happens(&cart, &other), log.clone());
            let submit = Counted::new(cart, move || {
                blocking(appends.append([event]));
            });
            let answer = store.decide(&submit).await;
            assert_eq!((submit.happens.into_inner(), answer.is_ok()), (decided, submitted), "{answer:?}");
        }
    }
}
