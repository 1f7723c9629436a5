//! Commands on a database, without services and without a broker.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step fails the test")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
};

use crate::common::*;
use async_trait::async_trait;
use cart_events::{CartStream, DomainEvent, SubmittedStream, examples::Shopping};
use event_store::{Metadata, Recorded, SourcePartition, StoreSettings};
use projections::{
    Kind, Projection, Settings,
    todo::{self, NewTodo},
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use test_support::{Process, TestLog, eventually, quick};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A read model without rows, with an existing table.
struct Model;

#[async_trait]
impl Projection for Model {
    type Log = DomainEvent;
    type Event = CartStream;
    const NAME: &'static str = "inventories";
    const TABLES: &'static [&'static str] = &["inventories"];

    fn key(_: &CartStream) -> Option<Uuid> {
        None
    }

    async fn apply(&self, _: &mut PgConnection, _: &[Recorded<CartStream>]) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

/// Enqueues a to-do per submitted cart, with the name of Publish Cart.
struct Publish;

#[async_trait]
impl Projection for Publish {
    type Log = DomainEvent;
    type Event = SubmittedStream;
    const NAME: &'static str = "publish_cart";
    const KIND: Kind = Kind::Automation;
    const TABLES: &'static [&'static str] = &[];

    fn key(event: &SubmittedStream) -> Option<Uuid> {
        let SubmittedStream::CartSubmitted { cart_id, .. } = event;
        Some(cart_id.uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<SubmittedStream>]) -> Result<(), sqlx::Error> {
        let todos: Vec<_> = batch
            .iter()
            .map(|event| {
                let SubmittedStream::CartSubmitted { cart_id, .. } = &event.event;
                let payload = json!({ "total": 1.10 });
                NewTodo { key: cart_id.to_string(), position: event.position, payload, metadata: Metadata::default() }
            })
            .collect();
        todo::enqueue(transaction, Self::NAME, &todos).await
    }
}

/// Creates a log with a submitted cart, and runs both projections.
async fn shop(cart: &Shopping) -> TestLog<DomainEvent> {
    let log = TestLog::create().await;
    log.append(cart.with_items(2).chain([cart.submitted(2)])).await;
    log.project(Model, Settings::default()).await;
    log.project(Publish, Settings::default()).await;
    log
}

