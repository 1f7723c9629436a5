//! Faults of the world behind the log: stale servers, restores, half-open connections, a database that takes no writes, clocks that step.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use cart_events::{CartStream, DomainEvent, examples::Shopping};
use embedded::{database, distribution, forwarder::Forwarder, layout::Layout, postgres::Postgres, report::Report};
use event_store::{EventStore, Metadata, Position, Recorded, StoreSettings, Translated};
use projections::{
    Automation, Kind, Projection, ProjectionError, Projections, Query, Wait,
    todo::{self, NewTodo, Outcome},
};
use sqlx::{PgConnection, PgPool};
use test_support::{Process, TestLog, eventually, quick};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Keeps the position of each event. Applying an event twice violates the primary key.
#[derive(Clone)]
struct Positions;

#[async_trait]
impl Projection for Positions {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "positions";
    const TABLES: &'static [&'static str] = &["positions"];
    const KEYED_BY: Option<&'static str> = Some("cart_id");

    fn key(event: &CartStream) -> Option<Uuid> {
        Some(event.cart_id().uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        let positions: Vec<_> = batch.iter().map(|event| event.position.0).collect();
        sqlx::query("INSERT INTO positions SELECT unnest($1::bigint[])").bind(positions).execute(transaction).await.map(drop)
    }
}

async fn log() -> TestLog<DomainEvent> {
    let log = TestLog::create().await;
    log.create_table("positions", "position bigint PRIMARY KEY").await;
    log
}

async fn rows(pool: &PgPool) -> Vec<i64> {
    let build: String =
        sqlx::query_scalar("SELECT build FROM projection WHERE name = 'positions' AND status = 'serving'").fetch_one(pool).await.unwrap();
    sqlx::query_scalar(&format!("SELECT position FROM {build}.positions ORDER BY position")).fetch_all(pool).await.unwrap()
}

/// The positions of the events that the projection takes.
async fn wanted(pool: &PgPool) -> Vec<i64> {
    let taken = "SELECT event_id FROM event WHERE cart_id IS NOT NULL ORDER BY event_id";
    sqlx::query_scalar(taken).fetch_all(pool).await.unwrap()
}

