//! The four real services on a real PostgreSQL and a real Kafka: what they do together, and that they lose nothing when they are killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use embedded::distribution;
use embedded::kafka::Kafka;
use embedded::layout::Layout;
use embedded::postgres::Postgres;
use embedded::report::Report;
use embedded::{database, kafka};
use serde_json::{Value, json};
use shop::services::{self, COMMANDS, PROJECTIONS, PUBLISHER, TRANSLATOR};
use system_tests::{ALL, LastCalls, READY, Shop, item};
use test_support::{Database, eventually};
use uuid::Uuid;

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn cart_goes_from_first_item_to_message_in_one_trace() {
    let mut shop = Shop::new("day").await;
    shop.start(&ALL).await;
    let (cart, product, other) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());

    shop.produce("inventories", &[(product, json!({"product_uuid": product, "inventory": 3}))]).await;
    eventually("the inventory is shown", || async {
        (shop.get(&format!("/inventories/{product}")).await.1 == json!({"product_id": product, "inventory": 3})).then_some(())
    })
    .await;
    assert_eq!(shop.add(cart, product, "9.99").await.0, 200);
    assert_eq!(shop.add(cart, other, "0.01").await.0, 200);
    eventually("both forms show both items", || async {
        let live = shop.get(&format!("/{cart}/cartitems")).await;
        assert_eq!(live.1["total_price"], "10.00");
        (shop.get(&format!("/{cart}/cartitemsfromdb")).await == live).then_some(())
    })
    .await;

    shop.produce("price-changes", &[(other, json!({"product_uuid": other, "old_price": "0.01", "new_price": 0.02}))]).await;
    shop.until_count("ItemArchived", 1).await;
    let left = shop.get(&format!("/{cart}/cartitems")).await.1;
    assert_eq!((left["total_price"].as_str(), left["data"].as_array().map(Vec::len)), (Some("9.99"), Some(1)));

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let client = reqwest::Client::new();
    let answer = client
        .post(format!("{}/submitcart/{cart}", shop.url(COMMANDS)))
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("x-correlation-id", "order-7")
        .json(&json!({"cart_id": cart}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["x-correlation-id"], "order-7");
    let (id, position): (Uuid, i64) = answer.json().await.unwrap();
    assert_eq!(id, cart);
    let [message] = shop.published(1).await.try_into().unwrap();
    assert_eq!(message.key, cart.to_string());
    let line = json!({"product_id": product, "price": "9.99"});
    assert_eq!(message.value, json!({"cart_id": cart, "ordered_product": [line], "total_price": "9.99"}));
    let append: String = sqlx::query_scalar("SELECT metadata->>'append_id' FROM event WHERE event_id = $1")
        .bind(position)
        .fetch_one(&shop.pool)
        .await
        .unwrap();
    assert_eq!(message.headers["ce_id"], append);
    assert_eq!(message.headers["ce_specversion"], "1.0");
    assert!(message.headers["traceparent"].contains(trace), "{:?}", message.headers);
    assert_eq!((&*message.headers["x-correlation-id"], &message.headers["x-causation-id"]), ("order-7", &position.to_string()));
    shop.until_count("CartPublished", 1).await;
    let caused = async |event_type: &str| -> (i64, Option<String>, Option<String>) {
        let sql = "SELECT event_id, metadata->>'correlation_id', metadata->>'causation_id' FROM event WHERE event_type = $1";
        sqlx::query_as(sql).bind(event_type).fetch_one(&shop.pool).await.unwrap()
    };
    let (_, correlation, cause) = caused("CartPublished").await;
    assert_eq!((correlation.as_deref(), cause), (Some("order-7"), Some(position.to_string())));
    // The message of the price had no correlation id.
    let (changed_at, made, _) = caused("PriceChanged").await;
    assert!(made.as_deref().is_some_and(|id| Uuid::parse_str(id).is_ok()), "{made:?}");
    let (_, correlation, cause) = caused("ItemArchived").await;
    assert_eq!((correlation, cause), (made, Some(changed_at.to_string())));
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn unreadable_messages_become_dead_letters() {
    let mut shop = Shop::new("unreadable").await;
    shop.start(&[TRANSLATOR]).await;
    let product = Uuid::now_v7();
    let wrong = [
        json!("not an object"),
        json!({"inventory": 1}),
        json!({"product_uuid": Uuid::new_v4(), "inventory": 1}),
        json!({"product_uuid": product, "inventory": -1}),
        json!({"product_uuid": product, "inventory": 1.5}),
    ];
    let mut messages: Vec<_> = wrong.into_iter().map(|value| (product, value)).collect();
    messages.push((product, json!({"product_uuid": product, "inventory": 7})));
    shop.produce("inventories", &messages).await;
    shop.until_count("InventoryChanged", 1).await;
    let offsets: i64 = sqlx::query_scalar("SELECT sum(next_offset)::bigint FROM source_offset").fetch_one(&shop.pool).await.unwrap();
    assert_eq!(offsets, 6);
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn killed_translator_loses_and_doubles_nothing() {
    let mut shop = Shop::new("killed-translator").await;
    let mut settings = shop.settings(TRANSLATOR, "translator.log");
    // The shortest session that the broker allows. After it a dead translator's partitions are free.
    settings.environment.push(("CARTLOG_SESSION_TIMEOUT_SECONDS".into(), "6".into()));
    shop.launch(TRANSLATOR, settings);
    let products: Vec<_> = (0..20).map(|_| Uuid::now_v7()).collect();
    let mut sent = 0_i64;
    for last_calls in [LastCalls::GivenUp, LastCalls::Run, LastCalls::GivenUp] {
        let messages: Vec<_> = (0..1_500)
            .map(|n| (products[n % products.len()], json!({"product_uuid": products[n % products.len()], "inventory": sent + n as i64})))
            .collect();
        // It has read messages that are not in the log, and cannot append.
        let lock = shop.lock().await;
        let before = shop.count("InventoryChanged").await;
        shop.produce("inventories", &messages).await;
        sent += 1_500;
        shop.until_stuck(TRANSLATOR).await;
        shop.kill_stuck(TRANSLATOR, lock, last_calls).await;
        let written = shop.count("InventoryChanged").await - before;
        assert_eq!(written > 0, last_calls == LastCalls::Run, "{written} were written");
        shop.service(TRANSLATOR).restart().await.unwrap();
    }
    shop.until_count("InventoryChanged", sent).await;
    let payloads: Vec<Vec<u8>> = sqlx::query_scalar("SELECT payload FROM event ORDER BY event_id").fetch_all(&shop.pool).await.unwrap();
    let mut newest: HashMap<String, i64> = HashMap::new();
    for payload in payloads {
        let event: Value = serde_json::from_slice(&payload).unwrap();
        let (product, inventory) =
            (event["InventoryChanged"]["product_id"].to_string(), event["InventoryChanged"]["inventory"].as_i64().unwrap());
        assert!(newest.insert(product, inventory).is_none_or(|before| before < inventory), "a product's messages keep their order");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn killed_projection_loses_and_doubles_nothing() {
    let mut shop = Shop::new("killed-projection").await;
    shop.start(&[COMMANDS]).await;
    let mut settings = shop.settings(PROJECTIONS, "projections.log");
    settings.environment.push(("CARTLOG_PROJECTION_BATCH".into(), "7".into()));
    shop.launch(PROJECTIONS, settings);
    shop.service(PROJECTIONS).until_ready(READY).await.unwrap();
    let product = Uuid::now_v7();
    let mut carts = vec![];
    for last_calls in [LastCalls::GivenUp, LastCalls::Run, LastCalls::GivenUp] {
        // Its transaction has begun, and cannot continue.
        let mut lock = shop.pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE projection_a.cart_items_item IN SHARE MODE").execute(&mut *lock).await.unwrap();
        let projected = async |shop: &Shop| -> i64 {
            sqlx::query_scalar("SELECT count(*) FROM projection_a.cart_items_cart").fetch_one(&shop.pool).await.unwrap()
        };
        let before = projected(&shop).await;
        let adding = (0..60).map(|_| {
            let cart = Uuid::now_v7();
            carts.push(cart);
            let shop = &shop;
            async move {
                for price in ["1.00", "2.00"] {
                    assert_eq!(shop.add(cart, product, price).await.0, 200);
                }
            }
        });
        futures::future::join_all(adding).await;
        shop.until_stuck(PROJECTIONS).await;
        shop.kill_stuck(PROJECTIONS, lock, last_calls).await;
        assert_eq!(projected(&shop).await, before, "of a batch that was begun, nothing is there");
        shop.service(PROJECTIONS).restart().await.unwrap();
    }
    shop.service(PROJECTIONS).until_ready(READY).await.unwrap();
    for cart in carts {
        eventually("the cart is projected as it is", || async {
            let live = shop.get(&format!("/{cart}/cartitems")).await;
            assert_eq!(live.1["total_price"], "3.00");
            (shop.get(&format!("/{cart}/cartitemsfromdb")).await == live).then_some(())
        })
        .await;
    }
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn killed_publisher_repeats_messages_only_with_the_same_ce_id() {
    let mut shop = Shop::new("killed-publisher").await;
    shop.start(&[COMMANDS]).await;
    let mut submitted = 0;
    for last_calls in [LastCalls::GivenUp, LastCalls::Run] {
        let submitting = (0..40).map(|_| async {
            let cart = Uuid::now_v7();
            assert_eq!(shop.add(cart, Uuid::now_v7(), "1.00").await.0, 200);
            assert_eq!(shop.submit(cart).await.0, 200);
        });
        futures::future::join_all(submitting).await;
        submitted += 40;
        // The broker has acknowledged messages, and the publisher cannot append their CartPublished.
        let lock = shop.lock().await;
        let before = shop.count("CartPublished").await;
        shop.start(&[PUBLISHER]).await;
        shop.until_stuck(PUBLISHER).await;
        shop.kill_stuck(PUBLISHER, lock, last_calls).await;
        let written = shop.count("CartPublished").await - before;
        assert_eq!(written > 0, last_calls == LastCalls::Run, "{written} were written");
    }
    // Expire the dead worker's leases.
    sqlx::query("UPDATE todo SET lease = NULL, lease_for = NULL WHERE lease IS NOT NULL").execute(&shop.pool).await.unwrap();
    shop.start(&[PUBLISHER]).await;
    shop.until_count("CartPublished", submitted).await;
    let different = usize::try_from(submitted).unwrap();
    let messages = shop.published(different).await;
    assert!(messages.len() > different, "what was sent before the first kill is sent again");
    let by_id: HashMap<_, HashSet<_>> = messages.iter().fold(HashMap::new(), |mut by_id, message| {
        by_id.entry(message.headers["ce_id"].clone()).or_insert_with(HashSet::new).insert((message.key.clone(), message.value.to_string()));
        by_id
    });
    assert_eq!(by_id.len(), different);
    assert!(by_id.values().all(|messages| messages.len() == 1), "what has the same ce_id is the same message");
    assert_eq!(messages.iter().map(|message| &message.key).collect::<HashSet<_>>().len(), different);
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn absent_broker_loses_nothing_when_an_attempt_times_out() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::kafka(&layout, &Report::quiet()).await.unwrap();
    let mut broker = Kafka::start_on_free_ports(&distribution, &layout.scratch("broker-frozen").unwrap()).await.unwrap();
    let database = Database::create().await;
    let urls = services::ALL.map(|kind| (kind.name, database.url_as(kind.role))).into();
    let mut shop = Shop::on("broker-frozen", database.pool().await, urls, broker.bootstrap_servers()).await;
    shop.start(&[COMMANDS, PUBLISHER]).await;
    let submit = async |shop: &Shop| {
        let cart = Uuid::now_v7();
        assert_eq!(shop.add(cart, Uuid::now_v7(), "1.00").await.0, 200);
        assert_eq!(shop.submit(cart).await.0, 200);
        cart
    };
    let first = submit(&shop).await;
    shop.until_count("CartPublished", 1).await;

    // A frozen broker does not acknowledge: an attempt ends without knowing whether the topic has its message.
    broker.process().freeze().unwrap();
    let second = submit(&shop).await;
    eventually("an attempt times out", || async {
        let ended: Option<String> = sqlx::query_scalar("SELECT last_error FROM todo WHERE status = 'open' AND last_error IS NOT NULL")
            .fetch_optional(&shop.pool)
            .await
            .unwrap();
        ended
    })
    .await;
    broker.process().thaw().unwrap();
    shop.until_count("CartPublished", 2).await;
    let messages = shop.published(2).await;
    let sent: HashSet<_> = messages.iter().map(|message| (message.headers["ce_id"].clone(), message.key.clone())).collect();
    assert_eq!(sent.len(), 2, "what is there twice has the same ce_id");
    assert_eq!(sent.into_iter().map(|(_, key)| key).collect::<HashSet<_>>(), HashSet::from([first.to_string(), second.to_string()]));
    assert_eq!(shop.count("CartPublicationFailed").await, 0);
    shop.stop().await;
    broker.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn absent_broker_delays_and_loses_nothing() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::kafka(&layout, &Report::quiet()).await.unwrap();
    let mut broker = Kafka::start_on_free_ports(&distribution, &layout.scratch("broker-away").unwrap()).await.unwrap();
    let database = Database::create().await;
    let urls = services::ALL.map(|kind| (kind.name, database.url_as(kind.role))).into();
    let mut shop = Shop::on("broker-away", database.pool().await, urls, broker.bootstrap_servers()).await;
    shop.start(&[COMMANDS, PUBLISHER]).await;
    broker.kill().await.unwrap();

    let cart = Uuid::now_v7();
    assert_eq!(shop.add(cart, Uuid::now_v7(), "1.00").await.0, 200);
    assert_eq!(shop.submit(cart).await.0, 200);
    eventually("the publisher has tried and reports the broker", || async {
        let tried: Option<i32> =
            sqlx::query_scalar("SELECT attempts FROM todo WHERE last_error IS NOT NULL").fetch_optional(&shop.pool).await.unwrap();
        let ready = reqwest::get(format!("{}/ready", shop.url(PUBLISHER))).await.unwrap();
        (tried.is_some() && ready.status() == 503 && ready.text().await.unwrap().contains("kafka")).then_some(())
    })
    .await;
    assert_eq!(shop.count("CartPublished").await, 0);

    broker.restart().await.unwrap();
    kafka::ping(&broker.bootstrap_servers()).await.unwrap();
    assert_eq!(shop.published(1).await[0].key, cart.to_string());
    shop.until_count("CartPublished", 1).await;
    assert_eq!(shop.count("CartPublicationFailed").await, 0);
    shop.stop().await;
    broker.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn racing_commands_keep_carts_at_three_items() {
    let mut shop = Shop::new("races").await;
    shop.start(&[COMMANDS, TRANSLATOR]).await;
    let (hot, product) = (Uuid::now_v7(), Uuid::now_v7());
    let carts: Vec<_> = (0..100).map(|_| Uuid::now_v7()).collect();
    let adds = (0..3_000).map(|n| {
        let cart = if n % 2 == 0 { hot } else { carts[n % carts.len()] };
        let shop = &shop;
        async move { shop.add(cart, product, "1.00").await }
    });
    let answers = futures::future::join_all(adds).await;
    assert!(answers.iter().all(|(status, _)| [200, 409].contains(&status.as_u16())), "{answers:?}");
    let most: i64 =
        sqlx::query_scalar("SELECT max(n) FROM (SELECT count(*) AS n FROM event WHERE event_type = 'ItemAdded' GROUP BY cart_id) c")
            .fetch_one(&shop.pool)
            .await
            .unwrap();
    assert_eq!(most, 3);

    // Submits race with an inventory of 0. No CartSubmitted may come after the 0.
    let (route, none) = (format!("/changeinventory/{product}"), json!({"product_id": product, "inventory": 0}));
    let out = shop.post(TRANSLATOR, &route, &none);
    let submits = futures::future::join_all(carts.iter().filter(|cart| **cart != hot).map(|cart| shop.submit(*cart)));
    let (out, submits) = tokio::join!(out, submits);
    assert_eq!(out.0, 200);
    assert!(submits.iter().all(|(status, _)| [200, 404, 409].contains(&status.as_u16())), "{submits:?}");
    let late: i64 = sqlx::query_scalar("SELECT count(*) FROM event WHERE event_type = 'CartSubmitted' AND event_id > $1")
        .bind(out.1[1].as_i64().unwrap())
        .fetch_one(&shop.pool)
        .await
        .unwrap();
    assert_eq!(late, 0);
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn services_recover_after_the_database_was_away() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &layout.scratch("database-away").unwrap()).await.unwrap();
    database::create(&postgres.url("postgres", "postgres"), "cartlog").await.unwrap();
    let urls = services::ALL.map(|kind| (kind.name, postgres.url(kind.role, "cartlog"))).into();
    let pool = database::connect(&postgres.url("postgres", "cartlog")).await.unwrap();
    let mut shop = Shop::on("database-away", pool, urls, test_support::kafka_bootstrap_servers()).await;

    // Without the migrations the service runs, is not ready, and says how to apply them.
    let settings = shop.settings(COMMANDS, "commands.log");
    let mut commands = services::Service::start(COMMANDS, settings).unwrap();
    eventually("/ready names what is missing", || async {
        let ready = reqwest::get(format!("{}/ready", commands.url())).await.ok()?;
        (ready.status() == 503 && ready.text().await.ok()?.contains("cargo dev migrate")).then_some(())
    })
    .await;
    database::migrate(&postgres.url("postgres", "cartlog")).await.unwrap();
    for kind in services::ALL {
        assert!(database::lets_in(&postgres.url(kind.role, "cartlog")).await);
    }
    commands.until_ready(READY).await.unwrap();
    commands.kill().await.unwrap();

    shop.start(&[COMMANDS, PROJECTIONS]).await;
    let cart = Uuid::now_v7();
    assert_eq!(shop.add(cart, Uuid::now_v7(), "1.00").await.0, 200);
    postgres.kill().await.unwrap();
    let answer = reqwest::Client::new()
        .post(format!("{}/additem/{cart}", shop.url(COMMANDS)))
        .json(&item(cart, Uuid::now_v7(), Uuid::now_v7(), "1.00"))
        .send()
        .await
        .unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true));
    assert!(answer.json::<Value>().await.unwrap()["message"].is_string());
    eventually("/ready has the network's error", || async {
        let ready = reqwest::get(format!("{}/ready", shop.url(COMMANDS))).await.unwrap();
        (ready.status() == 503 && ready.text().await.unwrap().contains("refused")).then_some(())
    })
    .await;
    postgres.restart().await.unwrap();
    eventually("commands are accepted again", || async { (shop.add(cart, Uuid::now_v7(), "1.00").await.0 == 200).then_some(()) }).await;
    eventually("the projection continues", || async {
        (shop.get(&format!("/{cart}/cartitemsfromdb")).await == shop.get(&format!("/{cart}/cartitems")).await).then_some(())
    })
    .await;
    tokio::time::timeout(Duration::from_secs(60), shop.stop()).await.unwrap();
    postgres.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn resent_item_gets_the_first_answer_after_a_kill() {
    let mut shop = Shop::new("sent-again").await;
    shop.start(&[COMMANDS]).await;
    let mut items = vec![];
    for round in 0..3 {
        let client = reqwest::Client::new();
        let sending: Vec<_> = (0..60)
            .map(|_| {
                let cart = Uuid::now_v7();
                let item = item(cart, Uuid::now_v7(), Uuid::now_v7(), "1.00");
                let request = client.post(format!("{}/additem/{cart}", shop.url(COMMANDS))).json(&item);
                tokio::spawn(async move {
                    let answer = async { request.send().await.ok()?.json::<Value>().await.ok() }.await;
                    (cart, item, answer)
                })
            })
            .collect();
        // In the middle of the round: some commands are answered, some answers are lost, and some commands were never read.
        eventually("the log has some of the round", || async { (shop.count("ItemAdded").await > round * 60 + 10).then_some(()) }).await;
        shop.service(COMMANDS).restart().await.unwrap();
        shop.service(COMMANDS).until_ready(READY).await.unwrap();
        for sent in sending {
            items.push(sent.await.unwrap());
        }
    }
    let added: Vec<(Uuid, i64)> =
        sqlx::query_as("SELECT item_id, event_id FROM event WHERE event_type = 'ItemAdded'").fetch_all(&shop.pool).await.unwrap();
    let before: HashMap<_, _> = added.iter().copied().collect();
    assert_eq!(added.len(), before.len(), "none is there twice");
    // A submitted cart takes no new item. An item that is sent again still gets its first answer.
    assert_eq!(shop.submit(items[0].0).await.0, 200);
    let mut lost = 0;
    for (cart, item, answer) in &items {
        let again = shop.post(COMMANDS, &format!("/additem/{cart}"), item).await;
        assert_eq!(again.0, 200, "{again:?}");
        lost += usize::from(answer.is_none());
        if let Some(answer) = answer {
            assert_eq!(again.1, *answer);
        }
        let id: Uuid = serde_json::from_value(item["item_id"].clone()).unwrap();
        if let Some(position) = before.get(&id) {
            assert_eq!(again.1, json!([cart, position]));
        }
    }
    assert!(lost > 0 && lost < items.len(), "{lost} answers of {} were lost", items.len());
    shop.until_count("ItemAdded", items.len() as i64).await;
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn frozen_cart_commands_does_not_block_the_other() {
    let mut shop = Shop::new("frozen-commands").await;
    shop.start(&[COMMANDS]).await;
    let mut frozen = services::Service::start(COMMANDS, shop.settings(COMMANDS, "frozen.log")).unwrap();
    frozen.until_ready(READY).await.unwrap();
    let (client, product) = (reqwest::Client::new(), Uuid::now_v7());
    let load = |url: String| {
        let answers = Arc::new(AtomicUsize::new(0));
        // Enough commands to fill several calls.
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let (client, url, answers) = (client.clone(), url.clone(), answers.clone());
                tokio::spawn(async move {
                    loop {
                        let cart = Uuid::now_v7();
                        let item = item(cart, Uuid::now_v7(), product, "1.00");
                        let answer = client.post(format!("{url}/additem/{cart}")).json(&item).send().await.unwrap();
                        assert_eq!(answer.status(), 200);
                        answers.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        (answers, tasks)
    };
    let work_on = |answers: Arc<AtomicUsize>| async move {
        let goal = answers.load(Ordering::SeqCst) + 30;
        eventually("the other process answers", || async { (answers.load(Ordering::SeqCst) >= goal).then_some(()) }).await;
    };
    let (of_frozen, mut tasks) = load(frozen.url());
    let (of_other, more) = load(shop.url(COMMANDS));
    tasks.extend(more);
    for _ in 0..6 {
        work_on(of_frozen.clone()).await;
        frozen.process().freeze().unwrap();
        // The documented limit is 5 seconds.
        let worked = tokio::time::timeout(Duration::from_secs(5), work_on(of_other.clone())).await;
        assert!(worked.is_ok(), "the other stands still");
        frozen.process().thaw().unwrap();
    }
    work_on(of_frozen).await;
    for task in tasks {
        assert!(!task.is_finished(), "every command was answered well");
        task.abort();
    }
    frozen.kill().await.unwrap();
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn frozen_database_is_given_up_within_seconds() {
    let layout = Layout::discover().unwrap();
    let distribution = distribution::postgres(&layout, &Report::quiet()).await.unwrap();
    let mut postgres = Postgres::start_on_free_port(&layout, &distribution, &layout.scratch("database-frozen").unwrap()).await.unwrap();
    database::create(&postgres.url("postgres", "postgres"), "cartlog").await.unwrap();
    database::migrate(&postgres.url("postgres", "cartlog")).await.unwrap();
    let urls = services::ALL.map(|kind| (kind.name, postgres.url(kind.role, "cartlog"))).into();
    let pool = database::connect(&postgres.url("postgres", "cartlog")).await.unwrap();
    let mut shop = Shop::on("database-frozen", pool, urls, test_support::kafka_bootstrap_servers()).await;
    shop.start(&[COMMANDS, PROJECTIONS]).await;
    let cart = Uuid::now_v7();
    assert_eq!(shop.add(cart, Uuid::now_v7(), "1.00").await.0, 200);
    let projected = format!("/{cart}/cartitemsfromdb");
    eventually("it is projected", || async { (shop.get(&projected).await.0 == 200).then_some(()) }).await;

    // Freeze the server, which then accepts no connection, and every session of the services.
    postgres.process().freeze().unwrap();
    let sessions: Vec<i32> =
        sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE usename LIKE 'cartlog%'").fetch_all(&shop.pool).await.unwrap();
    let signal_all = |signal| sessions.iter().for_each(|pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal).unwrap());
    signal_all(nix::sys::signal::Signal::SIGSTOP);
    // An answer must come in time, so each request has a limit.
    let bound = Duration::from_secs(20);
    let live = format!("/{cart}/cartitems");
    let (added, of_another_cart, read, read_from_table) = tokio::time::timeout(bound, async {
        tokio::join!(
            shop.add(cart, Uuid::now_v7(), "1.00"),
            shop.add(Uuid::now_v7(), Uuid::now_v7(), "1.00"),
            shop.get(&live),
            shop.get(&projected),
        )
    })
    .await
    .unwrap();
    assert_eq!([added.0, of_another_cart.0, read.0, read_from_table.0], [503; 4]);
    for kind in [COMMANDS, PROJECTIONS] {
        let ready = reqwest::get(format!("{}/ready", shop.url(kind))).await.unwrap();
        assert_eq!(ready.status(), 503);
    }

    postgres.process().thaw().unwrap();
    signal_all(nix::sys::signal::Signal::SIGCONT);
    let cart = Uuid::now_v7();
    eventually("commands are accepted again", || async { (shop.add(cart, Uuid::now_v7(), "1.00").await.0 == 200).then_some(()) }).await;
    eventually("the projection continues", || async {
        (shop.get(&format!("/{cart}/cartitemsfromdb")).await == shop.get(&format!("/{cart}/cartitems")).await).then_some(())
    })
    .await;
    shop.stop().await;
    postgres.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn min_position_reads_own_writes_on_every_replica() {
    let mut shop = Shop::new("read-your-writes").await;
    shop.start(&[COMMANDS, TRANSLATOR, PROJECTIONS]).await;
    let mut settings = shop.settings(PROJECTIONS, "other-projections.log");
    settings.environment.push(("CARTLOG_LOG_FORMAT".into(), "json".into()));
    let log = settings.log.clone();
    let mut other = services::Service::start(PROJECTIONS, settings).unwrap();
    other.until_ready(READY).await.unwrap();
    let client = reqwest::Client::new();
    let ask = async |url: &str, path: String| -> (u16, Value) {
        let answer = client.get(format!("{url}{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    let (one, other_one) = (shop.url(PROJECTIONS), other.url());
    eventually("each replica has its share of each projection", || async {
        let owners = "SELECT min(n) FROM (SELECT count(DISTINCT owner) AS n FROM checkpoint GROUP BY name) AS of_each";
        (sqlx::query_scalar::<_, i64>(owners).fetch_one(&shop.pool).await.unwrap() == 2).then_some(())
    })
    .await;

    let product = Uuid::now_v7();
    // Adds a cart with an item, and returns the item's position.
    let add = async || -> (Uuid, i64) {
        let (status, answer) = shop.add(Uuid::now_v7(), product, "9.99").await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_value(answer).unwrap()
    };
    for n in 1..=12 {
        let (cart, added) = add().await;
        let stock = json!({"product_id": product, "inventory": n});
        let (_, counted) = shop.post(TRANSLATOR, &format!("/changeinventory/{product}"), &stock).await;
        let counted = counted[1].as_i64().unwrap();
        for url in [&one, &other_one] {
            for form in ["cartitems", "cartitemsfromdb"] {
                let (status, answer) = ask(url, format!("/{cart}/{form}?min_position={added}")).await;
                assert_eq!((status, answer["total_price"].as_str()), (200, Some("9.99")), "{form}: {answer}");
            }
            // The read model's key is the cart, and the query's is the product.
            let (status, answer) = ask(url, format!("/cartswithproducts/{product}?min_position={added}")).await;
            assert_eq!((status, answer.as_array().map(Vec::len)), (200, Some(n)), "{answer}");
            assert_eq!(ask(url, format!("/inventories/{product}?min_position={counted}")).await, (200, stock.clone()));
            let (status, answer) = ask(url, format!("/{cart}/cartitems?at={}", added - 1)).await;
            assert_eq!((status, answer["data"].as_array().map(Vec::len)), (200, Some(0)), "created, and no item yet: {answer}");
        }
    }

    // Block Cart Items for a while.
    let mut standstill = shop.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM checkpoint WHERE name = 'cart_items' FOR UPDATE").execute(&mut *standstill).await.unwrap();
    let (cart, added) = add().await;
    for url in [&one, &other_one] {
        let (status, answer) = ask(url, format!("/{cart}/cartitemsfromdb?min_position={added}&timeout=0")).await;
        assert_eq!((status, answer["code"].as_str()), (503, Some("behind")), "{answer}");
        let so_far = answer["message"].as_str().unwrap();
        let so_far = so_far.strip_prefix("cart_items reached position ").unwrap_or_else(|| panic!("{so_far}"));
        let so_far = so_far.strip_suffix(&format!(" but not {added} within 0 s; try again")).unwrap();
        assert!((1..added).contains(&so_far.parse().unwrap()), "{so_far}");
        assert_eq!(ask(url, format!("/{cart}/cartitems?min_position={added}&timeout=0")).await.0, 200, "the log is no projection");
    }
    let waiting = [&one, &other_one].map(|url| ask(url, format!("/{cart}/cartitemsfromdb?min_position={added}&timeout=30")));
    let (answers, ()) = futures::join!(futures::future::join_all(waiting), async { standstill.rollback().await.unwrap() });
    for (status, answer) in answers {
        assert_eq!((status, answer["total_price"].as_str()), (200, Some("9.99")), "{answer}");
    }
    let metrics = client.get(format!("{other_one}/metrics")).send().await.unwrap().text().await.unwrap();
    let counted = |line: &str| {
        line.starts_with("query_wait_duration_seconds_count{")
            && [r#"query="cart_items""#, r#"outcome="timed_out""#].iter().all(|label| line.contains(label))
            && line.ends_with(" 1")
    };
    assert!(metrics.lines().any(counted), "{metrics}");
    let said: Vec<Value> = std::fs::read_to_string(log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(said.iter().any(|line| line["level"] == "INFO"), "the log is read");
    let faults: Vec<_> = said.iter().filter(|line| matches!(line["level"].as_str(), Some("WARN" | "ERROR"))).collect();
    assert!(faults.is_empty(), "it is an answer, and no fault: {faults:?}");

    // A query that waits for a replica also waits for the replica that takes over.
    other.process().freeze().unwrap();
    let (cart, added) = add().await;
    let (status, answer) = ask(&one, format!("/cartswithproducts/{product}?min_position={added}&timeout=30")).await;
    assert_eq!((status, answer.as_array().map(Vec::len)), (200, Some(14)), "{answer}");
    let (status, answer) = ask(&one, format!("/{cart}/cartitemsfromdb?min_position={added}&timeout=30")).await;
    assert_eq!((status, answer["total_price"].as_str()), (200, Some("9.99")), "{answer}");
    other.process().thaw().unwrap();
    other.kill().await.unwrap();
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn unreadable_event_parks_its_cart_until_retried() {
    let mut shop = Shop::new("parked").await;
    shop.start(&[COMMANDS, TRANSLATOR]).await;
    let (parked, well, product) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    for cart in [parked, well] {
        assert_eq!(shop.add(cart, product, "9.99").await.0, 200);
    }
    // A price that the current events cannot have.
    let spoil = "WITH before AS (SELECT event_id, payload FROM event WHERE cart_id = $1 AND event_type = 'ItemAdded')
        UPDATE event e SET payload = convert_to(replace(convert_from(e.payload, 'UTF8'), '9.99', '-9.99'), 'UTF8')
        FROM before WHERE e.event_id = before.event_id RETURNING before.event_id, before.payload";
    let (event, payload): (i64, Vec<u8>) = sqlx::query_as(spoil).bind(parked).fetch_one(&shop.pool).await.unwrap();
    shop.start(&[PROJECTIONS]).await;
    let change = json!({"product_id": product, "old_price": "9.99", "new_price": "8.00"});
    assert_eq!(shop.post(TRANSLATOR, &format!("/changeprice/{product}"), &change).await.0, 200);
    shop.until_count("ItemArchived", 1).await;
    let (cart, elsewhere) = (Uuid::now_v7(), Uuid::now_v7());
    let added: (Uuid, i64) = serde_json::from_value(shop.add(cart, elsewhere, "1.00").await.1).unwrap();
    let (status, answer) = shop.get(&format!("/{cart}/cartitemsfromdb?min_position={}&timeout=30", added.1)).await;
    assert_eq!((status.as_u16(), answer["total_price"].as_str()), (200, Some("1.00")), "{answer}");

    for path in [format!("/{parked}/cartitemsfromdb"), format!("/cartswithproducts/{elsewhere}")] {
        let (status, answer) = eventually("it is parked", || async {
            let answer = shop.get(&path).await;
            (answer.0 != 404).then_some(answer)
        })
        .await;
        assert_eq!((status.as_u16(), answer["code"].as_str()), (503, Some("parked")), "{path}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(&parked.to_string()), "{answer}");
    }
    assert_eq!(shop.get("/ready").await.0, 200, "the rest continues");
    // Other read models may apply these events too, with other keys.
    const BY_CART: [&str; 3] = ["archive_item", "cart_items", "carts_with_products"];
    let pool = event_store::Pool::open((*shop.pool.connect_options()).clone(), &event_store::StoreSettings::default());
    let mut listed = operations::parked(&pool, None).await.unwrap();
    listed.retain(|parked| BY_CART.contains(&parked.projection.as_str()));
    let mut names: Vec<_> = listed.iter().map(|parked| parked.projection.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, BY_CART);
    assert!(listed.iter().all(|entry| entry.key == Some(parked) && entry.position.0 == event), "{listed:?}");
    let counted =
        |line: &str| line.starts_with("projection_parked_keys{") && line.contains(r#"projection="cart_items""#) && line.ends_with(" 1");
    eventually("the metric counts it", || async {
        let metrics = reqwest::get(format!("{}/metrics", shop.url(PROJECTIONS))).await.unwrap().text().await.unwrap();
        metrics.lines().any(counted).then_some(())
    })
    .await;

    sqlx::query("UPDATE event SET payload = $2 WHERE event_id = $1").bind(event).bind(payload).execute(&shop.pool).await.unwrap();
    operations::retry_parked(&pool, None, None).await.unwrap();
    // The item, and the price change in its queue.
    shop.until_count("ItemArchived", 2).await;
    let head: i64 = sqlx::query_scalar("SELECT max(event_id) FROM event").fetch_one(&shop.pool).await.unwrap();
    for cart in [parked, well] {
        let (status, answer) = shop.get(&format!("/{cart}/cartitemsfromdb?min_position={head}&timeout=30")).await;
        assert_eq!((status.as_u16(), answer["total_price"].as_str()), (200, Some("0.00")), "{answer}");
    }
    assert_eq!(
        shop.get(&format!("/cartswithproducts/{product}?min_position={head}&timeout=30")).await,
        (reqwest::StatusCode::OK, json!([]))
    );
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn waiting_query_is_answered_at_shutdown() {
    let mut shop = Shop::new("stop-waiting").await;
    shop.start(&[COMMANDS, PROJECTIONS]).await;
    let cart = Uuid::now_v7();
    let (status, answer) = shop.add(cart, Uuid::now_v7(), "1.00").await;
    assert_eq!(status, 200, "{answer}");
    // Block Cart Items, so that the query waits.
    let mut standstill = shop.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM checkpoint WHERE name = 'cart_items' FOR UPDATE").execute(&mut *standstill).await.unwrap();
    let (status, answer) = shop.add(cart, Uuid::now_v7(), "1.00").await;
    assert_eq!(status, 200, "{answer}");
    let added = answer[1].as_i64().unwrap();
    // A lock stops the query before it waits, so the test knows that the query has begun.
    let mut lock = shop.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE parked_key IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let path = format!("/{cart}/cartitemsfromdb?min_position={added}&timeout=30");
    let asked = tokio::spawn(reqwest::get(format!("{}{path}", shop.url(PROJECTIONS))));
    eventually("the query has begun", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event = 'relation' AND query LIKE 'SELECT k.key FROM parked_key k JOIN%'";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&shop.pool).await.unwrap() > 0).then_some(())
    })
    .await;
    lock.rollback().await.unwrap();
    let answered = async {
        let answer = asked.await.unwrap().unwrap();
        standstill.rollback().await.unwrap();
        answer
    };
    let (stopped, answer) = tokio::join!(shop.service(PROJECTIONS).stop(READY), answered);
    assert!(stopped.unwrap().success());
    assert_eq!(answer.status(), 503);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["code"], "behind", "{body}");
    let message = body["message"].as_str().unwrap();
    assert!(message.ends_with(&format!(" but not {added} before this process stops; try again")), "{message}");
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn cart_items_can_be_rebuilt_at_start() {
    let mut shop = Shop::new("reset").await;
    shop.start(&[COMMANDS, PROJECTIONS]).await;
    let cart = Uuid::now_v7();
    assert_eq!(shop.add(cart, Uuid::now_v7(), "1.00").await.0, 200);
    eventually("the cart is projected", || async { (shop.get(&format!("/{cart}/cartitemsfromdb")).await.0 == 200).then_some(()) }).await;
    sqlx::query("UPDATE projection_a.cart_items_item SET price = 7").execute(&shop.pool).await.unwrap();
    for (flag, build) in [("--reset-cart-items", "projection_b"), ("-r", "projection_a")] {
        shop.service(PROJECTIONS).kill().await.unwrap();
        let mut settings = shop.settings(PROJECTIONS, "reset.log");
        settings.arguments.push(flag.into());
        let mut projections = services::Service::start(PROJECTIONS, settings).unwrap();
        projections.until_ready(READY).await.unwrap();
        eventually("the new build serves", || async {
            let serving: String = sqlx::query_scalar("SELECT build FROM projection WHERE name = 'cart_items' AND status = 'serving'")
                .fetch_one(&shop.pool)
                .await
                .unwrap();
            let answer: Value = reqwest::get(format!("{}/{cart}/cartitemsfromdb", projections.url())).await.unwrap().json().await.unwrap();
            (serving == build && answer["total_price"] == "1.00").then_some(())
        })
        .await;
        let retired = if build == "projection_b" { r#"build="projection_a""# } else { r#"build="projection_b""# };
        eventually("the old build has no segments in the metrics", || async {
            let metrics = reqwest::get(format!("{}/metrics", projections.url())).await.unwrap().text().await.unwrap();
            let of = |line: &&str| line.starts_with("projection_segments{") && line.contains(r#""cart_items""#) && line.contains(retired);
            metrics.lines().find(of)?.ends_with(" 0").then_some(())
        })
        .await;
        projections.kill().await.unwrap();
    }
}

/// Reads a document's code blocks of a kind, in order.
fn blocks(document: &str, kind: &str) -> Vec<String> {
    let path = format!("{}/../../{document}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let start = format!("```{kind}\n");
    let blocks = text.split(&start).skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(str::to_owned).collect()
}

/// Runs lines of a document in the workspace's root.
async fn shell(script: &str) -> std::process::Output {
    let directory = Layout::discover().unwrap().target().parent().unwrap().to_owned();
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", script]).current_dir(directory).kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap()
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn documented_first_cart_and_messages_work() {
    let mut shop = Shop::new("readme").await;
    shop.start(&ALL).await;
    let here = |text: &str| {
        let text =
            services::ALL.iter().fold(text.to_owned(), |text, kind| text.replace(&services::url(kind.default_port), &shop.url(*kind)));
        let text = text.replace(r#"eval "$(cargo dev env)""#, &format!("KAFKA_BOOTSTRAP_SERVERS={}", shop.kafka));
        ["published-carts", "inventories"]
            .iter()
            .fold(text, |text, topic| text.replace(&format!("--topic {topic}"), &format!("--topic {}", shop.topic(topic))))
    };
    // An answer up to its random part.
    let known = |answer: &str| answer.trim_end().split(r#""fingerprint":""#).next().unwrap_or_default().to_owned();
    let variables = blocks("README.md", "sh").into_iter().find(|block| block.contains("CART=")).expect("the ids of the first cart");
    let mut shown = 0;
    for block in blocks("README.md", "console") {
        let mut lines = block.lines();
        while let (Some(command), Some(answer)) = (lines.next(), lines.next()) {
            let command = command.strip_prefix("$ curl ").expect("a command, then its answer");
            let output = shell(&format!("{variables}\ncurl --silent {}", here(command))).await;
            assert_eq!(known(&String::from_utf8(output.stdout).unwrap()), known(answer), "{command}");
            shown += 1;
        }
    }
    assert!(shown > 3, "only {shown} answers are shown");

    // With a number of messages, because the reader would otherwise wait for more.
    let messages = blocks("docs/messages.md", "sh");
    let of = |tool: &str| here(messages.iter().find(|block| block.contains(tool)).expect(tool).trim_end());
    let read = shell(&format!("{} --max-messages 1", of("ConsoleConsumer"))).await;
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(text.contains("ce_id:") && text.contains(r#""total_price":"9.99""#), "{read:?}");
    let before = shop.count("InventoryChanged").await;
    let written = shell(&format!("KAFKA_BOOTSTRAP_SERVERS={}\n{}", shop.kafka, of("ConsoleProducer"))).await;
    assert!(written.status.success(), "{written:?}");
    shop.until_count("InventoryChanged", before + 1).await;
    shop.stop().await;
}
