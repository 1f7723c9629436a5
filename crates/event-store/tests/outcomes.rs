//! Answers that a caller gets if the log is read-only, reset, replaced, busy or silent, or refuses a row.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::{sync::Arc, time::Duration};

use crate::common::{Add, Meanwhile, blocking};
use cart_events::{DomainEvent, examples::Shopping};
use event_store::{DecideError, EventStore, Metadata, Position, StoreError, StoreSettings};
use sqlx::Connection;
use test_support::{TestLog, eventually};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_read_only_server_is_unavailable_until_it_takes_writes() {
    let log = TestLog::<DomainEvent>::create().await;
    let commands = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    commands.decide(&Add::to(&Shopping::new())).await.unwrap();
    // As after a failover: the old primary has become a standby.
    let owner = log.store.pool();
    let read_only = "ALTER ROLE cartlog_commands IN DATABASE {} SET default_transaction_read_only = ";
    let database: String = sqlx::query_scalar("SELECT quote_ident(current_database())").fetch_one(owner).await.unwrap();
    let read_only = read_only.replace("{}", &database);
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'cartlog_commands' AND datname = current_database()";
    sqlx::query(&format!("{read_only}on")).execute(owner).await.unwrap();
    sqlx::query(cut).execute(owner).await.unwrap();

    // The first command may meet the connections that were cut.
    for _ in 0..3 {
        let refused = commands.decide(&Add::to(&Shopping::new())).await;
        assert!(matches!(refused, Err(DecideError::Store(StoreError::Unavailable(_)))), "{refused:?}");
    }
    // The server becomes the primary again, without cutting the connection.
    sqlx::query(&format!("{read_only}off")).execute(owner).await.unwrap();
    eventually("the store works again", || async { commands.decide(&Add::to(&Shopping::new())).await.ok() }).await;
    assert_eq!(log.store.head().await.unwrap(), Position(2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_log_emptied_during_a_decision_is_decided_on_again() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    log.append(cart.with_items(1)).await;
    log.store.decide(&Add::to(&cart)).await.unwrap();
    let pool = log.store.pool().clone();
    let add = Meanwhile::new(Add::to(&cart), move || {
        blocking(async { sqlx::query("TRUNCATE event").execute(&pool).await.unwrap() });
    });
    assert_eq!(log.store.decide(&add).await.unwrap(), Position(1));
    eventually("the head watcher restarts at its head", || async { (log.store.head_watcher().newest() == Position(1)).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_the_database_refuses_fails_no_other_of_its_call() {
    let log = TestLog::<DomainEvent>::create().await;
    let mut holding = log.store.pool().begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *holding).await.unwrap();
    // While the lock is held, the first appends are in flight and the others wait in the queue.
    let decided = Arc::new(tokio::sync::Semaphore::new(0));
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let (store, decided) = (log.store.clone(), decided.clone());
            let add = Meanwhile::new(Add::to(&Shopping::new()), move || decided.add_permits(1));
            // JSON text that jsonb refuses.
            let correlation_id = (n == 6).then(|| "\0".to_owned());
            tokio::spawn(async move { store.decide_with(&add, Metadata { correlation_id, ..Metadata::default() }).await })
        })
        .collect();
    drop(decided.acquire_many(12).await.unwrap());
    holding.rollback().await.unwrap();
    for (n, task) in tasks.into_iter().enumerate() {
        match (n, task.await.unwrap()) {
            (6, outcome) => {
                assert!(matches!(&outcome, Err(DecideError::Store(error)) if error.is_rejected()), "{outcome:?}");
            }
            (_, outcome) => drop(outcome.unwrap()),
        }
    }
    assert_eq!(log.store.head().await.unwrap(), Position(11));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_log_that_cannot_be_read_in_time_is_busy() {
    let log = TestLog::<DomainEvent>::create().await;
    let settings = StoreSettings { command_timeout: Duration::from_millis(300), state_cache_bytes: 0, ..StoreSettings::default() };
    let store = EventStore::<DomainEvent>::new(log.database.options(), settings);
    let mut holding = log.store.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE event IN ACCESS EXCLUSIVE MODE").execute(&mut *holding).await.unwrap();
    let busy = store.decide(&Add::to(&Shopping::new())).await;
    assert!(matches!(busy, Err(DecideError::Store(StoreError::Busy))), "{busy:?}");
    holding.rollback().await.unwrap();
    eventually("the store works again", || async { store.decide(&Add::to(&Shopping::new())).await.ok() }).await;
    assert_eq!(log.store.head().await.unwrap(), Position(1));
}

/// The outcome of an append that stays in the queue is known: nothing was written.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_that_was_never_sent_is_busy_and_not_written() {
    let log = TestLog::<DomainEvent>::create().await;
    let settings = StoreSettings { command_timeout: Duration::from_secs(1), ..StoreSettings::default() };
    let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), settings);
    let mut holding = log.store.pool().begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *holding).await.unwrap();
    // Both of the appender's calls are in flight, so a third append waits in the queue.
    let mut sent = vec![];
    for calls in 1..=2 {
        let store = store.clone();
        sent.push(tokio::spawn(async move { store.decide(&Add::to(&Shopping::new())).await }));
        eventually("the call waits for the log's lock", || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                           WHERE usename = 'cartlog_commands' AND datname = current_database() AND wait_event = 'relation'";
            (sqlx::query_scalar::<_, i64>(waiting).fetch_one(log.store.pool()).await.unwrap() == calls).then_some(())
        })
        .await;
    }
    let queued = store.decide(&Add::to(&Shopping::new())).await;
    assert!(matches!(queued, Err(DecideError::Store(StoreError::Busy))), "{queued:?}");
    for sent in sent {
        let sent = sent.await.unwrap();
        assert!(matches!(sent, Err(DecideError::Store(StoreError::OutcomeUnknown))), "{sent:?}");
    }
    holding.rollback().await.unwrap();
    // The two that were sent are written, and then the next command: nothing of the third.
    eventually("the calls are done", || async { (log.store.head().await.unwrap() == Position(2)).then_some(()) }).await;
    assert_eq!(log.store.decide(&Add::to(&Shopping::new())).await.unwrap(), Position(3));
}