async fn until_exact(pool: &PgPool) {
    eventually("every event is applied", || async { (rows(pool).await.len() >= wanted(pool).await.len()).then_some(()) }).await;
    assert_eq!(rows(pool).await, wanted(pool).await);
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

/// Appends a cart with a store of its own, which does not know a lost log. The log has had this many appends.
async fn append_after(log: &TestLog<DomainEvent>, appends: i64) {
    let store = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    append_with(&store, appends, Shopping::new().with_items(3)).await;
    store.close().await;
}

/// Appends where [`TestLog::append`] does, to a log that has had this many appends.
async fn append_with(store: &EventStore<DomainEvent>, appends: i64, events: impl IntoIterator<Item = DomainEvent>) {
    let source = event_store::SourcePartition { consumer: "test", topic: "history", partition: 0 };
    let events: Vec<_> = events.into_iter().map(|event| (event, Metadata::default())).collect();
    // A partition that was never read has no offset.
    let appended = store.append_from(source, (appends > 0).then_some(appends), appends + 1, &events).await.unwrap();
    assert!(matches!(appended, Translated::Appended { .. }), "{appended:?}");
}

/// Takes the events after a position away, as on a server that has not come as far, and returns how to bring them back.
async fn hide_events(pool: &PgPool, after: i64) -> &'static str {
    let hide = format!("CREATE TABLE hidden AS SELECT * FROM event WHERE event_id > {after}; DELETE FROM event WHERE event_id > {after}");
    execute(pool, &hide).await;
    "INSERT INTO event SELECT * FROM hidden"
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn batch_is_not_applied_from_a_server_that_is_behind() {
    let log = log().await;
    log.append(Shopping::new().with_items(3)).await;
    let head = log.append(Shopping::new().with_items(3)).await;
    // The process has heard of position 8, and asks a server that has come to 4.
    let store = StoreSettings { poll_interval: Duration::from_secs(3_600), ..StoreSettings::default() };
    let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_projections"), store);
    eventually("the head is known", || async { (store.head_watcher().newest() == head).then_some(()) }).await;
    let pool = log.database.pool().await;
    let show = hide_events(&pool, 4).await;
    let projections = Projections::new(store);
    let stop = CancellationToken::new();
    let running = tokio::spawn(projections.run(Positions, quick(), stop.clone()));
    eventually("what the server has is applied", || async {
        let serving = "SELECT count(*) FROM projection WHERE name = 'positions'";
        let is_registered = sqlx::query_scalar::<_, i64>(serving).fetch_one(&pool).await.unwrap() == 1;
        (is_registered && rows(&pool).await == [1, 2, 3, 4]).then_some(())
    })
    .await;
    let furthest: i64 = sqlx::query_scalar("SELECT max(position) FROM checkpoint").fetch_one(&pool).await.unwrap();
    assert!(furthest <= 4, "{furthest}");
    execute(&pool, show).await;
    until_exact(&pool).await;
    eventually("it works again", || async { projections.working("positions").ok() }).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// Batches are committed without a flush. If a backend is killed, the server recovers without a new start, and has lost the last ones.
#[tokio::test]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn batch_that_a_crash_loses_is_applied_again() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let scratch = layout.scratch("projections-crash").unwrap();
    let mut server = Postgres::start_on_free_port(&layout, &distribution, &scratch).await.unwrap();
    database::create(&server.url("postgres", "postgres"), database::NAME).await.unwrap();
    let url = |role| server.url(role, database::NAME);
    database::migrate(&url("postgres")).await.unwrap();
    let pool = database::connect(&url("postgres")).await.unwrap();
    // The server flushes only what asks for it.
    for sql in ["ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()"] {
        execute(&pool, sql).await;
    }
    for build in ["projection_a", "projection_b"] {
        let create =
            format!("CREATE TABLE {build}.positions (position bigint PRIMARY KEY); GRANT ALL ON {build}.positions TO cartlog_projections");
        execute(&pool, &create).await;
    }
    let owner = EventStore::<DomainEvent>::new(url("postgres").parse().unwrap(), StoreSettings::default());
    append_with(&owner, 0, Shopping::new().with_items(3)).await;
    // Heartbeats flush, too, so they are rare.
    let settings = projections::Settings { lease: Duration::from_secs(15), ..quick() };
    let process = Process::connected(url("cartlog_projections").parse().unwrap(), StoreSettings::default(), Positions, settings);
    let applied = || async {
        let rows = "SELECT position FROM projection_a.positions UNION ALL SELECT position FROM projection_b.positions ORDER BY position";
        let rows: Vec<i64> = sqlx::query_scalar(rows).fetch_all(&pool).await.ok()?;
        let taken = "SELECT event_id FROM event WHERE cart_id IS NOT NULL ORDER BY event_id";
        (rows == sqlx::query_scalar::<_, i64>(taken).fetch_all(&pool).await.ok()?).then_some(())
    };
    eventually("the first batch is applied", applied).await;
    execute(&pool, "CHECKPOINT").await;
    append_with(&owner, 1, Shopping::new().with_items(3)).await;
    eventually("the second batch is applied", applied).await;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&pool).await.unwrap();
    assert!(Command::new("kill").args(["-KILL", &backend.to_string()]).status().unwrap().success());
    // No event comes that would show the loss.
    eventually("the lost batch is applied again", applied).await;
    process.stop().await;
    server.stop().await.unwrap();
}

