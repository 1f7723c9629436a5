//! The cost of a command does not grow with the log and does not depend on statistics. It is counted in pages, because times mean little on
//! a busy machine.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::{collections::BTreeMap, path::Path};

use cart_events::DomainEvent;
use event_store::{EventStore, Position, StoreSettings};
use operations::Which;
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, Row, types::Json};
use test_support::{Database, eventually};
use uuid::Uuid;

/// A product in 50,000 carts, so in 50,000 ItemAdded.
const POPULAR: &str = "01980000-0000-7000-8000-00000000000a";
/// A product whose inventory changed 50,000 times.
const CHANGING: &str = "01980000-0000-7000-8000-00000000000b";
/// A product without events.
const NEW: &str = "01980000-0000-7000-8000-00000000000c";
const EVENTS: i64 = 100_000;

/// Creates a log that only its owner vacuums and analyses.
async fn log_left_alone() -> (Database, PgConnection) {
    let database = Database::create().await;
    let mut owner = PgConnection::connect_with(&database.options()).await.unwrap();
    sqlx::query("ALTER TABLE event SET (autovacuum_enabled = off)").execute(&mut owner).await.unwrap();
    (database, owner)
}

async fn fill(connection: &mut PgConnection, from: i64, events: i64) {
    sqlx::query(
        "INSERT INTO event (event_id, event_type, payload, metadata, cart_id, item_id, product_id)
         SELECT n, CASE n % 2 WHEN 0 THEN 'ItemAdded' ELSE 'InventoryChanged' END, convert_to(repeat('payload ', 30), 'UTF8'), '{}',
                CASE n % 2 WHEN 0 THEN gen_random_uuid() END, CASE n % 2 WHEN 0 THEN gen_random_uuid() END,
                CASE n % 2 WHEN 0 THEN $1::uuid ELSE $2::uuid END
         FROM generate_series($3::bigint, $3 + $4 - 1) AS n",
    )
    .bind(POPULAR)
    .bind(CHANGING)
    .bind(from)
    .bind(events)
    .execute(connection)
    .await
    .unwrap();
}

/// Returns the query items of Add Item: a new cart, and a product's newest inventory after a position.
fn query_items(product: &str, after: i64) -> String {
    format!(
        "ARRAY['CartCreated,ItemAdded,ItemRemoved,ItemArchived,CartCleared,CartSubmitted', 'InventoryChanged'], ARRAY[0, {after}]::bigint[],
         ARRAY[false, true], ARRAY[uuidv7(), NULL], ARRAY[NULL, NULL]::uuid[], ARRAY[NULL, '{product}'::uuid]"
    )
}

/// Query items for the newest event, by an item and by no id.
const NEWEST: [(&str, &str, bool); 2] = [("ItemAdded,ItemRemoved", "uuidv7()", true), ("ItemAdded,PriceChanged", "NULL", true)];

/// Query items by every other choice of ids. Without an id only the newest event is asked for: all events after a position would be many.
fn other_query_items(product: &str, after: i64, more: &[(&'static str, &'static str, bool)]) -> String {
    let (cart, item, product) = ("uuidv7()", "uuidv7()", format!("'{product}'::uuid"));
    let mut all = vec![
        ("ItemAdded,ItemRemoved", cart, item, "NULL", false),
        ("ItemAdded,CartCreated", cart, "NULL", product.as_str(), false),
        ("ItemAdded,CartCreated", cart, item, product.as_str(), false),
        ("ItemAdded,ItemRemoved", "NULL", item, "NULL", false),
        ("ItemAdded,ItemRemoved", "NULL", item, product.as_str(), false),
        ("PriceChanged,ItemArchived", "NULL", "NULL", product.as_str(), false),
    ];
    // No append has a condition without an id.
    if after == EVENTS && !more.is_empty() {
        all.push(("PriceChanged", "NULL", "NULL", "NULL", false));
    }
    all.extend(more.iter().map(|(types, item, newest)| (*types, "NULL", *item, "NULL", *newest)));
    let list = |of: fn(&(&str, &str, &str, &str, bool)) -> String| all.iter().map(of).collect::<Vec<_>>().join(", ");
    format!(
        "ARRAY[{}], ARRAY[{}]::bigint[], ARRAY[{}], ARRAY[{}]::uuid[], ARRAY[{}]::uuid[], ARRAY[{}]::uuid[]",
        list(|it| format!("'{}'", it.0)),
        vec![after.to_string(); all.len()].join(", "),
        list(|it| it.4.to_string()),
        list(|it| it.1.to_owned()),
        list(|it| it.2.to_owned()),
        list(|it| it.3.to_owned()),
    )
}

