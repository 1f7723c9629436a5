//! Projections and to-dos against a real PostgreSQL: one process works, another takes over, and nothing is applied twice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::common::Add;
use async_trait::async_trait;
use cart_events::{CartStream, DomainEvent, examples::Shopping};
use event_store::{EventStore, Metadata, Position, Recorded, StoreSettings};
use projections::{
    Kind, Projection, Projections, Settings,
    todo::{self, NewTodo, Outcome},
};
use sqlx::PgConnection;
use test_support::{TestLog, eventually};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Keeps each event's position; a second time would break the primary key.
#[derive(Clone, Default)]
struct Positions {
    applied: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
    /// The next batch loses its connection.
    cut: Arc<AtomicBool>,
    /// Milliseconds that the database takes for an event.
    slow: usize,
}

#[async_trait]
impl Projection for Positions {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "carts_with_products";
    const TABLES: &'static [&'static str] = &["carts_with_products"];
    const SEGMENTS: i32 = 1;

    fn key(_: &CartStream) -> Option<Uuid> {
        None
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        if self.broken.load(Ordering::SeqCst) {
            sqlx::query("SELECT 1 / 0").execute(&mut *transaction).await?;
        }
        if self.cut.swap(false, Ordering::SeqCst) {
            sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&mut *transaction).await?;
        }
        if self.slow > 0 {
            let seconds = (self.slow * batch.len()) as f64 / 1000.0;
            sqlx::query("SELECT pg_sleep($1)").bind(seconds).execute(&mut *transaction).await?;
        }
        for event in batch {
            sqlx::query("INSERT INTO carts_with_products VALUES (lpad(to_hex($1::bigint), 32, '0')::uuid, gen_random_uuid(), gen_random_uuid(), $1)")
                .bind(event.position.0)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("INSERT INTO cart_items_cart VALUES (lpad(to_hex($1::bigint), 32, '0')::uuid)")
                .bind(event.position.0)
                .execute(&mut *transaction)
                .await?;
        }
        self.applied.fetch_add(batch.len(), Ordering::SeqCst);
        Ok(())
    }
}

/// A process that runs the projection until it is aborted, as one that dies.
struct Running(tokio::task::JoinHandle<()>, Positions);

impl Running {
    fn start(log: &TestLog<DomainEvent>, projection: Positions) -> Self {
        Self::start_with(log, projection, Settings::default())
    }

    fn start_with(log: &TestLog<DomainEvent>, projection: Positions, settings: Settings) -> Self {
        let store = EventStore::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
        let projections = Projections::new(store);
        let settings = Settings { lease: Duration::from_millis(600), batch: 3, ..settings };
        let ran = projection.clone();
        let running = tokio::spawn(async move {
            projections.run(ran, settings, Arc::default(), CancellationToken::new()).await.unwrap();
        });
        Self(running, projection)
    }

    fn applied(&self) -> usize {
        self.1.applied.load(Ordering::SeqCst)
    }
}

async fn rows(log: &TestLog<DomainEvent>) -> Vec<i64> {
    let rows = sqlx::query_scalar("SELECT position FROM projection_a.carts_with_products ORDER BY position");
    rows.fetch_all(log.store.pool()).await.unwrap()
}

async fn until_rows(log: &TestLog<DomainEvent>, count: i64) {
    let wanted: Vec<i64> = (1..=count).collect();
    eventually("every event is applied", || async { (rows(log).await.len() >= wanted.len()).then_some(()) }).await;
    assert_eq!(rows(log).await, wanted);
}

async fn owner(log: &TestLog<DomainEvent>) -> Option<Uuid> {
    sqlx::query_scalar("SELECT owner FROM checkpoint WHERE name = 'carts_with_products'")
        .fetch_optional(log.store.pool())
        .await
        .unwrap()
        .flatten()
}

#[tokio::test]
async fn one_of_several_processes_works_a_projection_and_another_takes_over_when_it_dies() {
    let log = TestLog::<DomainEvent>::create().await;
    let first = Running::start(&log, Positions::default());
    eventually("the first holds it", || async { owner(&log).await }).await;
    let second = Running::start(&log, Positions::default());
    log.append(Shopping::new().with_items(3)).await;
    until_rows(&log, 4).await;
    assert_eq!((first.applied(), second.applied()), (4, 0));
    first.0.abort();
    log.append(Shopping::new().with_items(3)).await;
    until_rows(&log, 8).await;
    assert_eq!((first.applied(), second.applied()), (4, 4));
}