async fn fail_todos(pool: &event_store::Pool) {
    let fail = "UPDATE todo SET status = 'failed', attempts = 7, tried_for = '2 hours', finished_at = now(),
                last_error = 'the broker was away'";
    sqlx::query(fail).execute(pool).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn status_names_what_a_restore_lost() {
    let log = shop(&Shopping::new()).await;
    let database: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(log.store.pool()).await.unwrap();
    let lost = format!("GRANT TEMPORARY ON DATABASE {database} TO PUBLIC");
    sqlx::query(&lost).execute(log.store.pool()).await.unwrap();
    let text = over(&log.database, &["status"]).stdout;
    assert!(text.contains(&format!("- {lost} is not allowed: run cartlog-migrate")), "{text}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn status_works_without_a_broker() {
    let cart = Shopping::new();
    let log = shop(&cart).await;
    // One more than the projections have seen.
    log.append([cart.inventory(0, 3)]).await;

    let status = over(&log.database, &["status", "--json"]).document();
    assert_eq!((&status["head"], &status["findings"]), (&json!(5), &json!([])));
    let projections = status["projections"].as_array().unwrap();
    let names: Vec<_> = projections.iter().map(|build| build["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["inventories", "publish_cart"]);
    let model = &projections[0];
    assert_eq!((&model["position"], &model["lag_events"], &model["status"]), (&json!(4), &json!(1), &json!("serving")));
    assert!(model["lag_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(model["segments"].as_array().unwrap().len(), 16);
    assert_eq!(model["segments"][0]["replica"], Value::Null, "nobody runs it any more");
    assert_eq!(status["replicas"], json!([]));
    assert_eq!(
        (&status["todos"][0]["automation"], &status["todos"][0]["open"], &status["todos"][0]["failed"]),
        (&json!("publish_cart"), &json!(1), &json!(0))
    );
    assert_eq!(status["translations"][0]["topic"], "history");
    assert_eq!(status["translations"][0]["lag"], Value::Null);
    assert_eq!(status["dead_letters"], Value::Null);
    assert!(status["broker_error"].as_str().unwrap().contains(NOWHERE));

    let text = over(&log.database, &["status"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    for word in ["The head of the log is 5", "inventories", "publish_cart", "history", "KAFKA_BOOTSTRAP_SERVERS"] {
        assert!(text.stdout.contains(word), "{word}: {}", text.stdout);
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn status_begins_with_a_verdict() {
    let cart = Shopping::new();
    let log = shop(&cart).await;
    let verdict = || {
        let text = over(&log.database, &["status"]).stdout;
        let mut lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect();
        let first = lines.remove(0);
        // Here no broker answers and no process runs the projections.
        lines.retain(|line| !line.starts_with("- the broker does not answer: ") && !line.starts_with("- no process runs version 1 of "));
        (first, lines)
    };
    assert_eq!(verdict(), ("3 things need attention:".to_owned(), vec![]));
    fail_todos(log.store.pool()).await;
    execute(
        &log,
        "INSERT INTO parked_key (name, build, key, position, error) VALUES ('inventories', 'projection_a', uuidv7(), 2, 'plain');
         UPDATE checkpoint SET blocked_at = position + 1, blocked_error = 'plain', blocked_attempts = 1, blocked_since = now()
         WHERE name = 'inventories' AND segment < 2;
         UPDATE projection SET ahead_of = 1 WHERE name = 'inventories';
         UPDATE projection SET paused = true WHERE name = 'publish_cart'",
    )
    .await;
    let expected = [
        "- projection_a of inventories is ahead of the log, which was restored; run `cartctl projections rebuild inventories`",
        "- publish_cart is paused; run `cartctl projections resume publish_cart`",
        "- parked keys in inventories: 1; run `cartctl parked list --projection inventories`",
        "- blocked segments of inventories: 2; run `cartctl parked list --projection inventories`",
        "- failed to-dos of publish_cart: 1; run `cartctl todos list --automation publish_cart`",
    ];
    assert_eq!(verdict(), ("8 things need attention:".to_owned(), expected.map(str::to_owned).to_vec()));
    let attention = over(&log.database, &["status", "--json"]).document()["attention"].clone();
    let paused = json!({ "what": "publish_cart is paused", "command": "cartctl projections resume publish_cart" });
    assert!(attention.as_array().unwrap().contains(&paused), "{attention}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn status_names_the_owner_of_a_segment() {
    let cart = Shopping::new();
    let log = shop(&cart).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(log.projections.run(Model, Settings::default(), stop.clone()));
    let status = eventually("a replica owns every segment", || async {
        let status = over(&log.database, &["status", "--json"]).document();
        let all = status["projections"][0]["segments"].as_array().unwrap().iter().all(|segment| segment["replica"] != Value::Null);
        all.then_some(status)
    })
    .await;
    let replica = &status["replicas"][0];
    assert_eq!(replica["name"], "inventories");
    assert_eq!(status["projections"][0]["segments"][1]["replica"], replica["id"]);
    let table = over(&log.database, &["projections", "list"]).stdout;
    assert!(table.contains("16 of 16: 16 by …"), "{table}");
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn status_watch_prints_again() {
    let log = shop(&Shopping::new()).await;
    let mut child = command(&["status", "--json", "--watch", "1"])
        .env("DATABASE_URL", log.database.url_as("postgres"))
        .env("KAFKA_BOOTSTRAP_SERVERS", NOWHERE)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let status: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(status["head"], 4);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

async fn execute(log: &TestLog<DomainEvent>, sql: &str) {
    sqlx::raw_sql(sql).execute(log.store.pool()).await.unwrap();
}

/// The builds of a projection, by their status.
fn builds(log: &TestLog<DomainEvent>, name: &str) -> BTreeMap<String, Value> {
    let all = over(&log.database, &["projections", "list", "--json"]).documents(0);
    all.into_iter().filter(|build| build["name"] == name).map(|build| (build["status"].as_str().unwrap().to_owned(), build)).collect()
}

/// Runs the command while projections run in the test.
async fn beside(log: &TestLog<DomainEvent>, arguments: &'static [&'static str]) -> Outcome {
    let url = log.database.url_as("postgres");
    tokio::task::spawn_blocking(move || Outcome::of(command(arguments).env("DATABASE_URL", url).output().unwrap())).await.unwrap()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn rebuild_with_hold_switches_when_asked() {
    let log = shop(&Shopping::new()).await;
    let outcome = over(&log.database, &["projections", "rebuild", "inventories", "--hold", "--detach", "--json"]);
    assert_eq!(outcome.document(), json!({ "name": "inventories", "started": true }));
    assert!(outcome.stderr.contains("No process runs inventories"), "{outcome:?}");
    let again = over(&log.database, &["projections", "rebuild", "inventories", "--detach", "--json"]);
    assert_eq!(again.document()["started"], false);
    assert!(again.stderr.contains("cartctl projections switch inventories"), "as it was begun: {again:?}");

    let building = builds(&log, "inventories").remove("building").unwrap();
    assert_eq!((&building["position"], &building["switch_when_ready"]), (&json!(0), &json!(false)));
    assert!(over(&log.database, &["projections", "list"]).stdout.contains("building, 0 %, held"));

    let asked = over(&log.database, &["projections", "switch", "inventories", "--detach", "--json"]).document();
    assert_eq!(asked, json!({ "name": "inventories", "in_service": false }));
    log.project(Model, Settings::default()).await;
    let now = builds(&log, "inventories");
    assert_eq!((&now["serving"]["build"], &now["retired"]["build"]), (&json!("projection_b"), &json!("projection_a")));

    over(&log.database, &["projections", "switch", "inventories"]).failed(3, "cartctl projections rebuild inventories");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn rebuild_is_followed_until_it_serves_or_has_caught_up() {
    let log = shop(&Shopping::new()).await;
    let process = Process::start(&log, Model);
    let outcome = beside(&log, &["projections", "rebuild", "inventories", "--json"]).await;
    let made = outcome.document();
    assert_eq!(
        (&made["started"], &made["build"], &made["in_service"], &made["position"]),
        (&json!(true), &json!("projection_b"), &json!(true), &json!(4)),
        "{outcome:?}"
    );
    // Without a terminal, lines.
    assert!(outcome.stderr.contains("inventories: ") && outcome.stderr.contains(" of 4 events"), "{outcome:?}");
    assert_eq!(builds(&log, "inventories")["serving"]["build"], "projection_b");

    // Another takes the place of the retired one.
    beside(&log, &["projections", "rebuild", "inventories"])
        .await
        .failed(4, "The rebuild empties the retired build of inventories (projection_a, version 1)");
    assert!(builds(&log, "inventories").contains_key("retired"));
    let held = beside(&log, &["projections", "rebuild", "inventories", "--hold", "--yes"]).await;
    assert_eq!(held.code, Some(0), "{held:?}");
    assert!(held.stdout.contains("cartctl projections diff inventories"), "{held:?}");
    let now = builds(&log, "inventories");
    assert_eq!((&now["serving"]["build"], &now["building"]["position"]), (&json!("projection_b"), &json!(4)));
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn rebuild_of_an_automation_enqueues_its_to_dos_again() {
    let log = shop(&Shopping::new()).await;
    let kept = Shopping::new();
    log.append(kept.with_items(1).chain([kept.submitted(1)])).await;
    log.project(Publish, Settings::default()).await;
    // One failed, one was taken for done, and one is about no cart.
    execute(
        &log,
        "UPDATE todo SET status = CASE WHEN position = 4 THEN 'done' ELSE 'failed' END;
         INSERT INTO todo (automation, key, position, payload, metadata) VALUES ('publish_cart', 'wrong', 1, '{}', '{}')",
    )
    .await;
    let publisher = log.database.options_as("cartlog_publisher");
    let process = Process::connected(publisher, StoreSettings::default(), Publish, quick());
    let rebuilt = beside(&log, &["projections", "rebuild", "publish_cart", "--yes", "--json"]).await.document();
    assert_eq!((&rebuilt["build"], &rebuilt["position"]), (&json!("automation"), &json!(7)));
    let todos: Vec<(i64, String)> =
        sqlx::query_as("SELECT position, status FROM todo ORDER BY position").fetch_all(log.store.pool()).await.unwrap();
    assert_eq!(todos, [(4, "open".to_owned()), (7, "failed".to_owned())]);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn interrupted_rebuild_continues_until_dropped() {
    let log = shop(&Shopping::new()).await;
    let mut child = command(&["projections", "rebuild", "inventories"])
        .env("DATABASE_URL", log.database.url_as("postgres"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut line = || said.next().unwrap().unwrap();
    assert!(line().starts_with("inventories: 0 %"));
    assert!(line().contains("No running process has version 1 of inventories"));
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert!(line().contains("continues without this command"));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(builds(&log, "inventories").contains_key("building"));

    over(&log.database, &["projections", "drop", "inventories"]).failed(4, "--yes");
    assert!(builds(&log, "inventories").contains_key("building"));
    let dropped = over(&log.database, &["projections", "drop", "inventories", "--yes", "--json"]).document();
    assert_eq!(dropped, json!({ "name": "inventories", "dropped": "projection_b", "version": 1, "status": "building" }));
    assert_eq!(builds(&log, "inventories").into_keys().collect::<Vec<_>>(), ["serving"]);
    over(&log.database, &["projections", "drop", "inventories", "--yes"]).failed(3, "which serves and stays");
    over(&log.database, &["projections", "drop", "publish_cart", "--yes"]).failed(3, "which serves and stays");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn diff_compares_rows_also_of_a_retired_build() {
    let log = shop(&Shopping::new()).await;
    let diff = || beside(&log, &["projections", "diff", "inventories", "--json"]);
    diff().await.failed(3, "cartctl projections rebuild inventories --hold");
    beside(&log, &["projections", "diff", "publish_cart"]).await.failed(1, "is an automation");
    let process = Process::start(&log, Model);
    assert_eq!(beside(&log, &["projections", "rebuild", "inventories", "--hold"]).await.code, Some(0));
    let same = diff().await.document();
    assert_eq!((&same["same"], &same["position"], &same["tables"][0]["rows_serving"]), (&json!(true), &json!(4), &json!(0)));

    let product = Uuid::now_v7();
    for (build, inventory) in [("projection_a", 1), ("projection_b", 2)] {
        sqlx::query(&format!("INSERT INTO {build}.inventories VALUES ($1, $2, 4)"))
            .bind(product)
            .bind(inventory)
            .execute(log.store.pool())
            .await
            .unwrap();
    }
    let differ = diff().await;
    let [document] = differ.documents(5).try_into().unwrap();
    let table = &document["tables"][0];
    assert_eq!((&document["same"], &table["only_serving"], &table["only_other"]), (&json!(false), &json!(1), &json!(1)));
    assert_eq!(
        table["samples"][0],
        json!({ "serving": true, "times": 1, "row": { "product_id": product, "inventory": 1, "position": 4 } })
    );
    let shown = beside(&log, &["projections", "diff", "inventories", "--samples", "1"]).await;
    shown.failed(5, "The builds of inventories differ in inventories");
    assert!(shown.stdout.contains("- {\"product_id\"") && !shown.stdout.contains("+ {"), "{shown:?}");

    // Switched, and what was in service is brought up to date, compared, and let go of again.
    let switched = over(&log.database, &["projections", "switch", "inventories", "--json"]).document();
    assert_eq!((&switched["in_service"], &switched["build"]), (&json!(true), &json!("projection_b")));
    assert!(builds(&log, "inventories").contains_key("retired"));
    log.append(Shopping::new().with_items(2)).await;
    let [document] = diff().await.documents(5).try_into().unwrap();
    assert_eq!(
        (&document["serving"], &document["other"], &document["position"]),
        (&json!("projection_b"), &json!("projection_a"), &json!(7))
    );
    assert!(builds(&log, "inventories").contains_key("retired"));

    // And back to it.
    assert_eq!(over(&log.database, &["projections", "switch", "inventories", "--back"]).code, Some(0));
    assert_eq!(builds(&log, "inventories")["serving"]["build"], "projection_a");
    process.stop().await;
    diff().await.failed(1, "No running process has version 1 of inventories");
    over(&log.database, &["projections", "switch", "inventories", "--back"]).failed(1, "Start the release");
    over(&log.database, &["projections", "drop", "inventories", "--yes"]).failed(0, "");
    over(&log.database, &["projections", "switch", "inventories", "--back"]).failed(3, "no retired build");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn pause_and_resume_a_projection() {
    let log = shop(&Shopping::new()).await;
    let pause = |task: &'static str, name: &'static str| over(&log.database, &["projections", task, name, "--json"]).document();
    assert_eq!(pause("pause", "publish_cart"), json!({ "name": "publish_cart", "paused": true, "changed": true }));
    assert_eq!(pause("pause", "publish_cart")["changed"], false);
    pause("pause", "inventories");
    assert_eq!(builds(&log, "publish_cart")["serving"]["paused"], true);
    assert!(over(&log.database, &["status"]).stdout.contains("serving, paused"));
    over(&log.database, &["projections", "rebuild", "inventories"]).failed(1, "cartctl projections resume inventories");
    assert_eq!(pause("resume", "inventories"), json!({ "name": "inventories", "paused": false, "changed": true }));
    assert_eq!(builds(&log, "inventories")["serving"]["paused"], false);
    over(&log.database, &["projections", "pause", "inventory"]).failed(3, "There are inventories, publish_cart");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn unknown_projection_lists_the_known_ones() {
    let log = shop(&Shopping::new()).await;
    for task in ["rebuild", "switch", "diff", "drop", "resume"] {
        over(&log.database, &["projections", task, "inventory"]).failed(3, "There are inventories, publish_cart");
    }
    over(&log.database, &["projections", "rebuild", "publish_cart", "--hold"]).failed(2, "is an automation");
    over(&log.database, &["projections", "rebuild", "publish_cart"]).failed(4, "empties its state and its to-dos");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn publications_are_listed_and_retried() {
    let carts = [Shopping::new(), Shopping::new()];
    let log = TestLog::create().await;
    for cart in &carts {
        log.append(cart.with_items(1).chain([cart.submitted(1)])).await;
    }
    log.project(Publish, Settings::default()).await;
    let [first, second] = carts.map(|cart| cart.cart_id.to_string());
    assert!(over(&log.database, &["publications", "list", "--json"]).documents(0).is_empty());
    over(&log.database, &["publications", "retry", "--all"]).failed(3, "No to-do of publish_cart has failed");
    over(&log.database, &["publications", "retry", &first]).failed(3, &first);

    fail_todos(log.store.pool()).await;
    let failed = over(&log.database, &["publications", "list", "--json"]).documents(0);
    assert_eq!(failed.iter().map(|todo| todo["key"].as_str().unwrap()).collect::<Vec<_>>(), [&first, &second]);
    assert_eq!(
        (&failed[0]["last_error"], &failed[0]["attempts"], &failed[0]["position"]),
        (&json!("the broker was away"), &json!(7), &json!(3))
    );
    assert_eq!(over(&log.database, &["todos", "list", "--automation", "archive_item", "--json"]).documents(0).len(), 0);
    assert_eq!(over(&log.database, &["todos", "list", "--json"]).documents(0).len(), 2);
    assert!(over(&log.database, &["publications", "list"]).stdout.contains("the broker was away"));

    let retried = over(&log.database, &["publications", "retry", &first, "--json"]).document();
    assert_eq!(retried, json!({ "automation": "publish_cart", "retried": [first], "not_failed": [] }));
    let row: (String, i32, bool) = sqlx::query_as("SELECT status, attempts, tried_for = '0' FROM todo WHERE key = $1")
        .bind(&first)
        .fetch_one(log.store.pool())
        .await
        .unwrap();
    assert_eq!(row, ("open".to_owned(), 0, true), "as if it had never been tried: its hour starts again");
    // The other one is retried, and that this one is open already is said.
    let partly = over(&log.database, &["todos", "retry", "publish_cart", &first, &second, "--json"]);
    assert_eq!(partly.documents(3), [json!({ "automation": "publish_cart", "retried": [second], "not_failed": [first] })]);
    fail_todos(log.store.pool()).await;
    let all = over(&log.database, &["publications", "retry", "--all", "--json"]).document();
    assert_eq!(all["retried"].as_array().unwrap().len(), 2);
    over(&log.database, &["publications", "retry"]).failed(2, "--all");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn log_shows_decoded_events() {
    let (cart, other) = (Shopping::new(), Shopping::new());
    let log = TestLog::create().await;
    log.append([other.created()].into_iter().chain(cart.with_items(2))).await;
    log.append([cart.inventory(1, 7), cart.price_changed(0), cart.removed(0)]).await;
    let positions = |documents: &[Value]| documents.iter().map(|event| event["position"].as_i64().unwrap()).collect::<Vec<_>>();
    let show = |arguments: &[&str]| over(&log.database, &[&["log"], arguments, &["--json"]].concat()).documents(0);

    let of_cart = show(&["show", "--cart", &cart.cart_id.to_string()]);
    assert_eq!(positions(&of_cart), [2, 3, 4, 7]);
    let added = &of_cart[1];
    assert_eq!(
        (&added["type"], &added["data"]["price"], &added["data"]["description"]),
        (&json!("ItemAdded"), &json!("10.10"), &json!("Item 0"))
    );
    assert!(added["metadata"]["append_id"].is_string() && added["recorded_at"].as_str().unwrap().ends_with('Z'), "{added}");
    assert_eq!(positions(&show(&["show", "--product", &cart.product(1).to_string()])), [4, 5]);
    assert_eq!(show(&["show", "--position", "6"])[0]["data"]["new_price"], "8.00");
    let cut = over(&log.database, &["log", "show", "--cart", &cart.cart_id.to_string(), "--last", "2", "--json"]);
    assert_eq!(positions(&cut.documents(0)), [4, 7]);
    assert!(cut.stderr.contains("Use --last to show more"), "{cut:?}");
    assert_eq!(positions(&show(&["tail", "--last", "3"])), [5, 6, 7]);
    let inventory = format!("InventoryChanged  product_id=\"{}\"  inventory=7", cart.product(1));
    assert!(over(&log.database, &["log", "tail"]).stdout.contains(&inventory));
    let (cart_id, product_id) = (cart.cart_id.to_string(), cart.product(1).to_string());
    assert_eq!(positions(&show(&["tail", "--type", "ItemAdded", "--type", "PriceChanged", "--last", "2"])), [4, 6]);
    assert_eq!(positions(&show(&["tail", "--cart", &cart_id, "--type", "ItemAdded"])), [3, 4]);
    assert_eq!(positions(&show(&["tail", "--product", &product_id])), [4, 5]);
    assert_eq!(positions(&show(&["tail", "--since", "1h"])).len(), 7);
    assert!(show(&["tail", "--since", "2100-01-01T00:00:00Z"]).is_empty());
    // The first four were recorded before, and an unknown type finds nothing.
    execute(&log, "UPDATE event SET inserted_at = inserted_at - interval '2 hours' WHERE event_id <= 4").await;
    assert_eq!(positions(&show(&["tail", "--since", "1h"])), [5, 6, 7]);
    assert!(show(&["tail", "--type", "ItemAdded", "--since", "1h"]).is_empty());

    over(&log.database, &["log", "show", "--position", "8"]).failed(3, "Its head is 7");
    over(&log.database, &["log", "show", "--cart", &Shopping::new().cart_id.to_string()]).failed(3, "Its head is 7");
    over(&log.database, &["log", "show", "--cart", "1"]).failed(2, "--cart");
    over(&log.database, &["log", "show"]).failed(2, "--cart");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn log_flow_shows_each_event_below_its_cause() {
    let (cart, other) = (Shopping::new(), Shopping::new());
    let log = TestLog::create().await;
    let by = |cause: Option<&str>| {
        let (correlation_id, causation_id) = (Some("order-7".to_owned()), cause.map(str::to_owned));
        Metadata { correlation_id, causation_id, ..Metadata::default() }
    };
    let events = [
        (cart.price_changed(0), by(Some("price-changes/0/4"))),
        (other.created(), Metadata::default()),
        (cart.archived(0), by(Some("1"))),
        (cart.archived(1), by(Some("1"))),
        (cart.submitted(1), by(None)),
        (DomainEvent::CartPublished { cart_id: cart.cart_id }, by(Some("5"))),
    ];
    let source = SourcePartition { consumer: "test", topic: "flow", partition: 0 };
    log.store.append_from(source, None, 1, &events).await.unwrap();
    let shown = |position: &str| {
        let steps = over(&log.database, &["log", "flow", position, "--json"]).documents(0);
        let step =
            |step: &Value| (step["position"].as_i64().unwrap(), step["depth"].as_i64().unwrap(), step["cause"].as_str().map(str::to_owned));
        steps.iter().map(step).collect::<Vec<_>>()
    };
    let cause = |cause: &str| Some(cause.to_owned());
    let whole = [(1, 0, cause("price-changes/0/4")), (3, 1, cause("1")), (4, 1, cause("1")), (5, 0, None), (6, 1, cause("5"))];
    assert_eq!(shown("3"), whole);
    assert_eq!(shown("6"), whole);
    assert_eq!(shown("2"), [(2, 0, None)], "without a correlation id");
    let tree = over(&log.database, &["log", "flow", "6"]);
    assert!(tree.stdout.lines().nth(1).unwrap().starts_with("           3  "), "{tree:?}");
    assert!(tree.stderr.contains("order-7"), "{tree:?}");
    over(&log.database, &["log", "flow", "7"]).failed(3, "Its head is 6");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn log_shows_an_undecodable_event_with_its_error() {
    let cart = Shopping::new();
    let log = TestLog::create().await;
    log.append(cart.with_items(1)).await;
    sqlx::query("UPDATE event SET payload = convert_to('{\"CartCreated\":{}}', 'UTF8') WHERE event_id = 1")
        .execute(log.store.pool())
        .await
        .unwrap();
    let events = over(&log.database, &["log", "tail", "--json"]).documents(0);
    assert_eq!(events[0]["data"], json!({}), "as it is stored");
    assert!(events[0]["error"].as_str().unwrap().contains("cart_id"), "{}", events[0]);
    assert_eq!(events[1]["data"]["description"], "Item 0");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn log_tail_follows_new_events() {
    let cart = Shopping::new();
    let log = TestLog::create().await;
    log.append([cart.created()]).await;
    let mut child = command(&["log", "tail", "--follow", "--type", "CartCreated", "--type", "ItemAdded", "--json"])
        .env("DATABASE_URL", log.database.url_as("postgres"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (said, heard) = mpsc::channel();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reading = std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| said.send(line)));
    let next = async || {
        let line = eventually("the next event is shown", || async { heard.try_recv().ok() }).await;
        serde_json::from_str::<Value>(&line).unwrap()
    };
    assert_eq!(next().await["position"], 1);
    log.append([cart.added(0), cart.removed(0), cart.added(1)]).await;
    assert_eq!(next().await["data"]["description"], "Item 0");
    assert_eq!(next().await["position"], 4);
    log.append([cart.cleared()]).await;
    log.append([cart.cleared(), cart.added(2)]).await;
    assert_eq!(next().await["position"], 7);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(reading.join());
}

#[test]
fn errors_say_what_to_do() {
    cartctl(&["status"]).failed(2, "Set --database-url or DATABASE_URL");
    for url in ["mysql://a:secret@b", "postgres://a:1/secret@b:9/c", "postgres://a:1#secret@b:9/c"] {
        let wrong = cartctl(&["status", "--database-url", url]);
        wrong.failed(2, "postgres://owner:password@host:5432/cartlog");
        assert!(!wrong.stderr.contains("secret"), "{url}");
    }
    let away = cartctl(&["status", "--database-url", "postgres://owner:secret@127.0.0.1:9/cartlog"]);
    away.failed(1, "Cannot connect to the database");
    assert!(!away.stderr.contains("secret"));
    cartctl(&["dead-letters", "list", "--bootstrap-servers", NOWHERE]).failed(1, "Check --bootstrap-servers");
    cartctl(&["projections", "explode"]).failed(2, "explode");
}

/// Runs a command with redirections, as a shell writes both, and returns its exit code.
fn redirected(url: Option<&str>, arguments: &str) -> i32 {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" {arguments}"), env!("CARGO_BIN_EXE_cartctl")]).stdout(Stdio::null());
    shell.env_remove("DATABASE_URL").env("KAFKA_BOOTSTRAP_SERVERS", NOWHERE);
    if let Some(url) = url {
        shell.env("DATABASE_URL", url);
    }
    shell.status().unwrap().code().unwrap()
}

#[test]
fn closed_or_full_output_is_no_panic() {
    for (arguments, code) in [
        ("status 2>&-", 2),
        ("status 2>/dev/full", 2),
        ("status >&- 2>&-", 2),
        ("nonsense 2>/dev/full", 2),
        ("nonsense >&- 2>&-", 2),
        ("completions bash >&-", 0),
        ("completions bash >/dev/full", 1),
        ("completions bash >/dev/full 2>/dev/full", 1),
        ("--help >&-", 0),
        ("--help >/dev/full", 0),
        ("--version >/dev/full 2>&-", 0),
    ] {
        assert_eq!(redirected(None, arguments), code, "{arguments}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn answer_that_cannot_be_written_is_an_error() {
    let log = shop(&Shopping::new()).await;
    let url = log.database.url_as("cartlog_operator");
    for command in ["status", "projections list", "log tail", "todos list --status open", "translations show"] {
        for json in ["", " --json"] {
            assert_eq!(redirected(Some(&url), &format!("{command}{json} >/dev/full 2>/dev/full")), 1, "{command}{json}");
            assert_eq!(redirected(Some(&url), &format!("{command}{json} >&- 2>&-")), 0, "{command}{json}");
        }
    }
    // The reader has seen enough.
    assert_eq!(redirected(Some(&url), "log tail | head -c 1"), 0);
}

/// Runs commands with text and with JSON as output. Returns how many lines each writes.
fn listed(log: &TestLog<DomainEvent>, commands: &[&str]) -> Vec<usize> {
    let run = |command: &str, json: &[&'static str]| {
        let arguments: Vec<_> = command.split(' ').chain(json.iter().copied()).collect();
        over(&log.database, &arguments)
    };
    let lines = |command: &&str| {
        let json = run(command, &["--json"]);
        json.documents(0);
        [run(command, &[]).lines_without_hidden_characters(), json.lines_without_hidden_characters()]
    };
    commands.iter().flat_map(lines).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn hidden_characters_are_visible_in_every_list() {
    let cart = Shopping::new();
    let log = shop(&cart).await;
    fail_todos(log.store.pool()).await;
    execute(
        &log,
        &format!(
            "INSERT INTO parked_key (name, build, key, position, error) VALUES ('inventories', 'projection_a', '{0}', 2, 'plain');
             INSERT INTO skipped_event (name, build, started_at, key, position, error, attempts, reason, skipped_by)
             SELECT name, build, started_at, '{0}', 2, 'plain', 1, 'plain', 'plain' FROM projection WHERE name = 'inventories'",
            cart.cart_id
        ),
    )
    .await;
    let (of_cart, at) = (format!("log show --cart {}", cart.cart_id), "log show --position 2");
    let commands = [
        "status",
        "projections list",
        "parked list",
        "parked list --skipped",
        "todos list --status all",
        "publications list",
        "translations show",
        "log tail",
        &of_cart,
        at,
    ];
    let before = listed(&log, &commands);
    // Only the owner can write all of this.
    let mut connection = log.store.pool().begin().await.unwrap();
    for update in [
        "UPDATE todo SET key = $1, last_error = $1",
        "UPDATE parked_key SET error = $1",
        "UPDATE skipped_event SET error = $1, reason = $1, skipped_by = $1",
        "UPDATE source_offset SET consumer = $1, topic = $1",
        "UPDATE event SET metadata = metadata || jsonb_build_object('actor', $1::text)",
        // An event that this release does not know, and a description.
        "UPDATE event SET event_type = $1, payload = convert_to(json_build_object($1::text, json_build_object($1::text, $1::text))::text, 'UTF8')
         WHERE event_id > 2",
        "UPDATE event SET payload = convert_to(replace(convert_from(payload, 'UTF8'), 'Item 0', trim('\"' FROM to_json($1::text)::text)), 'UTF8')
         WHERE event_id = 2",
    ] {
        sqlx::query(update).bind(HIDDEN).execute(&mut *connection).await.unwrap();
    }
    connection.commit().await.unwrap();
    assert_eq!(listed(&log, &commands), before);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn stored_text_forges_no_line_and_an_empty_variable_is_unset() {
    let log = shop(&Shopping::new()).await;
    let forged = "a\nforged\u{9b}2J\u{202e}\u{200b}";
    sqlx::query("UPDATE todo SET key = $1").bind(forged).execute(log.store.pool()).await.unwrap();
    let list = |json: &[&'static str]| {
        let mut command = command(&["todos", "list", "--status", "open"]);
        command.args(json).env("DATABASE_URL", log.database.url_as("cartlog_operator")).env("CARTLOG_DATABASE_PASSWORD_FILE", "");
        Outcome::of(command.output().unwrap())
    };
    let text = list(&[]);
    assert_eq!((text.code, text.stdout.lines().count()), (Some(0), 2), "{text:?}");
    let json = list(&["--json"]);
    assert_eq!(json.document()["key"], forged);
    for hidden in ['\u{9b}', '\u{202e}', '\u{200b}'] {
        assert!(!text.stdout.contains(hidden) && !json.stdout.contains(hidden));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn missing_migrations_and_privileges_are_reported() {
    let empty = test_support::Database::create_empty().await;
    cartctl(&["status", "--database-url", &empty.url_as("postgres")]).failed(1, "cargo dev migrate");
    let log = shop(&Shopping::new()).await;
    let url = log.database.url_as("cartlog_commands");
    cartctl(&["publications", "list", "--database-url", &url]).failed(1, "Connect as cartlog_operator");
}

#[test]
fn help_lists_exit_codes_and_hides_the_database() {
    let help = command(&["--help"]).env("DATABASE_URL", "postgres://owner:secret@host/cartlog").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("Exit codes:") && text.contains("--json") && !text.contains("secret"), "{text}");
    assert!(text.contains("`dead-letters dismiss`") && text.contains("`dismiss` ask"), "{text}");
    for shell in ["bash", "zsh", "fish"] {
        let script = cartctl(&["completions", shell]);
        assert!(script.code == Some(0) && script.stdout.contains("dead-letters"), "{shell}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn seek_waits_for_a_batch_in_flight() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    log.append([cart.created()]).await;
    let source = SourcePartition { consumer: "test", topic: "history", partition: 0 };
    let mut appending = log.store.pool().begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *appending).await.unwrap();
    let pool = log.store.pool().clone();
    let seeking =
        tokio::spawn(async move { operations::seek(&pool, SourcePartition { consumer: "test", topic: "history", partition: 0 }, 0).await });
    eventually("the seek waits", || async {
        let waiting = "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        sqlx::query_scalar::<_, bool>(waiting).fetch_optional(log.store.pool()).await.unwrap()
    })
    .await;
    sqlx::query("UPDATE source_offset SET next_offset = 9").execute(&mut *appending).await.unwrap();
    appending.commit().await.unwrap();
    assert_eq!(seeking.await.unwrap().unwrap(), Some(9));
    assert_eq!(log.store.stored_offsets(source.consumer, source.topic).await.unwrap()[&0], 0.into());
}