fn appended(product: &str, items: &str) -> String {
    // All items belong to one append. The types come first, each in quotes.
    let count = items.split(']').next().unwrap_or_default().matches('\'').count() / 2;
    format!(
        "SELECT a.* FROM (SELECT uuidv7() AS cart_id, uuidv7() AS item_id OFFSET 0) n, LATERAL append_events(
            array_fill(0, ARRAY[{count}]), {items}, ARRAY[0], ARRAY['ItemAdded'],
            ARRAY[convert_to(format('{{\"ItemAdded\":{{\"cart_id\":\"%s\",\"item_id\":\"%s\",\"product_id\":\"%s\"}}}}', n.cart_id, n.item_id,
                                    '{product}'), 'UTF8')],
            ARRAY['{{\"append_id\":\"{NEW}\"}}'], ARRAY[n.cart_id], ARRAY[n.item_id], ARRAY['{product}'::uuid]) a"
    )
}

fn append(product: &str, after: i64) -> String {
    appended(product, &query_items(product, after))
}

fn matching(product: &str, after: i64) -> String {
    format!("SELECT * FROM read_events({})", query_items(product, after))
}

fn append_otherwise(product: &str, after: i64) -> String {
    appended(product, &other_query_items(product, after, &[]))
}

fn matching_otherwise(product: &str, after: i64) -> String {
    format!("SELECT * FROM read_events({})", other_query_items(product, after, &NEWEST))
}

/// Reads as the store does: one prepared statement with a part for each kind of lookup, so from the sixth run on there is one plan for all
/// arguments.
fn reading(product: &str, after: i64) -> String {
    format!(
        "EXECUTE reading('{{CartCreated,ItemAdded,ItemRemoved,ItemArchived,CartCleared,CartSubmitted}}', ARRAY[0]::bigint[], ARRAY[uuidv7()],
         '{{InventoryChanged}}', ARRAY[{after}]::bigint[], ARRAY['{product}'::uuid])"
    )
}

fn reading_otherwise(product: &str, after: i64) -> String {
    // All events without an id would be many, unless the reader is near the head.
    let near = if after == EVENTS { "read_by_type" } else { "newest_by_type" };
    let all = ["newest_by_cart_id", "read_by_item_id", "newest_by_item_id", "read_by_product_id", near, "newest_by_type"];
    let types = "'{ItemAdded,ItemRemoved,PriceChanged}'";
    let part = |lookup: &str| {
        let after = if lookup == "read_by_product_id" { EVENTS } else { after };
        format!("SELECT e.* FROM {lookup}({types}, {after}, uuidv7(), uuidv7(), '{product}') e")
    };
    all.map(part).join(" UNION ALL ")
}

async fn session(database: &Database) -> PgConnection {
    let mut session = PgConnection::connect_with(&database.options_as("cartlog_commands")).await.unwrap();
    sqlx::raw_sql(
        "PREPARE reading (text[], bigint[], uuid[], text[], bigint[], uuid[]) AS
         SELECT NULL::integer, NULL::bigint, coalesce(max(event_id), 0), NULL::bytea FROM event
         UNION ALL SELECT 0, q.lookup, e.event_id, e.payload
         FROM unnest($2, $3, '{}'::uuid[], '{}'::uuid[]) WITH ORDINALITY AS q(after, cart_id, item_id, product_id, lookup)
         CROSS JOIN LATERAL read_by_cart_id($1, q.after, q.cart_id, q.item_id, q.product_id) e
         UNION ALL SELECT 1, q.lookup, e.event_id, e.payload
         FROM unnest($5, '{}'::uuid[], '{}'::uuid[], $6) WITH ORDINALITY AS q(after, cart_id, item_id, product_id, lookup)
         CROSS JOIN LATERAL newest_by_product_id($4, q.after, q.cart_id, q.item_id, q.product_id) e",
    )
    .execute(&mut session)
    .await
    .unwrap();
    session
}