/// The process knows the positions of its own segments, and a connection that it kept leads to a server that has not come as far.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn read_with_min_position_never_gets_older_rows() {
    let log = log().await;
    let head = log.append(Shopping::new().with_items(3)).await;
    let pool = log.database.pool().await;
    let process = Process::start(&log, Positions);
    let reading = &process.projections;
    let wait = reading.wait("positions", None, head, Duration::from_secs(30)).await.unwrap();
    assert_eq!(wait, Wait::Reached);
    let query = || Query::new("SELECT position FROM {build}.positions ORDER BY position");
    let read = async |within| reading.read_from::<(i64,)>("positions", None, head, Duration::from_millis(within), &query()).await;
    assert_eq!(read(0).await.unwrap().0.len(), 4);

    let older = "BEGIN; CREATE TABLE newer AS SELECT * FROM projection_a.positions WHERE position > 2;
                 DELETE FROM projection_a.positions WHERE position > 2; UPDATE checkpoint SET position = 2; COMMIT";
    sqlx::raw_sql(older).execute(&pool).await.unwrap();
    assert_eq!(reading.read::<(i64,)>("positions", None, query()).await.unwrap().len(), 2, "the server is behind");
    let behind = read(300).await;
    assert!(matches!(behind, Err(ProjectionError::Behind(Position(2)))), "{behind:?}");
    let newer = format!("BEGIN; INSERT INTO projection_a.positions SELECT * FROM newer; UPDATE checkpoint SET position = {head}; COMMIT");
    let (rows, became) = tokio::join!(read(30_000), sqlx::raw_sql(&newer).execute(&pool));
    became.unwrap();
    assert_eq!(rows.unwrap().0.len(), 4, "the answer waited for a server that has come as far");
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn positions_of_a_lost_log_are_not_written_to_the_restored_one() {
    let log = log().await;
    let cart = Shopping::new();
    let kept = log.append(cart.with_items(3)).await;
    log.project(Positions, quick()).await;
    log.store.close().await;
    let (options, backup) = (log.database.options(), log.database.back_up().await);
    let owner = EventStore::<DomainEvent>::new(options.clone(), StoreSettings::default());
    // Events that the projection does not take: the checkpoints follow with the heartbeat.
    append_with(&owner, 1, (0..100).map(|_| cart.inventory(0, 3))).await;
    let lost = Position(kept.0 + 100);
    let process = Process::start(&log, Positions);
    assert_eq!(process.projections.wait("positions", None, lost, Duration::from_secs(20)).await.unwrap(), Wait::Reached);
    owner.close().await;
    backup.restore().await;

    let pool = log.database.pool().await;
    let restored = EventStore::<DomainEvent>::new(options, StoreSettings::default());
    eventually("the process is back", || async {
        let beats = "SELECT count(*) FROM replica r JOIN checkpoint c ON c.owner = r.id WHERE r.beaten_at + r.lease > clock_timestamp()";
        (sqlx::query_scalar::<_, i64>(beats).fetch_one(&pool).await.unwrap() == 16).then_some(())
    })
    .await;
    let furthest: i64 = sqlx::query_scalar("SELECT max(position) FROM checkpoint").fetch_one(&pool).await.unwrap();
    assert_eq!(furthest, kept.0);
    // The log grows past the lost positions, with other events.
    for n in 0..60 {
        append_with(&restored, 1 + n, Shopping::new().with_items(1)).await;
    }
    until_exact(&pool).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn build_ahead_of_the_log_stops_until_it_is_rebuilt() {
    let log = log().await;
    let pool = log.database.pool().await;
    log.append(Shopping::new().with_items(3)).await;
    log.project(Positions, quick()).await;
    // As after a restore of an older log without the projections.
    execute(&pool, "UPDATE checkpoint SET position = 50").await;
    let process = Process::start(&log, Positions);
    let ahead_of = async || -> Option<i64> {
        sqlx::query_scalar("SELECT ahead_of FROM projection WHERE status = 'serving'").fetch_one(&pool).await.unwrap()
    };
    eventually("the build is found to be ahead", || async { (ahead_of().await == Some(4)).then_some(()) }).await;
    let mut head = Position::START;
    for _ in 0..30 {
        head = log.append(Shopping::new().with_items(1)).await;
    }
    assert!(head > Position(50));
    assert_eq!(process.projections.wait("positions", None, head, Duration::from_secs(2)).await.unwrap(), Wait::TimedOut(Position::START));
    // Nor does it answer for what it has not applied.
    assert_eq!(log.projections.wait("positions", None, Position(30), Duration::ZERO).await.unwrap(), Wait::TimedOut(Position::START));
    assert_eq!((rows(&pool).await, ahead_of().await), (vec![1, 2, 3, 4], Some(4)));
    let (_, builds) = operations::builds(log.store.pool()).await.unwrap();
    assert!(builds.iter().all(|build| build.ahead_of == Some(Position(4)) && build.segments.iter().all(|segment| segment.blocked)));

    projections::rebuild_named(log.store.pool(), "positions", projections::Switch::WhenReady).await.unwrap();
    until_exact(&pool).await;
    assert_eq!(ahead_of().await, None);
    process.stop().await;
}

/// The backup is older than the projection.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn projection_that_a_restored_log_lacks_is_registered_again() {
    let log = log().await;
    log.store.close().await;
    let backup = log.database.back_up().await;
    let process = Process::start(&log, Positions);
    until_working(&process).await;
    backup.restore().await;

    append_after(&log, 0).await;
    let pool = log.database.pool().await;
    let registered = "SELECT count(*) FROM projection WHERE name = 'positions'";
    eventually("it is registered", || async {
        (sqlx::query_scalar::<_, i64>(registered).fetch_one(&pool).await.unwrap() == 1).then_some(())
    })
    .await;
    until_exact(&pool).await;
    until_working(&process).await;
    process.stop().await;
}

