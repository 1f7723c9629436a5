//! The log stays exact while PostgreSQL is killed. As `event-store`'s histories, but with the test's own server.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::{path::Path, time::Duration};

use cart_events::{DomainEvent, examples::Shopping};
use embedded::database;
use embedded::distribution;
use embedded::layout::Layout;
use embedded::postgres::Postgres;
use embedded::report::Report;
use event_store::{DecideError, Decided, Decision, EventStore, StoreError, StoreSettings};
use shop::services::COMMANDS;
use test_support::{
    ANY_EVENT, eventually,
    histories::{Setup, Summary, Workers, seeds},
};

/// The worker processes of the other test run this. Alone it does nothing.
#[test]
fn worker_runs_commands_when_started_as_a_process() {
    test_support::histories::work_if_asked();
}

/// Starts a server with a log, and returns the owner's URL.
async fn log(name: &str) -> (Postgres, String) {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch(name).unwrap();
    let postgres = Postgres::start_on_free_port(&layout, &distribution, &directory).await.unwrap();
    database::create(&postgres.url("postgres", "postgres"), database::NAME).await.unwrap();
    let owner = postgres.url("postgres", database::NAME);
    database::migrate(&owner).await.unwrap();
    (postgres, owner)
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn history_is_exact_after_postgres_was_killed() {
    let (mut postgres, owner) = log("postgres-killed-under-load").await;
    let pool = database::connect(&owner).await.unwrap();
    sqlx::query(ANY_EVENT).execute(&pool).await.unwrap();
    drop(pool);
    let setup = Setup {
        database_url: postgres.url(COMMANDS.role, database::NAME),
        seed: seeds()[0],
        processes: 3,
        // Enough tasks that appends share calls.
        tasks: 48,
        state_cache_bytes: 16 << 20,
        worker: "worker_runs_commands_when_started_as_a_process",
    };
    let mut workers = Workers::start(setup, Path::new(env!("CARGO_TARGET_TMPDIR")));
    let all = workers.running();
    for _ in 0..3 {
        workers.until_answered(120, &all).await;
        postgres.kill().await.unwrap();
        postgres.restart().await.unwrap();
    }
    workers.until_answered(120, &all).await;
    let pool = database::connect(&owner).await.unwrap();
    let summary = workers.check(&pool).await;
    println!("{summary}");
    let Summary { written, refused, undone, unknown, looked_up, .. } = summary;
    assert!(written > 100 && refused > 50 && undone + unknown > 0 && looked_up > 0, "{summary}");
    drop(pool);
    postgres.stop().await.unwrap();
}

/// Appends without a condition.
struct Appends(DomainEvent);

impl Decision for Appends {
    type Event = DomainEvent;
    type StateQuery = ();
    type Error = std::convert::Infallible;
    fn state_query(&self) {}
    fn process(&self, (): &()) -> Result<Decided<DomainEvent>, Self::Error> {
        Ok(Decided::Events(vec![self.0.clone()]))
    }
}

/// A crash of the primary loses what no standby has, so such an append must not be acknowledged.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn nothing_is_acknowledged_without_the_synchronous_standby() {
    let (mut postgres, owner) = log("standby-is-missing").await;
    let pool = database::connect(&owner).await.unwrap();
    let settings = StoreSettings { command_timeout: Duration::from_secs(3), ..StoreSettings::default() };
    let store = EventStore::<DomainEvent>::new(postgres.url(COMMANDS.role, database::NAME).parse().unwrap(), settings);
    let cart = Shopping::new();
    store.decide(&Appends(cart.added(0))).await.unwrap();

    let standbys = async |names: &str| {
        // The test's own statements must not wait for the standby.
        let mut owner = pool.acquire().await.unwrap();
        sqlx::query("SET synchronous_commit = local").execute(&mut *owner).await.unwrap();
        sqlx::query(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).execute(&mut *owner).await.unwrap();
        sqlx::query("SELECT pg_reload_conf()").execute(&mut *owner).await.unwrap();
    };
    standbys("missing").await;
    let appending = tokio::spawn({
        let (store, append) = (store.clone(), Appends(cart.added(1)));
        // The server takes a moment to read the setting. Until then appends do not wait.
        async move {
            loop {
                if let Err(error) = store.decide(&append).await {
                    return error;
                }
            }
        }
    });
    let waiting = "FROM pg_stat_activity WHERE usename = 'cartlog_commands' AND wait_event = 'SyncRep'";
    eventually("the append waits for the standby", || async {
        sqlx::query(&format!("SELECT pg_terminate_backend(pid) {waiting}")).fetch_optional(&pool).await.unwrap()
    })
    .await;
    let outcome = appending.await.unwrap();
    assert!(matches!(outcome, DecideError::Store(StoreError::OutcomeUnknown)), "{outcome:?}");
    standbys("").await;
    eventually("commands are accepted again", || async { store.decide(&Appends(cart.added(2))).await.ok() }).await;
    store.close().await;
    drop((store, pool));
    postgres.stop().await.unwrap();
}
