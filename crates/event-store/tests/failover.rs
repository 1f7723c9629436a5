//! The log's server is replaced under a running process: by a standby that is promoted, or by a volume that is put back. Connections to the
//! old server stay open, or its state is remembered, and neither is used again.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::{path::PathBuf, sync::Arc};

use cart_events::{DomainEvent, examples::Shopping};
use embedded::{backup, database, distribution, forwarder::Forwarder, layout::Layout, postgres::Postgres, report::Report, standby};
use event_store::{DecideError, EventStore, Position, StoreError, StoreSettings};
use futures::future::join_all;
use sqlx::{PgPool, postgres::PgConnectOptions};
use test_support::eventually;

use crate::common::{Add, Items};

type Log = EventStore<DomainEvent>;

/// A server of its own, with a log.
struct Server {
    postgres: Postgres,
    layout: Layout,
    scratch: PathBuf,
}

impl Server {
    async fn start(test: &str) -> Self {
        let layout = Layout::discover().unwrap();
        let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
        let scratch = layout.scratch(&format!("store-{test}")).unwrap();
        let postgres = Postgres::start_on_free_port(&layout, &distribution, &scratch.join("first")).await.unwrap();
        database::create(&postgres.url("postgres", "postgres"), database::NAME).await.unwrap();
        database::migrate(&postgres.url("postgres", database::NAME)).await.unwrap();
        Self { postgres, layout, scratch }
    }

    async fn standby(&mut self) -> Postgres {
        standby::start(&self.layout, &self.postgres, self.postgres.port(), &self.scratch.join("standby"), "standby").await.unwrap()
    }
}

fn options(server: &Postgres, role: &str) -> PgConnectOptions {
    server.url(role, database::NAME).parse().unwrap()
}

async fn owner(server: &Postgres) -> PgPool {
    database::connect(&server.url("postgres", database::NAME)).await.unwrap()
}

fn open(forwarder: &Forwarder) -> Log {
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(forwarder.port()).username("cartlog_commands");
    EventStore::new(options.database(database::NAME), StoreSettings::default())
}

async fn head(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT coalesce(max(event_id), 0) FROM event").fetch_one(pool).await.unwrap()
}

/// The connections of services.
async fn sessions(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE usename = 'cartlog_commands'").fetch_one(pool).await.unwrap()
}

