//! Connections: lost in silence, too few, and with settings of a session that others chose.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::time::{Duration, Instant};

use cart_events::{DomainEvent, examples::Shopping};
use embedded::forwarder::{Forwarder, Network};
use event_store::{EventStore, Pool, PooledConnection, Position, SessionTimeouts, StoreError, StoreSettings, connection::with_timeout_of};
use futures::future::join_all;
use sqlx::{Executor, Row, postgres::PgConnectOptions};
use test_support::{Database, TestLog, eventually};

use crate::common::Add;

type Log = EventStore<DomainEvent>;

fn through(forwarder: &Forwarder, database: &Database) -> PgConnectOptions {
    database.options().host("127.0.0.1").port(forwarder.port())
}

/// Takes every connection of the pool at once.
async fn take_all(log: &Log) -> Vec<event_store::PooledConnection> {
    join_all((0..10).map(|_| log.connection())).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn connections_lost_in_silence_cost_none_of_the_pool() {
    const LOSSES: usize = 15;
    let limit = Duration::from_millis(300);
    let database = Database::create().await;
    let forwarder = Forwarder::before(database.options().get_port()).await.unwrap();
    let settings = StoreSettings { poll_interval: Duration::from_millis(50), ..StoreSettings::default() };
    let log = Log::new(through(&forwarder, &database), settings);
    log.ready().await.unwrap();
    for loss in 0..LOSSES {
        let taken = take_all(&log).await;
        eventually("the listener has connected", || async { (forwarder.open_connections() > 10).then_some(()) }).await;
        forwarder.lose_connections();
        // Half of them return to the pool, as if the loss came a moment later. The others wait for an answer in vain.
        for (n, mut connection) in taken.into_iter().enumerate() {
            if n % 2 == 0 {
                connection.done();
            } else {
                let answer = with_timeout_of(Duration::from_millis(10), async { connection.execute("SELECT 1").await }).await;
                assert!(answer.is_err(), "loss {loss}");
            }
        }
        // Those that the pool has kept are noticed when they are used.
        let kept = take_all(&log).await;
        let asking = kept.into_iter().map(|mut connection| async move {
            if with_timeout_of(limit, async { connection.execute("SELECT 1").await }).await.is_ok() {
                connection.done();
            }
        });
        join_all(asking).await;
    }
    for mut connection in take_all(&log).await {
        with_timeout_of(Duration::from_secs(5), async { connection.execute("SELECT 1").await }).await.unwrap();
    }
    log.decide(&Add::to(&Shopping::new())).await.unwrap();
    // The pool's, the appender's and the listener's, which may be renewed at this moment. The silent ones are closed.
    eventually("the silent connections are closed", || async { (forwarder.open_connections() <= 14).then_some(()) }).await;
    let announced = log.head_watcher().subscribe();
    let direct = Log::new(database.options(), StoreSettings::default());
    let position = direct.decide(&Add::to(&Shopping::new())).await.unwrap();
    eventually("the listener hears others", || async { (*announced.borrow() >= position).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_listener_lost_in_silence_listens_again() {
    let database = Database::create().await;
    let forwarder = Forwarder::before(database.options().get_port()).await.unwrap();
    let settings = StoreSettings { poll_interval: Duration::from_secs(3600), ..StoreSettings::default() };
    let log = Log::new(through(&forwarder, &database), settings);
    let direct = Log::new(database.options(), StoreSettings::default());
    for _ in 0..3 {
        let position = direct.decide(&Add::to(&Shopping::new())).await.unwrap();
        eventually("the position is heard of", || async { (log.head_watcher().newest() >= position).then_some(()) }).await;
        forwarder.lose_connections();
    }
}

/// Work that may take an hour does not wait an hour for a server that is gone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn long_work_ends_soon_after_its_session_or_its_server() {
    let database = Database::create().await;
    let forwarder = Forwarder::before(database.options().get_port()).await.unwrap();
    let timeouts = SessionTimeouts {
        idle_in_transaction: Duration::from_secs(1),
        transaction: None,
        statement: Some(Duration::from_secs(1)),
        lock: None,
    };
    let settings = StoreSettings { connect_timeout: Duration::from_secs(1), timeouts, ..StoreSettings::default() };
    let log = Log::new(through(&forwarder, &database), settings);
    let owner = database.pool().await;
    let long = async |seconds: f64| {
        let mut transaction = log.pool().begin().await.unwrap();
        let work = log.pool().while_alive(&mut transaction, async |connection| {
            let sleep = format!("SET LOCAL statement_timeout = 0; SELECT pg_sleep({seconds})");
            Ok::<_, StoreError>(sqlx::raw_sql(&sleep).execute(connection).await.map(drop)?)
        });
        work.await
    };
    // Longer than a statement may usually take.
    long(3.5).await.unwrap();
    let is_at_work = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')";
    let at_work = || async { sqlx::query_scalar::<_, bool>(is_at_work).fetch_one(&owner).await.unwrap().then_some(()) };
    let soon = async |seconds, disturb: &dyn Fn()| {
        let disturbing = async {
            eventually("the work has begun", at_work).await;
            disturb();
        };
        let (ended, ()) = tokio::join!(with_timeout_of(Duration::from_secs(30), async { Ok(long(seconds).await) }), disturbing);
        ended.unwrap().unwrap_err()
    };
    // The answer is lost, and the server ends the session.
    let error = soon(1.5, &|| forwarder.lose_connections()).await;
    assert!(matches!(error, StoreError::NotCurrent(_)), "{error:?}");
    // Nobody answers.
    let error = soon(600.0, &|| forwarder.set(Network::Silent)).await;
    assert!(matches!(error, StoreError::NoAnswer(_)), "{error:?}");
}

/// With a limit of one connection beside the listener's, one worker of the appender connects and the other cannot.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn appends_go_to_the_appender_that_has_a_connection() {
    let database = Database::create().await;
    let owner = database.pool().await;
    let role = format!("limited_{}", database.options().get_database().unwrap());
    let sql = format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 2; GRANT cartlog_commands TO {role}");
    sqlx::raw_sql(&sql).execute(&owner).await.unwrap();
    // The listener's is renewed rarely enough to matter only as an error that it tries again.
    let log = Log::new(database.options_as(&role), StoreSettings::default());
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'");
    eventually("the listener has connected", || async {
        (sqlx::query_scalar::<_, i64>(&sessions).fetch_one(&owner).await.unwrap() == 1).then_some(())
    })
    .await;
    let added = join_all((0..100).map(|_| async { log.decide(&Add::to(&Shopping::new())).await })).await;
    let failed: Vec<_> = added.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    assert_eq!(log.head_watcher().newest(), Position(100));
}

/// Settings that a restore without those of the roles leaves, or that another administrator has chosen.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_session_is_set_up_whatever_the_database_and_the_role_say() {
    let log = TestLog::<DomainEvent>::create().await;
    let owner = log.database.pool().await;
    let name = log.database.options().get_database().unwrap().to_owned();
    for set in [
        "default_transaction_isolation = 'serializable'",
        "search_path = 'elsewhere'",
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = 0",
        "idle_session_timeout = '100ms'",
        "enable_indexscan = off",
        "enable_seqscan = on",
        "plan_cache_mode = 'force_custom_plan'",
    ] {
        sqlx::raw_sql(&format!("ALTER DATABASE {name} SET {set}; ALTER ROLE cartlog_commands IN DATABASE {name} SET {set}"))
            .execute(&owner)
            .await
            .unwrap();
    }
    let store = Log::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    for _ in 0..20 {
        store.decide(&Add::to(&Shopping::new())).await.unwrap();
    }
    let mut connection = store.connection().await.unwrap();
    for (setting, value) in [
        ("transaction_isolation", "read committed"),
        ("search_path", "public"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "3s"),
        ("transaction_timeout", "5s"),
        ("idle_session_timeout", "0"),
        ("enable_indexscan", "on"),
        ("enable_seqscan", "off"),
        ("plan_cache_mode", "force_generic_plan"),
    ] {
        let row = connection.fetch_one(format!("SHOW {setting}").as_str()).await.unwrap();
        assert_eq!(row.get::<String, _>(0), value, "{setting}");
    }
}

/// Statements that an operator's tool runs on a pool, with a server that takes them and never answers.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_silent_peer_is_given_up_by_every_statement_of_a_pool() {
    let database = Database::create().await;
    let forwarder = Forwarder::before(database.options().get_port()).await.unwrap();
    let (statement, connect) = (Duration::from_millis(500), Duration::from_secs(2));
    let timeouts = SessionTimeouts { statement: Some(statement), ..SessionTimeouts::default() };
    let settings = StoreSettings { connect_timeout: connect, timeouts, ..StoreSettings::default() };
    let open = || Pool::open(through(&forwarder, &database), &settings);
    // A server that answers late is not given up: it ends the statement itself, and says so.
    let ended = sqlx::query("SELECT pg_sleep(60)").execute(&open()).await.unwrap_err();
    assert_eq!(ended.as_database_error().and_then(|error| error.code()).as_deref(), Some("57014"));
    for what in ["execute", "fetch", "fetch all", "prepare", "describe", "begin", "commit"] {
        loop {
            let pool = open();
            let transaction = pool.begin().await.unwrap();
            let kept = join_all((0..4).map(|_| PooledConnection::from(&pool))).await;
            kept.into_iter().for_each(|connection| connection.unwrap().done());
            forwarder.lose_connections();
            let asked = Instant::now();
            let outcome = match what {
                "execute" => sqlx::query("SELECT 1").execute(&pool).await.map(drop),
                "fetch" => sqlx::query("SELECT 1").fetch_optional(&pool).await.map(drop),
                "fetch all" => sqlx::query("SELECT 1").fetch_all(&pool).await.map(drop),
                "prepare" => pool.prepare("SELECT 1").await.map(drop),
                "describe" => pool.describe("SELECT 1").await.map(drop),
                "begin" => pool.begin().await.map(drop),
                _ => transaction.commit().await,
            };
            let took = asked.elapsed();
            assert!(took < statement + connect + Duration::from_secs(5), "{what}: {took:?}");
            match outcome.map_err(StoreError::from) {
                Err(StoreError::NoAnswer(_)) => break,
                // A second had passed, on a busy machine. Then the pool itself found the connection silent, and opened another one.
                Ok(()) => {}
                Err(error) => panic!("{what}: {error:?}"),
            }
        }
    }
}