/// Returns the most pages that a statement reads in several runs. A function keeps its plan from the sixth run on.
async fn pages(connection: &mut PgConnection, statement: &str) -> i64 {
    let mut most = 0;
    for _ in 0..8 {
        let mut transaction = connection.begin().await.unwrap();
        let plan: Value =
            sqlx::query_scalar(&format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")).fetch_one(&mut *transaction).await.unwrap();
        transaction.rollback().await.unwrap();
        let of = |what: &str| plan[0]["Plan"][what].as_i64().unwrap();
        most = most.max(of("Shared Hit Blocks") + of("Shared Read Blocks"));
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_command_reads_as_few_pages_in_a_long_log_as_in_a_short_one() {
    let (database, mut owner) = log_left_alone().await;
    // A session keeps its plans. Each statement gets a session of its own, opened while the log is empty.
    let mut sessions = vec![];
    for product in [NEW, POPULAR, CHANGING] {
        for known in [false, true] {
            for kind in [append, matching, reading, append_otherwise, matching_otherwise, reading_otherwise] {
                let mut session = session(&database).await;
                pages(&mut session, &kind(product, 0)).await;
                sessions.push((session, product, known, kind));
            }
        }
    }
    // Statistics of the empty log with its plans, then new statistics, then new sessions with new plans.
    for analysed in ["never", "when it was empty", "now", "now, by new sessions"] {
        match analysed {
            "never" => fill(&mut owner, 1, EVENTS).await,
            "when it was empty" => {
                sqlx::query("TRUNCATE event").execute(&mut owner).await.unwrap();
                sqlx::query("ANALYZE event").execute(&mut owner).await.unwrap();
                for (session, product, _, kind) in &mut sessions {
                    pages(session, &kind(product, 0)).await;
                }
                fill(&mut owner, 1, EVENTS).await;
            }
            "now" => drop(sqlx::query("ANALYZE event").execute(&mut owner).await.unwrap()),
            _ => {
                for (session, ..) in &mut sessions {
                    *session = self::session(&database).await;
                }
            }
        }
        for (session, product, known, kind) in &mut sessions {
            let statement = kind(product, if *known { EVENTS } else { 0 });
            // The first statements after a change also read the catalogue.
            pages(session, &statement).await;
            let pages = pages(session, &statement).await;
            assert!(pages < 100, "{pages} pages for {statement}, analysed {analysed}");
        }
    }
}

/// Returns the statements on the log that sqlx's macros know, by the file that holds each.
fn statements_on_the_log() -> BTreeMap<String, String> {
    let all = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.sqlx")).unwrap().map(|file| {
        let file = file.unwrap();
        let query: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        (file.file_name().into_string().unwrap(), query["query"].as_str().unwrap().to_owned())
    });
    let on_the_log = |sql: &str| {
        let words: Vec<_> = sql.split_whitespace().collect();
        words.windows(2).any(|pair| matches!(pair, ["FROM" | "JOIN", table] if table.trim_end_matches([')', ',', ';']) == "event"))
    };
    all.filter(|(_, sql)| on_the_log(sql)).collect()
}

/// Returns the scans of the log in a plan: by which index, and with which condition.
fn scans(plan: &Value, found: &mut Vec<String>) {
    match plan {
        Value::Array(several) => several.iter().for_each(|plan| scans(plan, found)),
        Value::Object(node) => {
            if node.get("Relation Name").is_some_and(|relation| relation == "event") {
                let of = |what: &str| node.get(what).and_then(Value::as_str).unwrap_or("none").to_owned();
                let scan = ["Node Type", "Index Name", "Scan Direction", "Index Cond"].map(of).join(", ");
                assert!(["Index Scan,", "Index Only Scan,"].iter().any(|kind| scan.starts_with(kind)), "{scan}");
                found.push(scan);
            }
            node.values().for_each(|value| scans(value, found));
        }
        _ => {}
    }
}

/// Returns the plan of each statement, for each role that may run it.
async fn plans(database: &Database, statements: &BTreeMap<String, String>) -> BTreeMap<(String, &'static str), Vec<String>> {
    let mut plans = BTreeMap::new();
    for role in ["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher", "cartlog_operator"] {
        let mut session = PgConnection::connect_with(&database.options_as(role)).await.unwrap();
        for (file, sql) in statements {
            let explained = session.fetch_one(format!("EXPLAIN (GENERIC_PLAN, FORMAT JSON) {sql}").as_str()).await;
            match explained {
                Ok(row) => {
                    let mut found = vec![];
                    scans(&row.get::<Json<Value>, _>(0), &mut found);
                    assert!(!found.is_empty(), "{file} reads nothing of the log");
                    plans.insert((file.clone(), role), found);
                }
                Err(error) if error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42501") => {}
                Err(error) => panic!("{file}, {role}: {error}"),
            }
        }
    }
    for file in statements.keys() {
        assert!(plans.keys().any(|(planned, _)| planned == file), "{file} is nobody's");
    }
    plans
}

/// The statistics that a plan may meet, and the length of the log at that time, which the planner also sees.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_plan_depends_on_when_the_log_was_analysed() {
    let (database, mut owner) = log_left_alone().await;
    let statements = statements_on_the_log();
    assert!(statements.len() >= 7, "{statements:?}");
    let never = plans(&database, &statements).await;
    assert!(never.keys().any(|(_, role)| *role == "cartlog_operator"));
    for (state, steps) in [
        ("long and never analysed", &["fill"] as &[_]),
        ("long and analysed", &["ANALYZE event"]),
        ("long and vacuumed", &["VACUUM event"]),
        ("empty and analysed", &["TRUNCATE event", "ANALYZE event"]),
        ("empty and vacuumed", &["VACUUM event"]),
        ("long and analysed when it was empty", &["fill"]),
    ] {
        for step in steps {
            match *step {
                "fill" => fill(&mut owner, 1, EVENTS).await,
                sql => drop(sqlx::query(sql).execute(&mut owner).await.unwrap()),
            }
        }
        for (of, plan) in plans(&database, &statements).await {
            assert_eq!(never[&of], plan, "{state}: {of:?}");
        }
    }
}