/// Opens every connection of the pool, both of the appender, and the listener's.
async fn open_all(log: &Log) {
    let taken = join_all((0..10).map(|_| log.connection())).await;
    taken.into_iter().for_each(|connection| connection.unwrap().done());
    for added in join_all((0..20).map(|_| async { log.decide(&Add::to(&Shopping::new())).await })).await {
        added.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn connections_to_a_replaced_primary_are_never_used_again() {
    let mut primary = Server::start("replaced-primary").await;
    let mut standby = primary.standby().await;
    let forwarder = Forwarder::before(primary.postgres.port()).await.unwrap();
    let log = open(&forwarder);
    let cart = Shopping::new();
    log.decide(&Add::to(&cart)).await.unwrap();
    open_all(&log).await;
    let (old, new) = (owner(&primary.postgres).await, owner(&standby).await);
    let written = head(&old).await;
    eventually("the standby has all of the log", || async { (head(&new).await == written).then_some(()) }).await;
    assert!(sessions(&old).await >= 10);

    // The old primary lives on, and the connections to it stay open.
    standby::promote(&standby).await.unwrap();
    let direct = Log::new(options(&standby, "cartlog_commands"), StoreSettings::default());
    let filled = async || {
        for _ in 0..2 {
            direct.decide(&Add::to(&cart)).await.unwrap();
        }
    };
    eventually("the new primary takes writes", || async { direct.ready().await.ok() }).await;
    filled().await;
    forwarder.move_to(standby.port());

    // Nobody asks for anything: the process learns of the new primary by itself.
    let epoch = log.head_watcher().epoch();
    eventually("the process learns of the new primary", || async { (log.head_watcher().epoch() > epoch).then_some(()) }).await;
    let before = head(&old).await;
    let log = Arc::new(log);
    let working = (0..40).map(|n| {
        let (log, cart) = (log.clone(), Shopping { cart_id: cart.cart_id, ..Shopping::new() });
        tokio::spawn(async move {
            match n % 3 {
                0 => {
                    let full = log.decide(&Add::to(&cart)).await;
                    assert!(matches!(full, Err(DecideError::Refused(3))), "{full:?}");
                }
                1 => assert_eq!(log.read(Items { cart_id: cart.cart_id, items: 0 }).await.unwrap().0.items, 3),
                _ => assert!(log.decide(&Add::to(&Shopping::new())).await.unwrap() > Position(written + 2)),
            }
        })
    });
    for work in join_all(working).await {
        work.unwrap();
    }
    assert_eq!(head(&old).await, before, "something was written to the old primary");
    eventually("the connections to the old primary are closed", || async {
        // An idle one of the pool is closed when it is its turn to be used.
        join_all((0..10).map(|_| log.connection())).await.into_iter().for_each(|connection| connection.unwrap().done());
        (sessions(&old).await == 0).then_some(())
    })
    .await;

    // The address leads to the old primary once more, as after a mistake.
    forwarder.move_to(primary.postgres.port());
    let refused = log.pool().connect().await.err();
    assert!(matches!(refused, Some(StoreError::NotCurrent(_))), "{refused:?}");
    standby.stop().await.unwrap();
    primary.postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn a_volume_put_back_under_a_process_is_noticed_though_its_log_grew() {
    let mut server = Server::start("volume-put-back").await;
    let forwarder = Forwarder::before(server.postgres.port()).await.unwrap();
    let log = open(&forwarder);
    let cart = Shopping::new();
    log.decide(&Add::to(&cart)).await.unwrap();
    let copy = server.scratch.join("copy");
    server.postgres.stop().await.unwrap();
    backup::copy_stopped(&server.postgres, &copy).await.unwrap();
    server.postgres.restart().await.unwrap();
    for _ in 0..2 {
        eventually("the cart is filled", || async { log.decide(&Add::to(&cart)).await.ok() }).await;
    }
    let full = log.decide(&Add::to(&cart)).await;
    assert!(matches!(full, Err(DecideError::Refused(3))), "{full:?}");

    // While the process cannot connect, others write to the restored log: it is longer than the one that the process knows.
    forwarder.move_to(1);
    server.postgres.stop().await.unwrap();
    backup::put_back(&server.postgres, &copy).await.unwrap();
    server.postgres.restart().await.unwrap();
    let direct = Log::new(options(&server.postgres, "cartlog_commands"), StoreSettings::default());
    for _ in 0..5 {
        direct.decide(&Add::to(&Shopping::new())).await.unwrap();
    }
    forwarder.move_to(server.postgres.port());
    let added = eventually("a command is answered", || async {
        match log.decide(&Add::to(&cart)).await {
            Err(DecideError::Store(error)) if error.is_unavailable() => None,
            answer => Some(answer),
        }
    })
    .await;
    assert_eq!(added.unwrap(), Position(7), "the cart has one item in the restored log");
    server.postgres.stop().await.unwrap();
}

/// A restart keeps the log: commands go on, and none is told that its outcome is unknown.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts PostgreSQL: cargo dev test"]
async fn a_command_in_flight_during_a_restart_is_decided_again() {
    let mut server = Server::start("restart").await;
    let log = Log::new(options(&server.postgres, "cartlog_commands"), StoreSettings::default());
    let cart = Shopping::new();
    log.decide(&Add::to(&cart)).await.unwrap();
    let pool = owner(&server.postgres).await;
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *holding).await.unwrap();
    let (store, add) = (log.clone(), Add::to(&cart));
    let deciding = tokio::spawn(async move { store.decide(&add).await });
    eventually("the call waits for the log's lock", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cartlog_commands' AND wait_event_type = 'Lock'";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() == 1).then_some(())
    })
    .await;
    server.postgres.kill().await.unwrap();
    server.postgres.restart().await.unwrap();
    assert_eq!(deciding.await.unwrap().unwrap(), Position(2));
    server.postgres.stop().await.unwrap();
}