#[tokio::test]
async fn processes_that_die_over_and_over_lose_and_double_nothing() {
    let log = TestLog::<DomainEvent>::create().await;
    for round in 1..=8 {
        let running = Running::start(&log, Positions::default());
        for _ in 0..5 {
            log.append(Shopping::new().with_items(3)).await;
        }
        eventually("some of the round is applied", || async { (rows(&log).await.len() > (round - 1) * 20).then_some(()) }).await;
        running.0.abort();
    }
    let _last = Running::start(&log, Positions::default());
    until_rows(&log, 160).await;
}

#[tokio::test]
async fn what_goes_wrong_after_something_was_done_is_tried_again_soon_however_often_that_happens() {
    let log = TestLog::<DomainEvent>::create().await;
    // Doubled each time, the pause would be longer than the test waits.
    let settings = Settings { max_backoff: Duration::from_secs(3_600), ..Settings::default() };
    let running = Running::start_with(&log, Positions::default(), settings);
    for round in 1..=14 {
        running.1.cut.store(true, Ordering::SeqCst);
        log.append(Shopping::new().with_items(1)).await;
        until_rows(&log, round * 2).await;
        assert!(!running.1.cut.load(Ordering::SeqCst), "a batch has lost its connection");
    }
}

#[tokio::test]
async fn a_process_that_was_fenced_off_writes_nothing() {
    let log = TestLog::<DomainEvent>::create().await;
    let running = Running::start(&log, Positions::default());
    log.append(Shopping::new().with_items(3)).await;
    until_rows(&log, 4).await;
    // Another has it now, and holds it for long.
    let other = "WITH other AS (
                     INSERT INTO replica VALUES ('carts_with_products', gen_random_uuid(), 1, 1, clock_timestamp() + interval '1 hour')
                     RETURNING id
                 )
                 UPDATE checkpoint SET owner = other.id FROM other";
    sqlx::query(other).execute(log.store.pool()).await.unwrap();
    let head = log.append(Shopping::new().with_items(3)).await;
    let other = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    eventually("the append is known to all", || async { (other.head_watcher().newest() >= head).then_some(()) }).await;
    running.0.abort();
    assert_eq!(rows(&log).await, [1, 2, 3, 4]);
    let position: i64 = sqlx::query_scalar("SELECT position FROM checkpoint").fetch_one(log.store.pool()).await.unwrap();
    assert_eq!(position, 4);
}

#[tokio::test]
async fn a_batch_that_fails_moves_nothing_and_goes_through_when_the_cause_is_gone() {
    let log = TestLog::<DomainEvent>::create().await;
    let projection = Positions::default();
    projection.broken.store(true, Ordering::SeqCst);
    let running = Running::start(&log, projection.clone());
    log.append(Shopping::new().with_items(3)).await;
    eventually("the projection has it", || async { owner(&log).await }).await;
    assert_eq!((rows(&log).await, running.applied()), (vec![], 0));
    projection.broken.store(false, Ordering::SeqCst);
    until_rows(&log, 4).await;
}

#[tokio::test]
async fn a_batch_for_which_there_is_no_time_is_made_smaller() {
    let log = TestLog::<DomainEvent>::create().await;
    let database = log.database.options();
    let limit =
        format!("ALTER ROLE cartlog_projections IN DATABASE {} SET transaction_timeout = '500ms'", database.get_database().unwrap());
    sqlx::query(&limit).execute(log.store.pool()).await.unwrap();
    for _ in 0..15 {
        log.append(Shopping::new().with_items(3)).await;
    }
    let (projection, stop) = (Positions { slow: 20, ..Positions::default() }, CancellationToken::new());
    let store = EventStore::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
    let projections = Projections::new(store);
    let running = tokio::spawn(projections.run(projection.clone(), Settings::default(), Arc::default(), stop.clone()));
    until_rows(&log, 60).await;
    assert_eq!(projection.applied.load(Ordering::SeqCst), 60);
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_projection_ahead_of_the_log_stands_still() {
    let log = TestLog::<DomainEvent>::create().await;
    let first = Running::start(&log, Positions::default());
    log.append(Shopping::new().with_items(3)).await;
    until_rows(&log, 4).await;
    first.0.abort();
    // As after a restore of the log to an older state.
    sqlx::query("UPDATE checkpoint SET position = 100, owner = NULL").execute(log.store.pool()).await.unwrap();
    let second = Running::start(&log, Positions::default());
    log.append(Shopping::new().with_items(3)).await;
    eventually("it has looked", || async { owner(&log).await }).await;
    assert_eq!((rows(&log).await.len(), second.applied()), (4, 0));
    assert!(!second.0.is_finished());
}

#[derive(Default)]
struct Batches {
    at_work: AtomicUsize,
    done: AtomicUsize,
    /// Those that began while another's was at work.
    beside: AtomicUsize,
}

/// One of several projections that are behind, whose batches are counted together.
struct Behind<const N: usize>(Arc<Batches>);

#[async_trait]
impl<const N: usize> Projection for Behind<N> {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = ["carts_with_products", "cart_items", "inventories"][N];
    const TABLES: &'static [&'static str] = &[];
    const SEGMENTS: i32 = 1;

    fn key(_: &CartStream) -> Option<Uuid> {
        None
    }

    async fn apply(&self, transaction: &mut PgConnection, _: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        let beside = self.0.at_work.fetch_add(1, Ordering::SeqCst) > 0;
        let waited = sqlx::query("SELECT pg_sleep(0.005)").execute(transaction).await;
        self.0.at_work.fetch_sub(1, Ordering::SeqCst);
        self.0.beside.fetch_add(usize::from(beside), Ordering::SeqCst);
        self.0.done.fetch_add(1, Ordering::SeqCst);
        waited.map(|_| ())
    }
}