/// A server that accepts connections and never answers.
#[tokio::test]
async fn a_server_that_does_not_answer_is_not_blamed_on_the_pool() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = sqlx::postgres::PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(silent.local_addr().unwrap().port());
    let settings = StoreSettings { connect_timeout: Duration::from_millis(200), ..StoreSettings::default() };
    let store = EventStore::<DomainEvent>::new(options, settings);
    let outcome = store.decide(&Add::to(&Shopping::new())).await;
    let Err(DecideError::Store(StoreError::NoAnswer(waited))) = outcome else { panic!("{outcome:?}") };
    assert_eq!(waited, Duration::from_millis(200));
}

const CUT: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'cartlog_commands' AND datname = current_database()";

/// A restore may leave a log of the same length with other events.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn cached_states_of_a_replaced_log_are_forgotten() {
    let log = TestLog::<DomainEvent>::create().await;
    let commands = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    let (cart, other) = (Shopping::new(), Shopping::new());
    for cart in [&other, &cart, &cart] {
        commands.decide(&Add::to(cart)).await.unwrap();
    }
    // In the restored log the cart is full.
    let mut restored = log.store.pool().begin().await.unwrap();
    sqlx::query("UPDATE event SET cart_id = $1 WHERE event_id = 1").bind(cart.cart_id.uuid()).execute(&mut *restored).await.unwrap();
    sqlx::query("UPDATE event_log SET id = gen_random_uuid()").execute(&mut *restored).await.unwrap();
    restored.commit().await.unwrap();
    sqlx::query(CUT).execute(log.store.pool()).await.unwrap();
    let answer = eventually("the command is answered", || async {
        match commands.decide(&Add::to(&cart)).await {
            Err(DecideError::Store(error)) if error.is_unavailable() => None,
            answer => Some(answer),
        }
    })
    .await;
    assert!(matches!(answer, Err(DecideError::Refused(3))), "{answer:?}");
    assert_eq!(log.store.head().await.unwrap(), Position(3));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_outcome_is_unknown_if_another_log_took_this_ones_place() {
    let log = TestLog::<DomainEvent>::create().await;
    let commands = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    commands.decide(&Add::to(&Shopping::new())).await.unwrap();
    let mut holding = log.store.pool().begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *holding).await.unwrap();
    let store = commands.clone();
    let deciding = tokio::spawn(async move { store.decide(&Add::to(&Shopping::new())).await });
    eventually("the call is in flight", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE usename = 'cartlog_commands' AND datname = current_database() AND wait_event = 'relation'";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(log.store.pool()).await.unwrap() == 1).then_some(())
    })
    .await;
    sqlx::query("UPDATE event_log SET id = gen_random_uuid()").execute(log.store.pool()).await.unwrap();
    sqlx::query(CUT).execute(log.store.pool()).await.unwrap();
    // Either the appender or a reading connection notices the other log first. Nobody knows what the old log holds.
    let read_first = eventually("another connection sees the other log", || async { commands.head().await.ok() });
    let (outcome, _) = tokio::join!(deciding, read_first);
    let outcome = outcome.unwrap();
    assert!(matches!(outcome, Err(DecideError::Store(StoreError::OutcomeUnknown))), "{outcome:?}");
    holding.rollback().await.unwrap();
    eventually("the store works again", || async { commands.decide(&Add::to(&Shopping::new())).await.ok() }).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_error_that_ends_the_connection_is_unavailable() {
    let options = test_support::Database::create().await.options().options([("no_such_setting", "1")]);
    let error = sqlx::PgConnection::connect_with(&options).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42704");
    assert!(matches!(StoreError::from(error), StoreError::Unavailable(_)));
}