/// The backup has the build of an older release, which the running one has rebuilt since.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn rebuild_that_a_restored_log_lacks_is_started_again() {
    let log = log().await;
    let version = async || -> i32 {
        let serving = "SELECT version FROM projection WHERE name = 'positions' AND status = 'serving'";
        sqlx::query_scalar(serving).fetch_one(&log.database.pool().await).await.unwrap()
    };
    log.append(Shopping::new().with_items(3)).await;
    log.project(Positions, quick()).await;
    execute(&log.database.pool().await, "UPDATE projection SET version = 0").await;
    log.store.close().await;
    let backup = log.database.back_up().await;
    let process = Process::start(&log, Positions);
    eventually("this release serves", || async { (version().await == Positions::VERSION).then_some(()) }).await;
    backup.restore().await;

    append_after(&log, 1).await;
    eventually("this release serves again", || async { (version().await == Positions::VERSION).then_some(()) }).await;
    until_exact(&log.database.pool().await).await;
    process.stop().await;
}

/// Enqueues a to-do for each cart that is created.
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
        let created = batch.iter().filter(|event| matches!(event.event, CartStream::CartCreated { .. }));
        let todo = |event: &Recorded<CartStream>| NewTodo {
            key: event.position.to_string(),
            position: event.position,
            payload: serde_json::json!({}),
            metadata: Metadata::default(),
        };
        todo::enqueue(transaction, Self::NAME, &created.map(todo).collect::<Vec<_>>()).await
    }
}

/// Adds an item to a cart of its own for each to-do, once the test lets it.
struct Adding {
    begun: watch::Sender<usize>,
    may_add: watch::Sender<bool>,
    added: Arc<Mutex<Vec<Position>>>,
}

#[async_trait]
impl Projection for Adding {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = Asking::NAME;
    const KIND: Kind = Kind::Automation;
    const TABLES: &'static [&'static str] = &[];

    fn key(event: &CartStream) -> Option<Uuid> {
        Asking::key(event)
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        Asking.apply(transaction, batch).await
    }
}

