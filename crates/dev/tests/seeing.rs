//! What an operator sees of the four services: metrics, traces and logs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod system;

use dev::services::{COMMANDS, Kind, PROJECTIONS, PUBLISHER, TRANSLATOR};
use serde_json::json;
use system::{ALL, Shop};
use test_support::eventually;
use uuid::Uuid;

/// A service's metrics as Prometheus reads them.
struct Metrics(String);

impl Metrics {
    async fn of(shop: &Shop, kind: Kind) -> Self {
        Self(reqwest::get(format!("{}/metrics", shop.url(kind))).await.unwrap().text().await.unwrap())
    }

    /// The sum of a metric's samples that have all these labels; none where there is no such sample.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut samples = self.0.lines().filter_map(|line| line.strip_prefix(name)).filter_map(|rest| {
            let (given, value) = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let all = labels.iter().all(|(label, value)| format!(",{given},").contains(&format!(",{label}=\"{value}\",")));
            all.then(|| value.parse::<f64>().unwrap())
        });
        let first = samples.next()?;
        Some(samples.fold(first, |sum, value| sum + value))
    }

    #[track_caller]
    fn holds(&self, name: &str, labels: &[(&str, &str)], expected: impl Fn(f64) -> bool) {
        let found = self.sum(name, labels);
        assert!(found.is_some_and(expected), "{name} {labels:?} is {found:?} in:\n{}", self.0);
    }
}

#[tokio::test]
async fn metrics_answer_what_an_operator_asks() {
    let mut shop = Shop::new("metrics").await;
    shop.start(&ALL).await;
    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(shop.add(cart, product, "9.99").await.0, 200);
    assert_eq!(shop.submit(cart).await.0, 200);
    assert_eq!(shop.submit(cart).await.0, 409);
    assert_eq!(shop.submit(Uuid::now_v7()).await.0, 404);
    let body = json!({"product_id": product, "inventory": 1});
    assert_eq!(shop.post(TRANSLATOR, &format!("/changeinventory/{product}"), &body).await.0, 200);
    shop.until_count("CartPublished", 1).await;

    let commands = Metrics::of(&shop, COMMANDS).await;
    let (once, some) = (|n: f64| n == 1.0, |n: f64| n > 0.0);
    let counted = "command_duration_seconds_count";
    commands.holds(counted, &[("slice", "add_item"), ("outcome", "done")], once);
    commands.holds(counted, &[("slice", "submit_cart"), ("outcome", "done")], once);
    commands.holds(counted, &[("slice", "submit_cart"), ("outcome", "refused"), ("refusal", "cart_submitted")], once);
    commands.holds(counted, &[("slice", "submit_cart"), ("outcome", "refused"), ("refusal", "unknown_cart")], once);
    commands.holds("command_duration_seconds_sum", &[("slice", "add_item")], some);
    commands.holds("log_append_wait_seconds_count", &[], |n| n == 2.0);
    commands.holds("log_append_duration_seconds_count", &[], some);
    commands.holds("log_append_batch_count", &[], some);
    let version = ("service_version", env!("CARGO_PKG_VERSION"));
    commands.holds("target_info", &[("service_name", "cart-commands"), version], once);
    for kind in ALL {
        let metrics = Metrics::of(&shop, kind).await;
        let pool = ("db_client_connection_pool_name", "log");
        let used = metrics.sum("db_client_connection_count", &[pool, ("db_client_connection_state", "used")]).unwrap();
        let idle = metrics.sum("db_client_connection_count", &[pool, ("db_client_connection_state", "idle")]).unwrap();
        assert!((1.0..=10.0).contains(&(used + idle)), "{} has {used} used and {idle} idle", kind.name);
        metrics.holds("db_client_connection_max", &[pool], |n| n == 10.0);
    }
    Metrics::of(&shop, TRANSLATOR).await.holds(counted, &[("slice", "change_inventory"), ("outcome", "done")], once);

    for (kind, client) in [(TRANSLATOR, "consumer"), (TRANSLATOR, "producer"), (PUBLISHER, "producer")] {
        eventually("the client is connected", || async {
            (Metrics::of(&shop, kind).await.sum("broker_connected", &[("client", client)]) == Some(1.0)).then_some(())
        })
        .await;
    }
    let publisher = Metrics::of(&shop, PUBLISHER).await;
    let topic = shop.topic("published-carts");
    let acknowledged = [("topic", topic.as_str()), ("outcome", "acknowledged")];
    publisher.holds("publication_duration_seconds_count", &acknowledged, once);
    publisher.holds("publication_duration_seconds_sum", &acknowledged, |seconds| seconds > 0.0 && seconds < 60.0);
    publisher.holds(counted, &[("slice", "publish_cart"), ("outcome", "done")], once);
    Metrics::of(&shop, PROJECTIONS).await.holds("projection_position", &[("projection", "cart_items")], some);
    shop.stop().await;
}