/// Of the batches of three projections that are behind, the share that begin while another's is at work.
async fn share_beside(appended_meanwhile: bool) -> f64 {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    for _ in 0..10 {
        log.append((0..90).map(|_| cart.cleared())).await;
    }
    let done = CancellationToken::new();
    let appending = tokio::spawn({
        let (store, done) = (log.store.clone(), done.clone());
        async move {
            while appended_meanwhile && !done.is_cancelled() {
                store.decide(&Add::to(&Shopping::new())).await.unwrap();
            }
        }
    });
    let batches = Arc::<Batches>::default();
    let store = EventStore::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
    let projections = Projections::new(store);
    let settings = Settings { batch: 3, ..Settings::default() };
    let running = [
        tokio::spawn(projections.run(Behind::<0>(batches.clone()), settings.clone(), Arc::default(), done.clone())),
        tokio::spawn(projections.run(Behind::<1>(batches.clone()), settings.clone(), Arc::default(), done.clone())),
        tokio::spawn(projections.run(Behind::<2>(batches.clone()), settings, Arc::default(), done.clone())),
    ];
    // At least 900 altogether. Until a third of them is done, it may not be known whether anybody appends.
    let after = async |so_many: usize| {
        eventually("they go on", || async { (batches.done.load(Ordering::SeqCst) >= so_many).then_some(()) }).await;
        (batches.done.load(Ordering::SeqCst), batches.beside.load(Ordering::SeqCst))
    };
    let (before, then) = (after(300).await, after(700).await);
    done.cancel();
    appending.await.unwrap();
    for running in running {
        running.await.unwrap().unwrap();
    }
    (then.1 - before.1) as f64 / (then.0 - before.0) as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn projections_that_are_behind_go_one_after_the_other_while_commands_append_and_else_side_by_side() {
    // Not none: on a machine that stands still for a second it looks as if nobody appended. Nor all: each has its own pauses.
    let (appended, idle) = (share_beside(true).await, share_beside(false).await);
    assert!(appended < 0.2 && idle > 0.4, "{appended} {idle}");
}

/// Keeps the sizes of its batches, each of which takes some time.
struct Sizes(Arc<Mutex<Vec<usize>>>);

#[async_trait]
impl Projection for Sizes {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "cart_items";
    const TABLES: &'static [&'static str] = &[];

    fn key(_: &CartStream) -> Option<Uuid> {
        None
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        self.0.lock().unwrap().push(batch.len());
        sqlx::query("SELECT pg_sleep(0.005)").execute(transaction).await.map(drop)
    }
}

/// Whether it has come, by the sizes of the batches and how many events were appended.
type Moment<'a> = &'a dyn Fn(&[usize], i64) -> bool;

/// How many there are that a projection is behind by.
const BEHIND: usize = 60_000;

