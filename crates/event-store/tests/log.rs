//! The log on PostgreSQL: order, conditions, lost answers, grants, resets, reads and announcements.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cart_events::{CartId, CartStream, DomainEvent, InventoryStream, ProductId, examples::Shopping};
use disintegrate::StateQuery;
use event_store::{DecideError, EventStore, Position, State, StoreError, StoreSettings, Wait};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use test_support::{Database, TestLog, eventually};

use crate::common::{Add, Appends, Items};

async fn positions(log: &TestLog<DomainEvent>) -> Vec<i64> {
    sqlx::query_scalar("SELECT event_id FROM event ORDER BY event_id").fetch_all(log.store.pool()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn two_processes_keep_a_limit_and_positions_have_no_gaps() {
    let log = TestLog::<DomainEvent>::create().await;
    let other = EventStore::new(log.database.options(), StoreSettings::default());
    let carts: Vec<_> = (0..10).map(|_| Shopping::new()).collect();
    let adding = (0..400).map(|n| {
        let store = if n % 2 == 0 { log.store.clone() } else { other.clone() };
        // Half of the commands go to one cart.
        let cart = if n % 4 < 2 { &carts[0] } else { &carts[n % carts.len()] };
        let add = Add(Shopping { cart_id: cart.cart_id, ..Shopping::new() }.added(0));
        tokio::spawn(async move { store.decide(&add).await })
    });
    let mut written = vec![];
    for outcome in futures::future::join_all(adding).await {
        match outcome.unwrap() {
            Ok(position) => written.push(position.0),
            Err(DecideError::Refused(items)) => assert_eq!(items, 3),
            Err(DecideError::Store(error)) => panic!("{error}"),
        }
    }
    written.sort_unstable();
    assert_eq!(written, (1..=30).collect::<Vec<_>>());
    assert_eq!(positions(&log).await, written);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_state_larger_than_one_answer_is_folded_whole() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    log.append((0..1_234).map(|_| Shopping { cart_id: cart.cart_id, ..Shopping::new() }.added(0))).await;
    let (state, at) = log.store.read(Items { cart_id: cart.cart_id, items: 0 }).await.unwrap();
    assert_eq!((state.items, at), (1_234, Position(1_234)));
}

/// A product's newest inventory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(InventoryStream)]
struct Newest {
    #[id]
    product_id: ProductId,
    inventory: Option<i32>,
}

impl State for Newest {
    const NEWEST_SUFFICES: bool = true;

    fn mutate(&mut self, event: InventoryStream, _: Position) {
        let InventoryStream::InventoryChanged { inventory, .. } = event;
        self.inventory = Some(i32::from(inventory));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn states_are_read_as_they_were_at_any_position() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    // Items and inventories alternate. There are more than one answer holds.
    let added = || Shopping { cart_id: cart.cart_id, ..Shopping::new() }.added(0);
    log.append((1..=600).flat_map(|n| [added(), cart.inventory(0, n)])).await;
    let states = (Items { cart_id: cart.cart_id, items: 0 }, Newest { product_id: cart.product(0), inventory: None });
    for at in [0, 1, 2, 3, 998, 999, 1_000, 1_001, 1_002, 1_003, 1_199, 1_200] {
        let ((items, newest), complete_to) = log.store.read_at(states.clone(), Position(at)).await.unwrap();
        assert_eq!(complete_to, Position(at));
        assert_eq!(items.items, usize::try_from((at + 1) / 2).unwrap(), "at {at}");
        assert_eq!(newest.inventory, i32::try_from(at / 2).ok().filter(|n| *n > 0), "at {at}");
    }
    let ((items, newest), complete_to) = log.store.read_at(states, Position(5_000)).await.unwrap();
    assert_eq!((items.items, newest.inventory, complete_to), (600, Some(600), Position(1_200)));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn waiting_ends_when_the_log_reaches_the_position_or_times_out() {
    let log = TestLog::<DomainEvent>::create().await;
    let (cart, long) = (Shopping::new(), Duration::from_secs(30));
    let head = log.append(cart.with_items(2)).await;
    let next = Position(head.0 + 1);
    // A store that has just started has seen no position.
    let other = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    for store in [&log.store, &other] {
        assert_eq!(store.wait("test", head, Duration::ZERO).await.unwrap(), Wait::Reached);
        assert_eq!(store.wait("test", next, Duration::ZERO).await.unwrap(), Wait::TimedOut(head));
    }
    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.wait("test", next, long).await.unwrap() }
    });
    let appended = log.append([cart.removed(0)]).await;
    assert_eq!((appended, waiting.await.unwrap()), (next, Wait::Reached));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn connections_cut_under_load_lose_and_double_no_append() {
    let log = TestLog::<DomainEvent>::create().await;
    let commands = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (commands, stop) = (commands.clone(), stop.clone());
            tokio::spawn(async move {
                let mut acknowledged = vec![];
                while !stop.load(Ordering::Relaxed) {
                    let cart = Shopping::new();
                    match commands.decide(&Add(cart.added(0))).await {
                        Ok(position) => acknowledged.push((position.0, cart.cart_id.uuid())),
                        Err(DecideError::Store(error)) if error.is_unavailable() => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    let pool = log.database.pool().await;
    for _ in 0..40 {
        let before = log.store.head().await.unwrap();
        eventually("more events are appended", || async { (log.store.head().await.unwrap() > before).then_some(()) }).await;
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'cartlog_commands' AND datname = current_database()",
        )
        .execute(&pool)
        .await
        .unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = vec![];
    for task in tasks {
        acknowledged.extend(task.await.unwrap());
    }
    let stored: Vec<(i64, uuid::Uuid)> = sqlx::query_as("SELECT event_id, cart_id FROM event").fetch_all(&pool).await.unwrap();
    let carts: HashSet<_> = stored.iter().map(|(_, cart)| cart).collect();
    assert_eq!(carts.len(), stored.len(), "an event is stored twice");
    let stored: HashSet<_> = stored.into_iter().collect();
    assert!(
        !acknowledged.is_empty() && acknowledged.iter().all(|one| stored.contains(one)),
        "an acknowledged event is not at its position"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_log_emptied_under_a_running_process_is_noticed() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    for n in 0..3 {
        log.store.decide(&Add(cart.added(n))).await.unwrap();
    }
    sqlx::query("TRUNCATE event").execute(log.store.pool()).await.unwrap();
    let position = eventually("the reset is noticed", || async { log.store.decide(&Add(cart.added(3))).await.ok() }).await;
    assert_eq!(position, Position(1));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn appending_refuses_conditions_past_the_head_and_old_snapshots() {
    let pool = Database::create().await.pool().await;
    let append = "SELECT * FROM append_events('{0}', '{CartCreated}', '{7}', '{f}', ARRAY[gen_random_uuid()], '{NULL}', '{NULL}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')";
    let error = sqlx::query(append).execute(&pool).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "CL001");
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query(&format!("SET TRANSACTION ISOLATION LEVEL {isolation}")).execute(&mut *transaction).await.unwrap();
        let error = sqlx::query(append).execute(&mut *transaction).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "25000");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_service_writes_the_log_only_through_the_functions() {
    let log = TestLog::<DomainEvent>::create().await;
    log.append([Shopping::new().created()]).await;
    for role in ["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher"] {
        let pool = sqlx::postgres::PgPoolOptions::new().connect_with(log.database.options_as(role)).await.unwrap();
        for forbidden in [
            "INSERT INTO event VALUES (9, 'CartCreated', '', now(), NULL, NULL, NULL, '{}')",
            "UPDATE event SET event_type = ''",
            "DELETE FROM event",
            "TRUNCATE event",
            "DELETE FROM source_offset",
            "UPDATE event_log SET id = gen_random_uuid()",
            "CREATE TABLE public.mine (n int)",
        ] {
            let error = sqlx::query(forbidden).execute(&pool).await.unwrap_err();
            assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{role}: {forbidden}");
        }
        let store = EventStore::<DomainEvent>::new(log.database.options_as(role), StoreSettings::default());
        store.ready().await.unwrap();
        let cart = Shopping::new();
        let own = match role {
            "cartlog_commands" => cart.added(0),
            "cartlog_translator" => cart.inventory(0, 1),
            "cartlog_projections" => cart.archived(0),
            _ => DomainEvent::CartPublished { cart_id: cart.cart_id },
        };
        store.decide(&Appends(own)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn waiting_reads_share_a_statement_and_get_their_own_answers() {
    const READS: usize = 300;
    let log = TestLog::<DomainEvent>::create().await;
    let carts: Vec<_> = (0..READS).map(|_| Shopping::new()).collect();
    log.append(carts.iter().enumerate().flat_map(|(n, cart)| cart.with_items(n % 4))).await;
    log.store.close().await;
    let looking = log.database.options().application_name("looking");
    let looking = PgPoolOptions::new().max_connections(2).connect_with(looking).await.unwrap();
    let sessions = async |condition: &str| -> i64 {
        let others = "WITH other AS MATERIALIZED (SELECT pid, wait_event_type FROM pg_stat_activity
                          WHERE datname = current_database() AND application_name <> 'looking')
                      SELECT count(*) FROM other";
        sqlx::query_scalar(&format!("{others} WHERE {condition}")).fetch_one(&looking).await.unwrap()
    };
    // A session reports its transactions at its end at the latest.
    let transactions = async || -> i64 {
        eventually("every other session has ended", || async { (sessions("pg_terminate_backend(pid)").await == 0).then_some(()) }).await;
        let all = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
        sqlx::query_scalar(all).fetch_one(&looking).await.unwrap()
    };
    let before = transactions().await;

    // While the table is locked, reads with a connection get no answer, and the others wait for a connection.
    let store = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    let mut holding = looking.begin().await.unwrap();
    sqlx::query("LOCK TABLE event IN ACCESS EXCLUSIVE MODE").execute(&mut *holding).await.unwrap();
    let read = |cart: &Shopping| {
        let (store, items) = (store.clone(), Items { cart_id: cart.cart_id, items: 0 });
        tokio::spawn(async move { store.read(items).await.unwrap().0.items })
    };
    let reading: Vec<_> = carts.iter().map(read).collect();
    eventually("the reads with a connection wait for the table", || async {
        (sessions("wait_event_type = 'Lock'").await >= 8).then_some(())
    })
    .await;
    for gone in reading.iter().step_by(10) {
        gone.abort();
    }
    holding.rollback().await.unwrap();
    for (n, read) in reading.into_iter().enumerate() {
        match read.await {
            Ok(items) => assert_eq!(items, n % 4),
            Err(error) => assert!(error.is_cancelled() && n % 10 == 0, "{error}"),
        }
    }
    store.close().await;
    let statements = transactions().await - before;
    assert!(statements < 100, "{statements} statements");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn readiness_says_where_the_database_is_and_what_to_do() {
    let (migrated, empty) = (Database::create().await, Database::create_empty().await);
    let said =
        async |options: PgConnectOptions| EventStore::<DomainEvent>::new(options, StoreSettings::default()).ready().await.unwrap_err();
    let options = migrated.options();
    let at = format!("the database at {}:{}/{} (", options.get_host(), options.get_port(), options.get_database().unwrap());
    // The role of a cluster that was never migrated, or a misspelt role.
    let unknown = said(migrated.options_as("nobody")).await;
    assert!(unknown.starts_with(&at) && unknown.contains("\"nobody\"") && unknown.contains("cargo dev migrate"), "{unknown}");
    let nowhere = said(migrated.options().host("127.0.0.1").port(9)).await;
    assert!(nowhere.starts_with("the database at 127.0.0.1:9/"), "{nowhere}");
    let missing = said(empty.options()).await;
    assert!(missing.starts_with("the migrations: apply them with `cargo dev migrate`"), "{missing}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_without_an_answer_has_an_unknown_outcome() {
    let log = TestLog::<DomainEvent>::create().await;
    let settings = StoreSettings { command_timeout: Duration::from_secs(1), ..StoreSettings::default() };
    let store = EventStore::<DomainEvent>::new(log.database.options(), settings);
    let pool = log.database.pool().await;
    // Without a connection, an append is not sent in time.
    eventually("the appender has connected", || async { store.decide(&Add(Shopping::new().added(0))).await.ok() }).await;
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *holding).await.unwrap();
    let cart = Shopping::new();
    let held = store.decide(&Add(cart.added(0))).await;
    assert!(matches!(held, Err(DecideError::Store(StoreError::OutcomeUnknown))), "{held:?}");
    holding.rollback().await.unwrap();
    eventually("the store works again", || async { store.decide(&Add(Shopping::new().added(0))).await.ok() }).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_is_announced_to_other_processes() {
    let log = TestLog::<DomainEvent>::create().await;
    let settings = StoreSettings { poll_interval: Duration::from_secs(3_600), ..StoreSettings::default() };
    let reader = EventStore::<DomainEvent>::new(log.database.options(), settings);
    // The listener polls the head after it has begun to listen.
    log.store.decide(&Add(Shopping::new().added(0))).await.unwrap();
    eventually("the store listens", || async { (reader.head_watcher().newest() > Position::START).then_some(()) }).await;
    let written = log.store.decide(&Add(Shopping::new().added(0))).await.unwrap();
    eventually("the append is announced", || async { (reader.head_watcher().newest() >= written).then_some(()) }).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_event_of_an_older_shape_reads_back_with_its_default() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    log.append([cart.added(0)]).await;
    sqlx::query(
        "UPDATE event SET payload = convert_to(((convert_from(payload, 'UTF8')::jsonb) #- '{ItemAdded,device_fingerprint}')::text, 'UTF8')",
    )
    .execute(log.store.pool())
    .await
    .unwrap();
    #[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
    #[state_query(CartStream)]
    struct Fingerprint {
        #[id]
        cart_id: CartId,
        seen: Vec<String>,
    }
    impl State for Fingerprint {
        fn mutate(&mut self, event: CartStream, _: Position) {
            if let CartStream::ItemAdded { device_fingerprint, .. } = event {
                self.seen.push(device_fingerprint);
            }
        }
    }
    let (state, _) = log.store.read(Fingerprint { cart_id: cart.cart_id, seen: vec![] }).await.unwrap();
    assert_eq!(state.seen, ["default-fingerprint"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_announced_position_that_is_not_in_the_log_is_ignored() {
    let log = TestLog::<DomainEvent>::create().await;
    let other = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    let append_and_hear = async || {
        log.append(Shopping::new().with_items(1)).await;
        let head = log.store.head().await.unwrap();
        eventually("the head is announced", || async { (other.head_watcher().newest() >= head).then_some(()) }).await;
        assert_eq!(other.head_watcher().newest(), head);
    };
    append_and_hear().await;
    sqlx::query("SELECT pg_notify('event_head', '1000000')").execute(log.store.pool()).await.unwrap();
    // Announcements arrive in order: the false one came before this one.
    append_and_hear().await;
}

/// Every role may notify as often as it likes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_flood_of_false_announcements_costs_few_questions() {
    const FLOOD: i64 = 20_000;
    let log = TestLog::<DomainEvent>::create().await;
    let other = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    let _waits = other.head_watcher().subscribe();
    let owner = log.database.pool().await;
    // A listener is renewed every 2 s, and PostgreSQL counts the transactions of a session at its end.
    let listeners = async || -> Vec<i32> {
        let listening = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                         AND (query LIKE 'LISTEN %' OR query = 'SELECT coalesce(max(event_id), 0) FROM event')";
        sqlx::query_scalar(listening).fetch_all(&owner).await.unwrap()
    };
    let transactions = async || -> i64 {
        let committed = "SELECT pg_stat_get_db_xact_commit(oid) FROM pg_database WHERE datname = current_database()";
        sqlx::query_scalar(committed).fetch_one(&owner).await.unwrap()
    };
    eventually("it listens", || async { (!listeners().await.is_empty()).then_some(()) }).await;
    let before = transactions().await;
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_publisher")).await.unwrap();
    let flood = "SELECT count(pg_notify('event_head', (9223372036854775807 - n)::text)) FROM generate_series(1, $1) n";
    sqlx::query(flood).bind(FLOOD).execute(&mut session).await.unwrap();
    let flooded = listeners().await;
    eventually("the listeners are renewed", || async { listeners().await.iter().all(|pid| !flooded.contains(pid)).then_some(()) }).await;
    let asked = transactions().await - before;
    assert!(asked < 300, "{asked} transactions for {FLOOD} false announcements");
    log.append(Shopping::new().with_items(1)).await;
    let head = log.store.head().await.unwrap();
    eventually("the head is heard of", || async { (other.head_watcher().newest() >= head).then_some(()) }).await;
    assert_eq!(other.head_watcher().newest(), head);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_answer_under_the_lock_is_bounded_and_says_where_it_is_cut() {
    let pool = Database::create().await.pool().await;
    // 200 kB each: 4 MiB hold the events of seven query items.
    sqlx::query(
        "INSERT INTO event (event_id, event_type, payload, metadata, cart_id)
         SELECT n, 'ItemAdded', convert_to(repeat('x', 200000), 'UTF8'), '{}', '01980000-0000-7000-8000-00000000000a' FROM generate_series(1, 3) n",
    )
    .execute(&pool)
    .await
    .unwrap();
    let items = 40;
    let append = "SELECT query_item, octet_length(payload), more FROM append_events(
        array_fill(0, ARRAY[$1]), array_fill('ItemAdded'::text, ARRAY[$1]), array_fill(0::bigint, ARRAY[$1]), array_fill(false, ARRAY[$1]),
        array_fill('01980000-0000-7000-8000-00000000000a'::uuid, ARRAY[$1]), array_fill(NULL::uuid, ARRAY[$1]), array_fill(NULL::uuid, ARRAY[$1]),
        '{}', '{}', '{}', '{}', '{}', '{}', '{}')";
    let answer: Vec<(Option<i32>, Option<i32>, bool)> = sqlx::query_as(append).bind(items).fetch_all(&pool).await.unwrap();
    let bytes: i64 = answer.iter().filter_map(|(_, bytes, _)| bytes.map(i64::from)).sum();
    assert!(((4 << 20)..(4 << 20) + 40 * 200_000).contains(&bytes), "{bytes}");
    let of = |item: i32| answer.iter().filter(move |row| row.0 == Some(item)).map(|(.., more)| *more).collect::<Vec<_>>();
    for item in 0..items {
        let mut rows = of(item);
        // The last row of an item that is cut says that there is more. Past the limit each item has one row.
        let more = rows.pop().unwrap();
        assert!(
            rows.iter().all(|more| !more) && (more || rows.len() == 2) && (item < 7 || rows.is_empty()),
            "item {item}: {rows:?}, {more}"
        );
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_query_for_the_newest_event_reads_it_alone() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    log.append([cart.added(0), cart.inventory(0, 1), cart.removed(0), cart.price_changed(0)]).await;
    let (cart_id, item_id, product_id) = (cart.cart_id.uuid(), cart.item(0).uuid(), cart.product(0).uuid());
    let pool = log.store.pool();
    for (cart_id, item_id, product_id, newest) in [
        (Some(cart_id), None, None, 3),
        (Some(cart_id), Some(item_id), None, 3),
        (None, Some(item_id), None, 3),
        (None, Some(item_id), Some(product_id), 1),
        (None, None, Some(product_id), 4),
        (None, None, None, 4),
    ] {
        let all = "ItemAdded,ItemRemoved,InventoryChanged,PriceChanged";
        let matching = "SELECT event_id FROM read_events(ARRAY[$1], ARRAY[0]::bigint[], ARRAY[$2], ARRAY[$3], ARRAY[$4], ARRAY[$5])";
        let matching =
            |only: bool| sqlx::query_scalar::<_, i64>(matching).bind(all).bind(only).bind(cart_id).bind(item_id).bind(product_id);
        let every = matching(false).fetch_all(pool).await.unwrap();
        assert_eq!(every.last(), Some(&newest));
        assert_eq!(matching(true).fetch_all(pool).await.unwrap(), [newest], "{cart_id:?}, {item_id:?}, {product_id:?}");
    }
}

/// Like the runtime of an HTTP worker, which ends early in a shutdown.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_connection_outlives_the_runtime_of_its_first_caller() {
    let log = TestLog::<DomainEvent>::create().await;
    let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    let others = store.clone();
    let ended = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { futures::future::try_join_all((0..8).map(|_| others.head())).await.unwrap() });
    });
    ended.await.unwrap();
    futures::future::try_join_all((0..8).map(|_| store.head())).await.unwrap();
}
