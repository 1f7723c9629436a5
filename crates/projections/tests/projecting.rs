//! Projections and to-dos: another process takes over, and nothing is applied twice.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::common::Add;
use async_trait::async_trait;
use cart_events::{CartStream, DomainEvent, examples::Shopping};
use event_store::{EventStore, Metadata, Position, Recorded, StoreError, StoreSettings};
use projections::{
    Kind, Projection, ProjectionError, Projections, Query, Settings,
    todo::{self, NewTodo, Outcome},
};
use sqlx::PgConnection;
use test_support::{TestLog, eventually};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Keeps each event's position. Applying an event twice violates the primary key.
#[derive(Clone, Default)]
struct Positions {
    applied: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
    /// Cuts the connection of the next batch.
    cut: Arc<AtomicBool>,
    /// Milliseconds that the database needs per event.
    slow: usize,
}

#[async_trait]
impl Projection for Positions {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "carts_with_products";
    const TABLES: &'static [&'static str] = &["carts_with_products"];

    fn key(event: &CartStream) -> Option<Uuid> {
        Some(event.cart_id().uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        if self.broken.load(Ordering::SeqCst) {
            // A fault that passes. One of the event itself would park its key.
            sqlx::query("DO $$ BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = 'serialization_failure'; END $$")
                .execute(&mut *transaction)
                .await?;
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

/// A process that runs the projection until it is aborted.
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
            projections.run(ran, settings, CancellationToken::new()).await.unwrap();
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
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn second_process_takes_over_when_the_first_dies() {
    let log = TestLog::<DomainEvent>::create().await;
    let first = Running::start(&log, Positions::default());
    eventually("the first owns the segments", || async { owner(&log).await }).await;
    log.append(Shopping::new().with_items(3)).await;
    until_rows(&log, 4).await;
    let second = Running::start(&log, Positions::default());
    assert_eq!(first.applied(), 4);
    first.0.abort();
    log.append(Shopping::new().with_items(3)).await;
    until_rows(&log, 8).await;
    assert_eq!((first.applied() + second.applied(), second.applied() > 0), (8, true));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn dying_processes_lose_and_double_nothing() {
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
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn backoff_resets_after_progress() {
    let log = TestLog::<DomainEvent>::create().await;
    // If the pause always doubled, the test would time out.
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
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn fenced_process_writes_nothing() {
    let log = TestLog::<DomainEvent>::create().await;
    let running = Running::start(&log, Positions::default());
    log.append(Shopping::new().with_items(3)).await;
    until_rows(&log, 4).await;
    // Another replica owns the segments for a long time.
    let other = "WITH other AS (
                     INSERT INTO replica (name, id, version, beats, lease) VALUES ('carts_with_products', gen_random_uuid(), 1, 1, '1 hour')
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
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn failed_batch_moves_nothing_and_is_retried() {
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
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn batch_that_takes_too_long_is_made_smaller() {
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
    let running = tokio::spawn(projections.run(projection.clone(), Settings::default(), stop.clone()));
    until_rows(&log, 60).await;
    assert_eq!(projection.applied.load(Ordering::SeqCst), 60);
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// Records when each batch began and its number of events. Each batch takes 20 ms.
struct Batches(Arc<Mutex<Vec<(Instant, usize)>>>);

#[async_trait]
impl Projection for Batches {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "cart_items";
    const TABLES: &'static [&'static str] = &[];

    fn key(event: &CartStream) -> Option<Uuid> {
        Some(event.cart_id().uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        self.0.lock().unwrap().push((Instant::now(), batch.len()));
        sqlx::query("SELECT pg_sleep(0.02)").execute(transaction).await.map(drop)
    }
}

/// Lets a projection catch up with 5,000 events, and returns its batches. `beside_commands`: commands append meanwhile.
async fn catch_up(beside_commands: bool) -> Vec<(Instant, usize)> {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    for _ in 0..5 {
        log.append((0..1_000).map(|_| cart.cleared())).await;
    }
    let done = CancellationToken::new();
    let appending = tokio::spawn({
        let (store, done) = (log.store.clone(), done.clone());
        async move {
            while beside_commands && !done.is_cancelled() {
                store.decide(&Add::to(&Shopping::new())).await.unwrap();
            }
        }
    });
    let batches = Arc::<Mutex<Vec<(Instant, usize)>>>::default();
    let store = EventStore::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
    let projections = Projections::new(store.clone());
    if beside_commands {
        eventually("the appends are noticed", || async { store.head_watcher().grows().then_some(()) }).await;
    }
    let running = tokio::spawn(projections.run(Batches(batches.clone()), Settings::default(), done.clone()));
    eventually("it has caught up", || async {
        (batches.lock().unwrap().iter().map(|batch| batch.1).sum::<usize>() >= 5_000).then_some(())
    })
    .await;
    done.cancel();
    appending.await.unwrap();
    running.await.unwrap().unwrap();
    let batches = batches.lock().unwrap();
    batches.clone()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn catching_up_takes_whole_batches_without_appends() {
    let batches = catch_up(false).await;
    assert_eq!(batches.iter().map(|batch| batch.1).collect::<Vec<_>>(), [5_000]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn catching_up_leaves_half_of_the_time_to_appends() {
    let batches = catch_up(true).await;
    // On a slow machine the appends may pause for longer than the projection notices.
    let small = batches.iter().filter(|batch| batch.1 <= 500).count();
    let slept = batches.windows(2).filter(|pair| pair[1].0 - pair[0].0 >= Duration::from_millis(40)).count();
    assert!(small * 10 >= batches.len() * 8 && slept * 10 >= (batches.len() - 1) * 7, "{batches:?}");
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
        todo::enqueue(transaction, Self::NAME, &todos).await
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn automation_is_not_read() {
    let log = TestLog::<DomainEvent>::create().await;
    let head = log.append(Shopping::new().with_items(1)).await;
    log.project(Asking, Settings::default()).await;
    let query = || Query::new("SELECT 1::bigint FROM {build}.cart_items_cart");
    let once = log.projections.read::<(i64,)>(Asking::NAME, None, query()).await.unwrap_err();
    let waited = log.projections.read_from::<(i64,)>(Asking::NAME, None, head, Duration::from_secs(5), &query()).await.unwrap_err();
    for error in [once, waited] {
        assert!(matches!(&error, ProjectionError::Store(StoreError::Schema(why)) if why.contains("asking is an automation")), "{error:?}");
    }
}

async fn status(log: &TestLog<DomainEvent>, key: &str) -> (String, i32) {
    sqlx::query_as("SELECT status, attempts FROM todo WHERE key = $1").bind(key).fetch_one(log.store.pool()).await.unwrap()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn to_do_is_done_by_another_worker_when_one_dies() {
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
    // The first worker dies while it attempts both.
    let (pool, stop) = (log.store.pool().clone(), CancellationToken::new());
    let dying = tokio::spawn(todo::work(pool, Asking::NAME, settings.clone(), wake.clone(), stop, |_| std::future::pending()));
    eventually("the worker has leased them", || async { (status(&log, "0").await.1 == 1).then_some(()) }).await;
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

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn done_to_dos_are_deleted_and_not_enqueued_again() {
    let log = TestLog::<DomainEvent>::create().await;
    log.append(Shopping::new().with_items(3)).await;
    log.project(Asking, Settings::default()).await;
    // Key 0 has been done for 31 days, key 1 for 29 days, and another one failed long ago.
    sqlx::raw_sql(
        "UPDATE todo SET status = 'done', finished_at = clock_timestamp() - CASE key WHEN '0' THEN interval '31 days' ELSE interval '29 days' END;
         INSERT INTO todo (automation, key, position, payload, metadata, status, finished_at)
         VALUES ('asking', 'failed', 1, '{}', '{}', 'failed', clock_timestamp() - interval '1 year'),
                ('another', '0', 1, '{}', '{}', 'done', clock_timestamp() - interval '1 year')",
    )
    .execute(log.store.pool())
    .await
    .unwrap();
    let (_wake, woken) = watch::channel(Position::START);
    let (pool, stop) = (log.store.pool().clone(), CancellationToken::new());
    let working = tokio::spawn(todo::work(pool, Asking::NAME, todo::Settings::default(), woken, stop.clone(), |_| async { Outcome::Done }));
    let keys = async || -> Vec<(String, String)> {
        let keys = sqlx::query_as("SELECT automation, key FROM todo ORDER BY 1, 2");
        keys.fetch_all(log.store.pool()).await.unwrap()
    };
    let kept = [("another", "0"), ("asking", "1"), ("asking", "failed")].map(|(automation, key)| (automation.to_owned(), key.to_owned()));
    eventually("the oldest one is deleted", || async { (keys().await == kept).then_some(()) }).await;
    stop.cancel();
    working.await.unwrap();
    // The checkpoint is past its event.
    log.project(Asking, Settings::default()).await;
    assert_eq!(keys().await, kept);
}