/// Runs the statements that cartctl builds at run time, which the macros do not know.
async fn ask_as_the_operator(database: &Database) {
    let store = EventStore::<DomainEvent>::new(database.options_as("cartlog_operator"), StoreSettings::default());
    let uuid = |id: &str| id.parse::<Uuid>().unwrap();
    let of = |id, value: &str| Which { id: Some((id, uuid(value))), ..Which::default() };
    let types = ["PriceChanged".to_owned()];
    let whichs = [
        Which::default(),
        Which { types: &types, ..of("product_id", CHANGING) },
        of("product_id", CHANGING),
        of("product_id", NEW),
        of("cart_id", NEW),
        of("item_id", NEW),
    ];
    for which in whichs {
        operations::newest(&store, which, 10).await.unwrap();
    }
    let after = Which { after: Position(EVENTS / 2), ..Which::default() };
    operations::up_to(&store, after, Position(EVENTS), 10).await.unwrap();
    operations::before(&store, time::OffsetDateTime::now_utc()).await.unwrap();
    store.head().await.unwrap();
    drop(store);
}

/// Returns the entries that the operator's statements read of each index. They never walk the log.
async fn read_by_the_operator(database: &Database, owner: &mut PgConnection) -> BTreeMap<String, i64> {
    sqlx::query("SELECT pg_stat_reset()").execute(&mut *owner).await.unwrap();
    ask_as_the_operator(database).await;
    let pool = database.pool().await;
    // A session reports its counts at its end.
    eventually("its sessions are gone", || async {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cartlog_operator' AND datname = current_database()";
        (sqlx::query_scalar::<_, i64>(sessions).fetch_one(&pool).await.unwrap() == 0).then_some(())
    })
    .await;
    let walked: i64 = sqlx::query_scalar("SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'event'::regclass")
        .fetch_one(&mut *owner)
        .await
        .unwrap();
    assert_eq!(walked, 0, "the log was walked");
    let read = "SELECT indexrelname::text, idx_tup_read FROM pg_stat_user_indexes WHERE relid = 'event'::regclass";
    let mut read: BTreeMap<_, _> = sqlx::query_as(read).fetch_all(owner).await.unwrap().into_iter().collect();
    // The counts vary a little: the head is polled, and the planner reads the ends of an index.
    let by_position = read.remove("event_pkey");
    assert!(by_position.is_some_and(|read| (1..1_000).contains(&read)), "{by_position:?} by position");
    read
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn operator_queries_read_few_pages_of_any_log() {
    let (database, mut owner) = log_left_alone().await;
    fill(&mut owner, 1, EVENTS).await;
    let never = read_by_the_operator(&database, &mut owner).await;
    // One of the statements searches a product of 50,000 events.
    assert_eq!(never["event_product_id"], EVENTS / 2);
    sqlx::query("ANALYZE event").execute(&mut owner).await.unwrap();
    assert_eq!(never, read_by_the_operator(&database, &mut owner).await, "analysed");
    sqlx::query("TRUNCATE event").execute(&mut owner).await.unwrap();
    sqlx::query("ANALYZE event").execute(&mut owner).await.unwrap();
    fill(&mut owner, 1, EVENTS).await;
    assert_eq!(never, read_by_the_operator(&database, &mut owner).await, "analysed when it was empty");
}

/// ANALYZE samples 300 times the largest statistics target of a column.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn analyze_samples_three_thousand_events_of_any_log() {
    let database = Database::create().await;
    let mut owner = PgConnection::connect_with(&database.options()).await.unwrap();
    let more: Vec<String> = sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute
         WHERE attrelid = 'event'::regclass AND attnum > 0 AND NOT attisdropped AND coalesce(attstattarget, 100) > 10",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    assert!(more.is_empty(), "of {more:?} it looks at more");
}