/// Of a projection that is far behind and takes 100 positions at the most, while so many events are appended a second: the sizes of its
/// batches, and how many were appended, at each of these moments.
async fn catching_up(per_second: u32, moments: &[Moment<'_>]) -> Vec<(Vec<usize>, i64)> {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    for _ in 0..BEHIND / 1_000 {
        log.append((0..1_000).map(|_| cart.cleared())).await;
    }
    let (done, sizes) = (CancellationToken::new(), Arc::<Mutex<Vec<usize>>>::default());
    let store = EventStore::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
    let projections = Projections::new(store);
    let settings = Settings { batch: 100, ..Settings::default() };
    let running = tokio::spawn(projections.run(Sizes(sizes.clone()), settings, Arc::default(), done.clone()));
    let (started, appended, mut came) = (Instant::now(), Cell::new(0), vec![]);
    for moment in moments {
        let so_far = eventually("the moment has come", || async {
            let due = (started.elapsed().as_secs_f64() * f64::from(per_second)) as i64;
            if due > appended.get() {
                log.append((appended.get()..due).map(|_| cart.cleared())).await;
                appended.set(due);
            }
            let sizes = sizes.lock().unwrap();
            moment(&sizes, due).then(|| (sizes.clone(), due))
        });
        came.push(so_far.await);
    }
    let applied: usize = sizes.lock().unwrap().iter().sum();
    assert!(applied < BEHIND, "it was still behind");
    done.cancel();
    running.await.unwrap().unwrap();
    came
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_is_behind_takes_all_that_it_can_where_little_is_appended() {
    for per_second in [0, 50] {
        let whole = |sizes: &[usize], _: i64| sizes.iter().rev().take_while(|size| **size == 100).count() >= 50;
        catching_up(per_second, &[&whole]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_is_behind_takes_no_more_than_gains_on_the_log_while_commands_append() {
    // It could apply three times as many in batches of 10. The first second is for it to see how much is appended.
    let came = catching_up(500, &[&|_, appended| appended >= 500, &|_, appended| appended >= 2_000]).await;
    let [(first, appended_first), (then, appended_then)] = &came[..] else { panic!("{came:?}") };
    let applied: usize = then[first.len()..].iter().sum();
    let for_each_appended = applied as f64 / (appended_then - appended_first) as f64;
    assert!((1.1..1.8).contains(&for_each_appended), "{for_each_appended}: {then:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_is_behind_takes_as_much_at_a_time_as_it_needs_to_gain_on_the_log() {
    // More than in batches of 10, and less than in those of 100.
    let grown = |sizes: &[usize], _: i64| sizes.iter().rev().take(20).filter(|size| **size > 10).count() >= 15;
    let came = catching_up(5_000, &[&grown]).await;
    assert!(came[0].0.contains(&10), "it began with little: {came:?}");
}

struct Asking;

#[async_trait]
impl Projection for Asking {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "asking";
    const KIND: Kind = Kind::Automation;
    const TABLES: &'static [&'static str] = &[];

    fn key(_: &CartStream) -> Option<Uuid> {
        None
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        let todos: Vec<_> = batch
            .iter()
            .map(|event| NewTodo {
                key: (event.position.0 % 2).to_string(),
                position: event.position,
                payload: serde_json::json!({"position": event.position}),
                metadata: Metadata::default(),
            })
            .collect();
        todo::ask(transaction, Self::NAME, &todos).await
    }
}

async fn status(log: &TestLog<DomainEvent>, key: &str) -> (String, i32) {
    sqlx::query_as("SELECT status, attempts FROM todo WHERE key = $1").bind(key).fetch_one(log.store.pool()).await.unwrap()
}

#[tokio::test]
async fn to_dos_are_asked_for_once_a_key_and_done_by_another_when_a_worker_dies_and_kept_when_they_fail() {
    let log = TestLog::<DomainEvent>::create().await;
    log.append(Shopping::new().with_items(3)).await;
    log.project(Asking, Settings::default()).await;
    let asked: i64 = sqlx::query_scalar("SELECT count(*) FROM todo").fetch_one(log.store.pool()).await.unwrap();
    assert_eq!(asked, 2);

    let settings = todo::Settings {
        lease: Duration::from_millis(500),
        first_backoff: Duration::from_millis(5),
        poll_interval: Duration::from_millis(50),
        ..todo::Settings::default()
    };
    let (_asked, wake) = watch::channel(Position::START);
    // This one takes them all and dies with them in hand.
    let (pool, stop) = (log.store.pool().clone(), CancellationToken::new());
    let dying = tokio::spawn(todo::work(pool, Asking::NAME, settings.clone(), wake.clone(), stop, |_| std::future::pending()));
    eventually("it has them in hand", || async { (status(&log, "0").await.1 == 1).then_some(()) }).await;
    dying.abort();

    let (pool, stop) = (log.store.pool().clone(), CancellationToken::new());
    let working = tokio::spawn(todo::work(pool, Asking::NAME, settings, wake, stop.clone(), |todo| async move {
        match (todo.key.as_str(), todo.attempts) {
            ("0", 2) => Outcome::Retry { error: "not yet".into() },
            ("0", _) => Outcome::Done,
            _ => Outcome::Failed { error: "never".into() },
        }
    }));
    eventually("both are settled", || async {
        (status(&log, "0").await == ("done".to_owned(), 3) && status(&log, "1").await == ("failed".to_owned(), 2)).then_some(())
    })
    .await;
    stop.cancel();
    working.await.unwrap();
    log.append(Shopping::new().with_items(3)).await;
    log.project(Asking, Settings::default()).await;
    assert_eq!(status(&log, "0").await, ("done".to_owned(), 3));
}
