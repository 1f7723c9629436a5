//! Operations on projections while replicas run them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step fails the test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use cart_events::{CartStream, DomainEvent, examples::Shopping};
use event_store::{EventStore, Metadata, Position, Recorded, StoreSettings};
use operations::{CompareError, Difference};
use projections::{
    Kind, Projection, Projections, Settings, Switch, Wait,
    todo::{self, NewTodo, Outcome},
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use test_support::{Process, TestLog, eventually};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Keeps a row per event.
#[derive(Clone, Default)]
struct Tally<const VERSION: i32 = 1> {
    /// Writes other rows for cleared carts.
    differs: bool,
    /// Fails on every batch.
    broken: Arc<AtomicBool>,
}

#[async_trait]
impl<const VERSION: i32> Projection for Tally<VERSION> {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "tally";
    const VERSION: i32 = VERSION;
    const TABLES: &'static [&'static str] = &["tally"];

    fn key(event: &CartStream) -> Option<Uuid> {
        Some(event.cart_id().uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        if self.broken.load(Ordering::SeqCst) {
            sqlx::query("SELECT 1 / 0").execute(&mut *transaction).await?;
        }
        for event in batch {
            let other = self.differs && matches!(event.event, CartStream::CartCleared { .. });
            // They count as equal, and are not the same.
            let weight = if other { "1.00" } else { "1.0" };
            sqlx::query("INSERT INTO tally VALUES ($1, $2, $3::numeric)")
                .bind(event.event.cart_id().uuid())
                .bind(event.position.0)
                .bind(weight)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(())
    }
}

async fn log() -> TestLog<DomainEvent> {
    let log = TestLog::create().await;
    log.create_table("tally", "cart_id uuid, position bigint, weight numeric").await;
    log
}

async fn until_applied(log: &TestLog<DomainEvent>, position: Position) {
    eventually("it is applied", || async {
        let waited = log.projections.wait("tally", None, position, Duration::ZERO).await.unwrap();
        (waited == Wait::Reached).then_some(())
    })
    .await;
}

/// Waits until every replica has looked at the table since: the heartbeat after this moment is whole.
async fn until_seen(log: &TestLog<DomainEvent>) {
    for _ in 0..2 {
        let before: sqlx::types::time::OffsetDateTime =
            sqlx::query_scalar("SELECT max(beaten_at) FROM replica").fetch_one(log.store.pool()).await.unwrap();
        eventually("a heartbeat has come", || async {
            let beat: bool =
                sqlx::query_scalar("SELECT min(beaten_at) > $1 FROM replica").bind(before).fetch_one(log.store.pool()).await.unwrap();
            beat.then_some(())
        })
        .await;
    }
}

async fn rows(log: &TestLog<DomainEvent>, build: &str) -> i64 {
    sqlx::query_scalar(&format!("SELECT count(*) FROM {build}.tally")).fetch_one(log.store.pool()).await.unwrap()
}

/// Build and status of every build, with its version.
async fn builds(log: &TestLog<DomainEvent>) -> Vec<(String, String, i32)> {
    sqlx::query_as("SELECT build, status, version FROM projection ORDER BY build").fetch_all(log.store.pool()).await.unwrap()
}

fn build(build: &str, status: &str, version: i32) -> (String, String, i32) {
    (build.to_owned(), status.to_owned(), version)
}

async fn compared(log: &TestLog<DomainEvent>) -> Difference {
    operations::compare(log.store.pool(), "tally", 10, Duration::from_secs(20)).await.unwrap()
}

async fn until_held(log: &TestLog<DomainEvent>, build: &str, segments: i64) {
    eventually("the segments are held", || async {
        let held: i64 = sqlx::query_scalar("SELECT count(*) FROM checkpoint WHERE build = $1 AND owner IS NOT NULL")
            .bind(build)
            .fetch_one(log.store.pool())
            .await
            .unwrap();
        (held == segments).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn paused_projection_applies_nothing_until_resumed() {
    let log = log().await;
    let before = log.append(Shopping::new().with_items(3)).await;
    let process = Process::start(&log, Tally::<1>::default());
    until_applied(&log, before).await;
    assert!(operations::pause(log.store.pool(), "tally", true).await.unwrap());
    assert!(!operations::pause(log.store.pool(), "tally", true).await.unwrap(), "no news");
    until_seen(&log).await;
    let head = log.append(Shopping::new().with_items(3)).await;
    until_seen(&log).await;
    assert_eq!(rows(&log, "projection_a").await, 4);
    let waited = process.projections.wait("tally", None, head, Duration::ZERO).await.unwrap();
    assert_eq!(waited, Wait::TimedOut(before));
    // A rebuild that begins during the pause waits, too.
    projections::rebuild_named(log.store.pool(), "tally", Switch::WhenReady).await.unwrap();
    process.stop().await;
    let process = Process::start(&log, Tally::<1>::default());
    until_held(&log, "projection_a", 16).await;
    until_held(&log, "projection_b", 16).await;
    until_seen(&log).await;
    assert_eq!((rows(&log, "projection_a").await, rows(&log, "projection_b").await), (4, 0));
    let backlog = process.projections.backlog().await.unwrap();
    assert_eq!((backlog["tally"].paused, backlog["tally"].lag), (true, 4));
    assert!(operations::pause(log.store.pool(), "tally", false).await.unwrap());
    until_applied(&log, head).await;
    eventually("the new one is in service", || async { (builds(&log).await[1].1 == "serving").then_some(()) }).await;
    assert_eq!(rows(&log, "projection_b").await, 8);
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn compare_holds_both_builds_at_one_position() {
    let log = log().await;
    let processes = [Process::start(&log, Tally::<1>::default()), Process::start(&log, Tally::<1>::default())];
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    let none = operations::compare(log.store.pool(), "tally", 10, Duration::from_secs(20)).await;
    assert!(matches!(none, Err(CompareError::NoOther)), "{none:?}");
    projections::rebuild_named(log.store.pool(), "tally", Switch::WhenAsked).await.unwrap();

    // Things happen all the while.
    let enough = CancellationToken::new();
    let load = async {
        let mut head = Position::START;
        while !enough.is_cancelled() {
            head = log.append(Shopping::new().with_items(3)).await;
        }
        head
    };
    let comparing = async {
        for _ in 0..3 {
            let difference = compared(&log).await;
            assert!(difference.is_none(), "{difference:?}");
            let table = &difference.tables[0];
            // Every event that there was makes a row.
            assert_eq!((table.rows_serving, table.rows_other), (difference.position.0, difference.position.0));
        }
        enough.cancel();
    };
    let (head, ()) = tokio::join!(load, comparing);
    until_applied(&log, head).await;
    for process in processes {
        process.stop().await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn compare_counts_and_samples_differing_rows() {
    let log = log().await;
    let cart = Shopping::new();
    log.append(cart.with_items(1)).await;
    let old = Process::start(&log, Tally::<1>::default());
    until_applied(&log, log.append([cart.cleared()]).await).await;
    // Begun at rest, so that it can be held before it goes into service.
    operations::pause(log.store.pool(), "tally", true).await.unwrap();
    let new = Process::start(&log, Tally::<2> { differs: true, ..Tally::default() });
    eventually("the new version is being made", || async { (builds(&log).await.len() == 2).then_some(()) }).await;
    sqlx::query("UPDATE projection SET switch_when_ready = false WHERE status = 'building'").execute(log.store.pool()).await.unwrap();
    operations::pause(log.store.pool(), "tally", false).await.unwrap();
    // And one row twice, which a set would not show.
    sqlx::query("INSERT INTO projection_a.tally SELECT * FROM projection_a.tally WHERE position = 1")
        .execute(log.store.pool())
        .await
        .unwrap();
    let difference = compared(&log).await;
    let table = &difference.tables[0];
    assert_eq!((difference.serving.as_str(), difference.other.as_str()), ("projection_a", "projection_b"));
    assert_eq!((difference.position, table.rows_serving, table.rows_other), (Position(3), 4, 3));
    assert_eq!((table.only_serving, table.only_other), (2, 1));
    let row = |position: i64, weight: &str| format!(r#"{{"cart_id":"{}","position":{position},"weight":{weight}}}"#, cart.cart_id);
    let samples: Vec<_> = table.samples.iter().map(|sample| (sample.serving, sample.times, sample.row.get().to_owned())).collect();
    assert_eq!(samples, [(true, 1, row(1, "1.0")), (false, 1, row(3, "1.00")), (true, 1, row(3, "1.0"))]);
    let few = operations::compare(log.store.pool(), "tally", 1, Duration::from_secs(20)).await.unwrap();
    assert_eq!((few.tables[0].only_serving, few.tables[0].samples.len()), (2, 1));
    sqlx::query("ALTER TABLE projection_b.tally ADD COLUMN more integer").execute(log.store.pool()).await.unwrap();
    let refused = operations::compare(log.store.pool(), "tally", 1, Duration::from_secs(20)).await;
    assert!(matches!(&refused, Err(CompareError::Columns(table)) if table == "tally"), "{refused:?}");
    old.stop().await;
    new.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn failed_compare_releases_the_builds() {
    let log = log().await;
    let process = Process::start(&log, Tally::<1>::default());
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    // Nobody makes the other one: it is of a version that nobody runs.
    let other = "INSERT INTO projection (name, build, version, status, tables, switch_when_ready)
                 VALUES ('tally', 'projection_b', 7, 'building', '{tally}', false)";
    sqlx::query(other).execute(log.store.pool()).await.unwrap();
    sqlx::query("INSERT INTO checkpoint (name, build, segment) SELECT 'tally', 'projection_b', s FROM generate_series(0, 15) s")
        .execute(log.store.pool())
        .await
        .unwrap();
    let apart = operations::compare(log.store.pool(), "tally", 10, Duration::from_millis(300)).await;
    assert!(matches!(apart, Err(CompareError::Apart(_))), "{apart:?}");
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    // The process that compared has died.
    let stop = "UPDATE projection SET hold_at = 8, hold_until = clock_timestamp() + interval '3 seconds'";
    sqlx::query(stop).execute(log.store.pool()).await.unwrap();
    let going = operations::compare(log.store.pool(), "tally", 10, Duration::from_secs(20)).await;
    assert!(matches!(going, Err(CompareError::Running(_))), "{going:?}");
    until_seen(&log).await;
    let head = log.append(Shopping::new().with_items(3)).await;
    assert_eq!(log.projections.wait("tally", None, head, Duration::ZERO).await.unwrap(), Wait::TimedOut(Position(8)));
    until_applied(&log, head).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn dropped_build_leaves_nothing() {
    let log = log().await;
    let process = Process::start(&log, Tally::<1>::default());
    for _ in 0..20 {
        log.append(Shopping::new().with_items(3)).await;
    }
    until_applied(&log, Position(80)).await;
    projections::rebuild_named(log.store.pool(), "tally", Switch::WhenAsked).await.unwrap();
    eventually("it is worked on", || async { (rows(&log, "projection_b").await > 0).then_some(()) }).await;
    assert!(!operations::drop_build(log.store.pool(), "tally", "projection_a").await.unwrap(), "it is in service");
    assert!(operations::drop_build(log.store.pool(), "tally", "projection_b").await.unwrap());
    assert!(!operations::drop_build(log.store.pool(), "tally", "projection_b").await.unwrap());
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    until_seen(&log).await;
    assert_eq!((rows(&log, "projection_a").await, rows(&log, "projection_b").await), (84, 0));
    assert_eq!(builds(&log).await, [build("projection_a", "serving", 1)]);
    // It can be rebuilt after that, and the retired build is dropped as well.
    projections::rebuild_named(log.store.pool(), "tally", Switch::WhenReady).await.unwrap();
    eventually("it is in service", || async { (builds(&log).await[1].1 == "serving").then_some(()) }).await;
    assert!(operations::drop_build(log.store.pool(), "tally", "projection_a").await.unwrap());
    assert_eq!((rows(&log, "projection_a").await, rows(&log, "projection_b").await), (0, 84));
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn retired_build_is_revived_and_serves_again() {
    let log = log().await;
    let process = Process::start(&log, Tally::<1>::default());
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    assert!(!operations::revive(log.store.pool(), "tally", Switch::WhenReady).await.unwrap());
    projections::rebuild_named(log.store.pool(), "tally", Switch::WhenReady).await.unwrap();
    eventually("it is in service", || async { (builds(&log).await[1..] == [build("projection_b", "serving", 1)]).then_some(()) }).await;
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    assert!(operations::revive(log.store.pool(), "tally", Switch::WhenReady).await.unwrap());
    let back = [build("projection_a", "serving", 1), build("projection_b", "retired", 1)];
    eventually("the old one is in service again", || async { (builds(&log).await == back).then_some(()) }).await;
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    assert_eq!((rows(&log, "projection_a").await, rows(&log, "projection_b").await), (12, 8));
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn failing_build_leaves_the_old_one_serving() {
    let log = log().await;
    log.append(Shopping::new().with_items(3)).await;
    let old = Process::start(&log, Tally::<1>::default());
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    let broken = Arc::new(AtomicBool::new(true));
    let new = Process::start(&log, Tally::<2> { broken: broken.clone(), ..Tally::default() });
    until_held(&log, "projection_b", 16).await;
    until_seen(&log).await;
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    assert_eq!(builds(&log).await, [build("projection_a", "serving", 1), build("projection_b", "building", 2)]);
    assert_eq!((rows(&log, "projection_a").await, rows(&log, "projection_b").await), (12, 0));
    // The build is dropped, and a correct release rebuilds it.
    assert!(operations::drop_build(log.store.pool(), "tally", "projection_b").await.unwrap());
    new.stop().await;
    let new = Process::start(&log, Tally::<2>::default());
    eventually("it is in service", || async { (builds(&log).await[1..] == [build("projection_b", "serving", 2)]).then_some(()) }).await;
    assert_eq!(rows(&log, "projection_b").await, 12);
    old.stop().await;
    new.stop().await;
}

/// Asks for a to-do for each event.
struct Asking;

#[async_trait]
impl Projection for Asking {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "asking";
    const KIND: Kind = Kind::Automation;
    const TABLES: &'static [&'static str] = &[];

    fn key(event: &CartStream) -> Option<Uuid> {
        Some(event.cart_id().uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        let todos: Vec<_> = batch
            .iter()
            .map(|event| NewTodo {
                key: event.position.to_string(),
                position: event.position,
                payload: Value::Null,
                metadata: Metadata::default(),
            })
            .collect();
        todo::enqueue(transaction, Self::NAME, &todos).await
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn paused_automation_attempts_no_to_do() {
    let log = log().await;
    log.append(Shopping::new().with_items(3)).await;
    log.project(Asking, Settings::default()).await;
    let process = Process::start(&log, Asking);
    until_held(&log, "automation", 16).await;
    assert!(operations::pause(log.store.pool(), "asking", true).await.unwrap());
    let done = Arc::new(AtomicUsize::new(0));
    let settings = todo::Settings { poll_interval: Duration::from_millis(20), ..todo::Settings::default() };
    let ((_asked, wake), stop, count) = (watch::channel(Position::START), CancellationToken::new(), done.clone());
    let working =
        tokio::spawn(todo::work(process.projections.store().pool().clone(), "asking", settings, wake, stop.clone(), move |todo| {
            let count = count.clone();
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                if todo.key == "4" { Outcome::Failed { error: "no".into() } } else { Outcome::Done }
            }
        }));
    until_seen(&log).await;
    assert_eq!(done.load(Ordering::SeqCst), 0);
    let waiting = process.projections.backlog().await.unwrap()["asking"].todos.unwrap();
    assert_eq!((waiting.open, waiting.due, waiting.failed), (4, 4, 0));
    assert!(waiting.oldest.unwrap() > 0.0);
    assert!(operations::pause(log.store.pool(), "asking", false).await.unwrap());
    eventually("they are done", || async {
        let waiting = process.projections.backlog().await.unwrap()["asking"].todos.unwrap();
        ((waiting.open, waiting.due, waiting.failed, waiting.oldest) == (0, 0, 1, None)).then_some(())
    })
    .await;
    assert_eq!(done.load(Ordering::SeqCst), 4);
    stop.cancel();
    working.await.unwrap();
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn backlog_covers_all_processes() {
    let log = log().await;
    let processes = [Process::start(&log, Tally::<1>::default()), Process::start(&log, Tally::<1>::default())];
    until_applied(&log, log.append(Shopping::new().with_items(3)).await).await;
    until_held(&log, "projection_a", 16).await;
    projections::rebuild_named(log.store.pool(), "tally", Switch::WhenAsked).await.unwrap();
    for process in &processes {
        let backlog = eventually("nothing is behind, and the new build is there", || async {
            let backlog = process.projections.backlog().await.unwrap().remove("tally").unwrap();
            // The one that came first has handed back what is the other's, and that has taken it.
            (backlog.owned == 16 && backlog.rebuild.as_ref().is_some_and(|rebuild| rebuild.lag == 0)).then_some(backlog)
        })
        .await;
        assert_eq!((backlog.lag, backlog.segments, backlog.owned, backlog.replicas), (0, 16, 16, 2));
        assert_eq!(json!(backlog.rebuild.unwrap().progress), json!(1.0));
        assert!(backlog.todos.is_none());
    }
    for process in processes {
        process.stop().await;
    }
    // Nobody is at work, and one who has just come sees it.
    let late = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
    assert!(Projections::new(late).backlog().await.unwrap().is_empty(), "it runs none");
    log.append(Shopping::new().with_items(3)).await;
    operations::pause(log.store.pool(), "tally", true).await.unwrap();
    let process = Process::start(&log, Tally::<1>::default());
    let backlog = eventually("it runs", || async { process.projections.backlog().await.unwrap().remove("tally") }).await;
    assert_eq!((backlog.lag, backlog.rebuild.map(|rebuild| (rebuild.lag, rebuild.progress))), (4, Some((4, 0.5))));
    assert!(backlog.lag_seconds > 0.0);
    process.stop().await;
}
