//! `cartctl parked` on a database, with a projection of the test.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step fails the test")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use crate::common::*;
use async_trait::async_trait;
use cart_events::{ArchivingStream, DomainEvent, examples::Shopping};
use event_store::Recorded;
use projections::{Projection, Settings, Switch};
use serde_json::{Value, json};
use sqlx::PgConnection;
use test_support::{Process, TestLog, eventually};
use uuid::Uuid;

/// Fails on the events at these positions. Writes nothing.
#[derive(Clone, Default)]
struct Model(Arc<Mutex<BTreeSet<i64>>>);

#[async_trait]
impl Projection for Model {
    type Log = DomainEvent;
    type Event = ArchivingStream;
    const NAME: &'static str = "inventories";
    const TABLES: &'static [&'static str] = &["inventories"];

    fn key(event: &ArchivingStream) -> Option<Uuid> {
        event.cart_id().map(|cart| cart.uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<ArchivingStream>]) -> Result<(), sqlx::Error> {
        if batch.iter().any(|event| self.0.lock().unwrap().contains(&event.position.0)) {
            sqlx::query("SELECT 'no number'::integer").execute(transaction).await?;
        }
        Ok(())
    }
}

async fn listed(log: &TestLog<DomainEvent>, count: usize) -> Vec<Value> {
    eventually("so many are listed", || async {
        let listed = over(&log.database, &["parked", "list", "--json"]).documents(0);
        (listed.len() == count).then_some(listed)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn parked_keys_are_listed_shown_and_retried() {
    let (log, model) = (TestLog::<DomainEvent>::create().await, Model::default());
    let [first, second, well] = std::array::from_fn(|_| Shopping::new());
    log.append([first.added(0), second.added(0), well.added(0), first.price_changed(0), first.removed(0)]).await;
    model.0.lock().unwrap().extend([1, 2]);
    assert_eq!(over(&log.database, &["parked", "list"]).stderr, "Nothing is parked\n");
    over(&log.database, &["parked", "retry", "--all"]).failed(3, "No key is parked");
    let running = Process::start(&log, model.clone());
    let parked = listed(&log, 2).await;
    let of = |cart: &Shopping| parked.iter().find(|parked| parked["key"] == json!(cart.cart_id)).unwrap();
    let one = of(&first);
    assert_eq!(
        (&one["projection"], &one["build"], &one["status"], &one["position"], &one["attempts"]),
        (&json!("inventories"), &json!("projection_a"), &json!("serving"), &json!(1), &json!(1))
    );
    assert!(one["error"].as_str().unwrap().contains("invalid input syntax for type integer"), "{one}");
    assert!(one["since_seconds"].as_f64().unwrap() >= 0.0);
    assert!(over(&log.database, &["parked", "list", "--projection", "cart_items", "--json"]).documents(0).is_empty());
    let (one, two) = (first.cart_id.to_string(), second.cart_id.to_string());
    let table = over(&log.database, &["parked", "list"]).stdout;
    assert!(table.contains(&one) && table.contains("invalid input syntax"), "{table}");

    let shown = eventually("all is in the queue", || async {
        let shown = over(&log.database, &["parked", "show", "inventories", &one, "--json"]).document();
        (shown["parked"]["queued"] == 3).then_some(shown)
    })
    .await;
    let queue: Vec<_> = shown["queue"].as_array().unwrap().iter().map(|event| (&event["position"], &event["type"])).collect();
    assert_eq!(queue, [(&json!(1), &json!("ItemAdded")), (&json!(4), &json!("PriceChanged")), (&json!(5), &json!("ItemRemoved"))]);
    let text = over(&log.database, &["parked", "show", "inventories", &one, "--limit", "2"]);
    assert!(text.stdout.contains("PriceChanged  product_id=") && !text.stdout.contains("ItemRemoved"), "{text:?}");
    assert!(text.stderr.contains("Only the first 2 of 3"), "{text:?}");
    over(&log.database, &["parked", "show", "inventories", &well.cart_id.to_string()]).failed(3, "is not parked in inventories");

    let status = over(&log.database, &["status", "--json"]).document();
    assert_eq!(status["parked"].as_array().unwrap().len(), 2);
    assert_eq!((&status["projections"][0]["parked"], &status["projections"][0]["lag_events"]), (&json!(2), &json!(0)));
    assert!(over(&log.database, &["status"]).stdout.contains(&two));

    // The command names the keys that still fail, with exit code 1. The other keys are no longer parked.
    model.0.lock().unwrap().remove(&1);
    let outcome = over(&log.database, &["parked", "retry", "--all", "--json"]);
    outcome.failed(1, &format!("{two} stays parked in inventories at event 2"));
    assert_eq!((&outcome.documents(1)[0]["applied"], &outcome.documents(1)[0]["still_parked"][0]["attempts"]), (&json!(1), &json!(2)));
    over(&log.database, &["parked", "retry", "inventories", &one]).failed(3, "is not parked in inventories");
    model.0.lock().unwrap().clear();
    let outcome = over(&log.database, &["parked", "retry", "inventories", &one, &two]);
    assert!(outcome.code == Some(0) && outcome.stdout.contains("Applied 1 parked keys") && outcome.stderr.contains(&one), "{outcome:?}");
    assert!(over(&log.database, &["parked", "list", "--json"]).documents(0).is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn skip_needs_a_reason_and_a_confirmation() {
    let (log, model, cart) = (TestLog::<DomainEvent>::create().await, Model::default(), Shopping::new());
    log.append([cart.added(0), cart.removed(0)]).await;
    model.0.lock().unwrap().insert(1);
    let running = Process::start(&log, model.clone());
    listed(&log, 1).await;
    let key = cart.cart_id.to_string();
    let skip = |more: &[&str]| over(&log.database, &[&["parked", "skip", "inventories", "--by", "ada"], more].concat());
    skip(&["--key", &key, "--position", "1"]).failed(2, "--reason");
    skip(&["--key", &key, "--position", "1", "--reason", " "]).failed(2, "must say why");
    skip(&["--key", &key, "--position", "2", "--reason", "a test order"]).failed(3, "at event 1, so that event can be skipped");
    skip(&["--position", "1", "--reason", "a test order"]).failed(3, "--key names a parked key");
    skip(&["--key", &key, "--position", "1", "--reason", "a test order"]).failed(4, "--yes");
    assert!(over(&log.database, &["parked", "list", "--skipped", "--json"]).documents(0).is_empty());
    let outcome = skip(&["--key", &key, "--position", "1", "--reason", "a test order", "--yes", "--json"]).document();
    assert_eq!(outcome, json!({ "projection": "inventories", "key": key, "position": 1, "builds": ["projection_a"] }));
    listed(&log, 0).await;
    let skipped = over(&log.database, &["parked", "list", "--skipped", "--json"]).document();
    assert_eq!(
        (&skipped["key"], &skipped["position"], &skipped["reason"], &skipped["skipped_by"]),
        (&json!(key), &json!(1), &json!("a test order"), &json!("ada"))
    );
    assert!(over(&log.database, &["parked", "list", "--skipped"]).stdout.contains("a test order"));

    // An event without a key has segments stand.
    model.0.lock().unwrap().insert(3);
    log.append([cart.price_changed(0), cart.added(1)]).await;
    let stands = eventually("both segments stand", || async {
        let listed = over(&log.database, &["parked", "list", "--json"]).documents(0);
        listed.into_iter().find(|stands| stands["segments"] == json!((0..16).collect::<Vec<_>>()))
    })
    .await;
    assert_eq!((&stands["key"], &stands["position"]), (&Value::Null, &json!(3)));
    let table = over(&log.database, &["projections", "list"]).stdout;
    assert!(table.contains("0, 16 of 16 segments blocked"), "{table}");
    assert!(over(&log.database, &["status"]).stdout.contains("none: segments 0, 1, 2"));
    over(&log.database, &["parked", "retry", "--all"]).failed(3, "Blocked segments retry by themselves");
    assert_eq!(skip(&["--position", "3", "--reason", "a test price", "--yes"]).code, Some(0));
    listed(&log, 0).await;
    assert_eq!(operations::skipped(log.store.pool(), None).await.unwrap().len(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn retry_without_a_replica_is_reported() {
    let (log, model, cart) = (TestLog::<DomainEvent>::create().await, Model::default(), Shopping::new());
    log.append([cart.added(0)]).await;
    log.project(model.clone(), Settings::default()).await;
    model.0.lock().unwrap().insert(1);
    projections::rebuild_named(log.store.pool(), "inventories", Switch::WhenAsked).await.unwrap();
    let running = Process::start(&log, model.clone());
    listed(&log, 1).await;
    let held_back = over(&log.database, &["projections", "switch", "inventories"]);
    assert!(held_back.code == Some(0) && held_back.stderr.contains("--force"), "{held_back:?}");
    running.stop().await;
    let outcome = over(&log.database, &["parked", "retry", "inventories", &cart.cart_id.to_string(), "--wait", "1"]);
    outcome.failed(1, "not retried within 1 seconds");
    assert!(outcome.stderr.contains("No process runs inventories"), "{outcome:?}");
    assert_eq!(over(&log.database, &["parked", "retry", "--all", "--wait", "0"]).code, Some(0));

    let running = Process::start(&log, model.clone());
    listed(&log, 1).await;
    assert_eq!(over(&log.database, &["projections", "switch", "inventories", "--force"]).code, Some(0));
    eventually("it is in service", || async {
        let builds = over(&log.database, &["projections", "list", "--json"]).documents(0);
        builds.iter().any(|build| build["build"] == "projection_b" && build["status"] == "serving").then_some(())
    })
    .await;
    running.stop().await;
}
