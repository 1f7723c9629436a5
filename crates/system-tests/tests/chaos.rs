//! A short campaign of each kind: the real services and servers are disturbed under load, and recover. `cargo dev chaos` does it for longer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot continue fails, and says its seed"
)]

use std::path::PathBuf;
use std::time::Duration;

use dev::chaos::{Campaign, Chaos, Outcome, Place, Plan};
use embedded::layout::Layout;
use embedded::report::Report;

const REPLICAS: usize = 2;

async fn begin(campaign: Campaign, seed: u64, seconds: u64) -> Chaos {
    let plan = Plan { campaign, seed, length: Duration::from_secs(seconds), replicas: REPLICAS };
    println!("{}", plan.command());
    let programs = std::env::var_os("CARTLOG_TEST_BIN_DIR").map(PathBuf::from);
    let programs = programs.expect("these tests run the services' programs: run `cargo dev test`, which builds them");
    let layout = Layout::discover().unwrap();
    let directory = layout.scratch(&format!("chaos-{campaign:?}-{seed}")).unwrap();
    let place = Place { programs, directory, kafka: Some(test_support::kafka_bootstrap_servers()) };
    let mut chaos = Chaos::begin(&layout, place, plan, &Report::quiet()).await.unwrap();
    chaos.storm().await.unwrap();
    chaos.calm().await.unwrap();
    chaos
}

fn hold(outcome: &Outcome) {
    println!("{outcome}");
    if let Err(error) = outcome.verdict() {
        panic!("{error}");
    }
}

async fn campaign(campaign: Campaign, seed: u64, seconds: u64) {
    let mut chaos = begin(campaign, seed, seconds).await;
    hold(&chaos.check().await.unwrap());
    chaos.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and the four binaries: cargo dev test"]
async fn failovers_leave_no_difference() {
    campaign(Campaign::Failover, 20_260_707, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn broken_networks_leave_no_difference() {
    campaign(Campaign::Network, 20_260_707, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and the four binaries: cargo dev test"]
async fn restores_leave_no_difference_beyond_the_lost_events() {
    campaign(Campaign::Restore, 20_260_707, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn disturbed_brokers_leave_no_difference() {
    campaign(Campaign::Kafka, 20_260_707, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn everything_at_once_leaves_no_difference() {
    campaign(Campaign::Everything, 20_260_707, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and the four binaries: cargo dev test"]
async fn disturbed_processes_leave_no_difference() {
    let mut chaos = begin(Campaign::Processes, 20_260_707, 20).await;
    hold(&chaos.check().await.unwrap());

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
    assert!(outcome.verdict().unwrap_err().to_string().contains("cargo dev chaos processes"));
    chaos.end().await.unwrap();
}
