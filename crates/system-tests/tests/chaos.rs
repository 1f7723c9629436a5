//! The real services are killed, frozen and disconnected under load, and recover. `cargo dev chaos` does the same for longer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says its seed"
)]

use std::path::PathBuf;
use std::time::Duration;

use dev::chaos::{Chaos, Place};
use embedded::distribution;
use embedded::layout::Layout;
use embedded::postgres::Postgres;
use embedded::report::Report;

const LENGTH: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn chaos_with_a_fixed_seed_leaves_no_difference() {
    chaos(20_260_707).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn chaos_with_a_random_seed_leaves_no_difference() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    chaos(clock.as_secs()).await;
}

async fn chaos(seed: u64) {
    let again = format!("cargo dev chaos projections --minutes {} --seed {seed}", LENGTH.as_secs_f64() / 60.0);
    println!("seed {seed}: {again}");
    let programs = std::env::var_os("CARTLOG_TEST_BIN_DIR").map(PathBuf::from);
    let programs = programs.expect("these tests run the services' programs: run `cargo dev test`, which builds them");
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let directory = layout.scratch(&format!("chaos-{seed}")).unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &directory).await.unwrap();
    let place = Place { programs, logs: directory.join("logs"), kafka: test_support::kafka_bootstrap_servers(), postgres: &mut postgres };
    let mut chaos = Chaos::begin(place, seed, &Report::quiet()).await.unwrap();
    chaos.storm(LENGTH).await.unwrap();
    chaos.calm().await.unwrap();
    let outcome = chaos.check().await.unwrap();
    println!("{outcome}");
    if let Err(error) = outcome.verdict(&again) {
        panic!("{error}");
    }

    // A lost row must be found, so the comparison has read the build in service.
    let serving: String = sqlx::query_scalar("SELECT build FROM projection WHERE name = 'cart_items' AND status = 'serving'")
        .fetch_one(chaos.pool())
        .await
        .unwrap();
    let lose = format!(
        "DELETE FROM {serving}.cart_items_item WHERE (cart_id, item_id) IN (SELECT cart_id, item_id FROM {serving}.cart_items_item LIMIT 1)"
    );
    assert_eq!(sqlx::query(&lose).execute(chaos.pool()).await.unwrap().rows_affected(), 1);
    let outcome = chaos.check().await.unwrap();
    let [one] = outcome.differences() else { panic!("one row is lost: {:?}", outcome.differences()) };
    assert!(one.starts_with("cart_items_item, ") && one.contains("is missing"), "{one}");
    assert!(outcome.verdict(&again).unwrap_err().to_string().contains(&again));
    chaos.end().await.unwrap();
    postgres.kill().await.unwrap();
}