#[async_trait]
impl Automation for Adding {
    fn longest_attempt(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn attempt(&self, todo: todo::Todo) -> Outcome {
        self.begun.send_modify(|begun| *begun += 1);
        self.may_add.subscribe().wait_for(|may| *may).await.unwrap();
        self.added.lock().unwrap().push(todo.position);
        Outcome::Done
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn attempt_of_a_lost_log_ends_with_it() {
    let log = TestLog::<DomainEvent>::create().await;
    log.project(Asking, quick()).await;
    let options = log.database.options();
    let process = EventStore::<DomainEvent>::new(options.clone(), StoreSettings::default());
    let owner = EventStore::<DomainEvent>::new(options.clone(), StoreSettings::default());
    log.store.close().await;
    let backup = log.database.back_up().await;
    append_with(&owner, 0, Shopping::new().with_items(3)).await;
    let (begun, may_add, added) = (watch::Sender::new(0), watch::Sender::new(false), Arc::default());
    let automation = Adding { begun: begun.clone(), may_add: may_add.clone(), added: Arc::clone(&added) };
    let stop = CancellationToken::new();
    let running = tokio::spawn(Projections::new(process.clone()).run_automation(automation, quick(), stop.clone()));
    eventually("an attempt begins", || async { (*begun.borrow() == 1).then_some(()) }).await;
    let epoch = process.head_watcher().epoch();
    owner.close().await;
    backup.restore().await;

    eventually("the process knows the restored log", || async { (process.head_watcher().epoch() != epoch).then_some(()) }).await;
    may_add.send_replace(true);
    let restored = EventStore::<DomainEvent>::new(options, StoreSettings::default());
    for appends in 0..3 {
        append_with(&restored, appends, Shopping::new().with_items(3)).await;
    }
    eventually("the restored log's to-dos are done", || async { (added.lock().unwrap().len() >= 3).then_some(()) }).await;
    let mut added = added.lock().unwrap().clone();
    added.sort_unstable();
    assert_eq!(added, [1, 5, 9].map(Position), "the lost log had a to-do at position 1, too");
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// A worker that counts the attempts at each to-do.
struct Worker {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Worker {
    fn start<W: Future<Output = Outcome> + Send + 'static>(
        log: &TestLog<DomainEvent>,
        lease: Duration,
        attempt: impl Fn(todo::Todo) -> W + Send + Sync + 'static,
    ) -> Self {
        let poll_interval = Duration::from_millis(50);
        Self::with(log, todo::Settings { lease, concurrency: 1, poll_interval, ..todo::Settings::default() }, attempt)
    }

    fn with<W: Future<Output = Outcome> + Send + 'static>(
        log: &TestLog<DomainEvent>,
        settings: todo::Settings,
        attempt: impl Fn(todo::Todo) -> W + Send + Sync + 'static,
    ) -> Self {
        let (pool, stop) = (log.store.pool().clone(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (_wake, woken) = watch::channel(Position::START);
            todo::work(pool, Asking::NAME, settings, woken, stopped, attempt).await;
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Creates carts, each with a to-do. Returns the keys.
async fn ask(log: &TestLog<DomainEvent>, carts: usize) -> Vec<String> {
    for _ in 0..carts {
        log.append([Shopping::new().created()]).await;
    }
    log.project(Asking, quick()).await;
    sqlx::query_scalar("SELECT key FROM todo ORDER BY position").fetch_all(log.store.pool()).await.unwrap()
}

async fn statuses(log: &TestLog<DomainEvent>) -> Vec<(String, i32)> {
    sqlx::query_as("SELECT status, attempts FROM todo ORDER BY position").fetch_all(log.store.pool()).await.unwrap()
}

fn status(status: &str, attempts: i32) -> (String, i32) {
    (status.to_owned(), attempts)
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn to_do_waits_for_a_log_that_has_come_as_far() {
    let log = log().await;
    let pool = log.database.pool().await;
    ask(&log, 2).await;
    let show = hide_events(&pool, 1).await;
    let worker = Worker::start(&log, Duration::from_secs(60), async |_| Outcome::Done);
    eventually("the first is done", || async { (statuses(&log).await[0] == status("done", 1)).then_some(()) }).await;
    assert_eq!(statuses(&log).await[1], status("open", 0));
    execute(&pool, show).await;
    eventually("the second is done", || async { (statuses(&log).await[1] == status("done", 1)).then_some(()) }).await;
    worker.stop().await;
}

/// Four attempts at once, and a poll once an hour.
fn seldom_polling() -> todo::Settings {
    todo::Settings { concurrency: 4, poll_interval: Duration::from_secs(3_600), ..todo::Settings::default() }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn to_do_is_attempted_again_when_its_pause_ends() {
    let log = log().await;
    ask(&log, 2).await;
    let worker = Worker::with(&log, seldom_polling(), |todo| async move {
        if todo.attempts < 3 { Outcome::Retry { error: "not yet".to_owned() } } else { Outcome::Done }
    });
    eventually("the third attempts are made", || async { (statuses(&log).await == vec![status("done", 3); 2]).then_some(()) }).await;
    worker.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn attempts_that_hang_do_not_keep_the_places_of_others() {
    let log = log().await;
    let keys = ask(&log, 20).await;
    let hanging = keys[..3].to_vec();
    let worker = Worker::with(&log, seldom_polling(), move |todo| {
        let hangs = hanging.contains(&todo.key);
        async move { if hangs { std::future::pending().await } else { Outcome::Done } }
    });
    let mut expected = vec![status("open", 1); 3];
    expected.extend(vec![status("done", 1); 17]);
    eventually("all others are done", || async { (statuses(&log).await == expected).then_some(()) }).await;
    worker.task.abort();
}

/// A switch locks the rows of both builds, too.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn rebuild_locks_both_builds_in_the_order_of_a_switch() {
    let log = log().await;
    let pool = log.database.pool().await;
    let builds = "INSERT INTO projection (name, build, version, status) VALUES
                  ('positions', 'projection_a', 1, 'retired'), ('positions', 'projection_b', 1, 'serving')";
    execute(&pool, builds).await;
    let mut switching = pool.begin().await.unwrap();
    let lock = |build: &str| format!("SELECT FROM projection WHERE build = '{build}' FOR NO KEY UPDATE");
    sqlx::query(&lock("projection_a")).execute(&mut *switching).await.unwrap();
    let store = log.store.pool().clone();
    let rebuilding = tokio::spawn(async move { projections::rebuild_named(&store, "positions", projections::Switch::WhenReady).await });
    let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
    eventually("the rebuild waits", || async { sqlx::query_scalar::<_, bool>(waiting).fetch_one(&pool).await.unwrap().then_some(()) })
        .await;
    sqlx::query(&lock("projection_b")).execute(&mut *switching).await.unwrap();
    switching.commit().await.unwrap();
    rebuilding.await.unwrap().unwrap();
    let status: String = sqlx::query_scalar("SELECT status FROM projection WHERE build = 'projection_a'").fetch_one(&pool).await.unwrap();
    assert_eq!(status, "building");
}

/// Waits until a process has not worked for as long as it may, and returns why.
async fn until_not_working(process: &Process<DomainEvent>) -> String {
    eventually("the process says that it does not work", || async { process.projections.working("positions").err() }).await
}

async fn until_working(process: &Process<DomainEvent>) {
    eventually("the process says that it works", || async { process.projections.working("positions").ok() }).await;
}

/// For more rights than the migrations give, an administrator makes a role a member of the service's.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn member_of_the_services_role_runs_a_projection() {
    let log = log().await;
    let pool = log.database.pool().await;
    let role = format!("member_{}", log.database.options().get_database().unwrap());
    execute(&pool, &format!("CREATE ROLE {role} LOGIN IN ROLE cartlog_projections")).await;
    let process = Process::connected(log.database.options_as(&role), StoreSettings::default(), Positions, quick());
    until_working(&process).await;
    log.append(Shopping::new().with_items(3)).await;
    until_exact(&pool).await;
    process.stop().await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM replica").fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0, "it deletes its own replica");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn heartbeat_survives_a_half_open_connection() {
    let log = log().await;
    let pool = log.database.pool().await;
    let forwarder = Forwarder::before(log.database.options().get_port()).await.unwrap();
    let options = log.database.options_as("cartlog_projections").host("127.0.0.1").port(forwarder.port());
    let process = Process::connected(options, StoreSettings::default(), Positions, quick());
    until_working(&process).await;
    let beats = async || -> i64 { sqlx::query_scalar("SELECT max(beats) FROM replica").fetch_one(&pool).await.unwrap() };
    for _ in 0..2 {
        forwarder.lose_connections();
        let before = beats().await;
        eventually("heartbeats come again", || async { (beats().await > before + 1).then_some(()) }).await;
    }
    log.append(Shopping::new().with_items(3)).await;
    until_exact(&pool).await;
    until_working(&process).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn read_only_phase_leaves_nothing_behind() {
    let log = log().await;
    let pool = log.database.pool().await;
    let process = Process::start(&log, Positions);
    until_working(&process).await;
    let database = log.database.options().get_database().unwrap().to_owned();
    let end_sessions =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'cartlog_projections'";
    execute(&pool, &format!("ALTER DATABASE {database} SET default_transaction_read_only = on; {end_sessions}")).await;
    until_not_working(&process).await;
    // The sessions of that phase stay read-only for as long as they live.
    execute(&pool, &format!("ALTER DATABASE {database} RESET default_transaction_read_only")).await;
    log.append(Shopping::new().with_items(3)).await;
    until_exact(&pool).await;
    until_working(&process).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn process_without_connections_says_that_it_does_not_work() {
    let log = log().await;
    let pool = log.database.pool().await;
    let process = Process::start(&log, Positions);
    until_working(&process).await;
    let database = log.database.options().get_database().unwrap().to_owned();
    let end_sessions =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'cartlog_projections'";
    execute(&pool, &format!("ALTER DATABASE {database} CONNECTION LIMIT 0; {end_sessions}")).await;
    until_not_working(&process).await;
    execute(&pool, &format!("ALTER DATABASE {database} CONNECTION LIMIT -1")).await;
    log.append(Shopping::new().with_items(3)).await;
    until_exact(&pool).await;
    until_working(&process).await;
    process.stop().await;
}

/// An hour, as a clock may step after a change of summer time by hand, or when NTP first answers.
const HOUR: f64 = 3_600.0;

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn segments_of_a_dead_replica_survive_a_step_of_the_clock() {
    for step in [-HOUR, HOUR] {
        let log = log().await;
        let pool = log.database.pool().await;
        let owners = async || -> i64 {
            let owners = "SELECT count(DISTINCT owner) FROM checkpoint WHERE owner IS NOT NULL";
            sqlx::query_scalar(owners).fetch_one(&pool).await.unwrap()
        };
        let (first, second) = (Process::start(&log, Positions), Process::start(&log, Positions));
        eventually("both share the segments", || async { (owners().await == 2).then_some(()) }).await;
        first.kill();
        log.database.step_clock(step).await;
        log.append(Shopping::new().with_items(3)).await;
        eventually("the other has them all", || async { (owners().await == 1).then_some(()) }).await;
        until_exact(&pool).await;
        second.stop().await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn deadline_of_a_to_do_survives_a_step_of_the_clock() {
    for step in [-HOUR, HOUR] {
        let log = log().await;
        ask(&log, 1).await;
        let tried = Arc::<Mutex<Vec<Duration>>>::default();
        let trying = tried.clone();
        let worker = Worker::start(&log, Duration::from_secs(60), move |todo| {
            trying.lock().unwrap().push(todo.trying_for);
            async { Outcome::Retry { error: "not yet".to_owned() } }
        });
        let attempts = || tried.lock().unwrap().len();
        eventually("it is attempted", || async { (attempts() >= 2).then_some(()) }).await;
        let before = attempts();
        log.database.step_clock(step).await;
        // With the step, the next attempt would be due in an hour.
        eventually("it is attempted again", || async { (attempts() >= before + 2).then_some(()) }).await;
        let tried = tried.lock().unwrap().clone();
        assert!(tried.is_sorted() && tried.iter().all(|tried| *tried < Duration::from_secs(300)), "{tried:?}");
        worker.stop().await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn lease_of_a_to_do_survives_a_step_of_the_clock() {
    let log = log().await;
    ask(&log, 1).await;
    let (begin, may_end) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (begun, ending) = (begin.clone(), may_end.clone());
    let first = Worker::start(&log, Duration::from_secs(60), move |_| {
        let (begin, may_end) = (begin.clone(), may_end.clone());
        async move {
            begin.notify_one();
            may_end.notified().await;
            Outcome::Done
        }
    });
    begun.notified().await;
    // An hour forward: the attempt still runs, so nobody else makes one.
    log.database.step_clock(HOUR).await;
    let others = Arc::new(AtomicUsize::new(0));
    let counted = others.clone();
    let second = Worker::start(&log, Duration::from_secs(60), move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Outcome::Done }
    });
    ask(&log, 1).await;
    eventually("the second worker has looked", || async { (statuses(&log).await[1] == status("done", 1)).then_some(()) }).await;
    assert_eq!((statuses(&log).await[0].clone(), others.load(Ordering::SeqCst)), (status("open", 1), 1));
    ending.notify_one();
    eventually("the first is done", || async { (statuses(&log).await[0] == status("done", 1)).then_some(()) }).await;
    first.stop().await;
    second.stop().await;

    // An hour back while a worker dies: another one takes over after the length of the lease.
    ask(&log, 1).await;
    let (begin, lease) = (Arc::new(tokio::sync::Notify::new()), Duration::from_millis(500));
    let begun = begin.clone();
    let dying = Worker::start(&log, lease, move |_| {
        begin.notify_one();
        std::future::pending()
    });
    begun.notified().await;
    dying.task.abort();
    log.database.step_clock(-HOUR).await;
    let other = Worker::start(&log, lease, async |_| Outcome::Done);
    eventually("another worker has done it", || async { (statuses(&log).await[2] == status("done", 2)).then_some(()) }).await;
    other.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn hold_of_a_comparison_survives_a_step_of_the_clock() {
    let log = log().await;
    let pool = log.database.pool().await;
    let process = Process::start(&log, Positions);
    until_working(&process).await;
    log.append(Shopping::new().with_items(3)).await;
    until_exact(&pool).await;
    // A comparison died within its hold of 30 seconds, and then the clock stepped an hour back.
    execute(&pool, "UPDATE projection SET hold_at = 4, hold_until = clock_timestamp() + interval '30 seconds'").await;
    log.database.step_clock(-HOUR).await;
    log.append(Shopping::new().with_items(3)).await;
    until_exact(&pool).await;
    process.stop().await;
}
