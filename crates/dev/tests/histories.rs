//! Whether the log is exact when PostgreSQL itself is killed under it; as `event-store`'s own histories, on a server of the test's own.

use std::path::Path;

use dev::database;
use dev::distribution;
use dev::layout::Layout;
use dev::postgres::Postgres;
use dev::report::Report;
use dev::services::COMMANDS;
use test_support::histories::{Setup, Summary, Workers, seeds};

/// Not a test of its own: the processes of the other one run this alone.
#[test]
fn works_on_the_log_when_another_test_asks_for_it() {
    test_support::histories::work_if_asked();
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_postgres_was_killed_and_all_of_it_is_exact() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch("postgres-killed-under-load").unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &directory).await.unwrap();
    database::create(&postgres.url("postgres", "postgres"), database::NAME).await.unwrap();
    let owner = postgres.url("postgres", database::NAME);
    database::migrate(&owner).await.unwrap();
    let setup = Setup {
        database_url: postgres.url(COMMANDS.role, database::NAME),
        seed: seeds()[0],
        processes: 3,
        // So many that it gathers them.
        tasks: 48,
        known_bytes: 16 << 20,
        worker: "works_on_the_log_when_another_test_asks_for_it",
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
    let Summary { written, refused, undone, unknown, looked_up, gathered, .. } = summary;
    assert!(written > 100 && refused > 50 && undone + unknown > 0 && looked_up > 0 && gathered > 0, "{summary}");
    drop(pool);
    postgres.stop().await.unwrap();
}
