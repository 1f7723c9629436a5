//! Rights of each role in the database. Each statement is tried.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use cart_events::{DomainEvent, examples::Shopping};
use event_store::{EventStore, StoreSettings};
use sqlx::{Connection, PgConnection, PgPool};
use test_support::{TestLog, eventually};
use uuid::Uuid;

use crate::common::Appends;

const SERVICES: [&str; 4] = ["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher"];
const OPERATOR: &str = "cartlog_operator";

fn all() -> impl Iterator<Item = &'static str> {
    SERVICES.into_iter().chain([OPERATOR])
}

/// PostgreSQL's "insufficient privilege".
const REFUSED: &str = "42501";

/// The code instead of [`REFUSED`] if the role may write the table, but not that row.
const ROW_REFUSED: &str = "row-level security";

/// Runs a statement and rolls it back. Returns PostgreSQL's code if it failed.
async fn tried(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let mut transaction = connection.begin().await.unwrap();
    let outcome = sqlx::raw_sql(statement).execute(&mut *transaction).await;
    transaction.rollback().await.unwrap();
    let error = outcome.err()?;
    let error = error.as_database_error().unwrap();
    Some(if error.message().contains(ROW_REFUSED) { ROW_REFUSED.to_owned() } else { error.code().unwrap().into_owned() })
}

/// Creates a log with an event and a stored offset.
async fn log() -> (TestLog<DomainEvent>, PgPool) {
    let log = TestLog::create().await;
    log.append([Shopping::new().created()]).await;
    let owner = log.database.pool().await;
    (log, owner)
}

/// Returns which of INSERT, UPDATE, DELETE and TRUNCATE a role may run on a table.
fn may(role: &str, schema: &str, table: &str) -> &'static [&'static str] {
    match (role, schema, table) {
        ("cartlog_projections", "projection_a" | "projection_b", _) => &["INSERT", "UPDATE", "DELETE", "TRUNCATE"],
        (OPERATOR, "projection_a" | "projection_b", _) => &["TRUNCATE"],
        ("cartlog_projections", "automation", _) => &["INSERT", "UPDATE", "DELETE"],
        ("cartlog_projections" | "cartlog_publisher", "public", "todo") => &["INSERT", "UPDATE", "DELETE"],
        (OPERATOR, "public", "projection") => &["INSERT", "UPDATE", "DELETE"],
        ("cartlog_projections" | "cartlog_publisher", "public", "projection") => &["INSERT", "UPDATE"],
        ("cartlog_projections" | "cartlog_publisher", "public", "checkpoint" | "replica") => &["INSERT", "UPDATE", "DELETE"],
        ("cartlog_projections" | "cartlog_publisher" | OPERATOR, "public", "parked_key" | "parked_event") => {
            &["INSERT", "UPDATE", "DELETE"]
        }
        (OPERATOR, "public", "checkpoint" | "skipped_event") => &["INSERT", "UPDATE", "DELETE"],
        (OPERATOR, "automation", _) => &["TRUNCATE"],
        (OPERATOR, "public", "todo") => &["UPDATE", "DELETE"],
        (OPERATOR, "public", "source_offset") => &["UPDATE"],
        _ => &[],
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_role_writes_a_table_that_is_not_its_own() {
    let (log, owner) = log().await;
    let tables: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT n.nspname::text, c.relname::text, (SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = 1)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND n.nspname IN ('public', 'automation', 'projection_a', 'projection_b') ORDER BY 1, 2",
    )
    .fetch_all(&owner)
    .await
    .unwrap();
    assert!(tables.iter().any(|(_, table, _)| table == "event") && tables.len() > 10, "{tables:?}");
    for role in all() {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        for (schema, table, column) in &tables {
            for (kind, statement) in [
                ("INSERT", format!("INSERT INTO {schema}.{table} DEFAULT VALUES")),
                ("UPDATE", format!("UPDATE {schema}.{table} SET {column} = DEFAULT WHERE false")),
                ("DELETE", format!("DELETE FROM {schema}.{table} WHERE false")),
                ("TRUNCATE", format!("TRUNCATE {schema}.{table} CASCADE")),
            ] {
                let refused = tried(&mut session, &statement).await.as_deref() == Some(REFUSED);
                assert_eq!(!refused, may(role, schema, table).contains(&kind), "{role}: {statement}");
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_role_reads_a_table_that_it_does_not_need() {
    let (log, _) = log().await;
    for (table, readers) in [
        ("public.event", &["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher", OPERATOR] as &[_]),
        ("public.source_offset", &["cartlog_translator", OPERATOR]),
        ("public.todo", &["cartlog_projections", "cartlog_publisher", OPERATOR]),
        ("automation.archive_item_open_item", &["cartlog_projections", OPERATOR]),
        ("projection_a.cart_items_item", &["cartlog_projections", OPERATOR]),
        ("pg_catalog.pg_authid", &[]),
        ("pg_catalog.pg_user_mapping", &[]),
    ] {
        for role in all() {
            let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
            let refused = tried(&mut session, &format!("SELECT FROM {table} LIMIT 1")).await;
            assert_eq!(refused.is_none(), readers.contains(&role), "{role}: {table} is {refused:?}");
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_role_calls_a_function_that_is_not_its_own() {
    let (log, owner) = log().await;
    let append = "SELECT * FROM append_events('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')";
    let append_from = "SELECT * FROM append_events_from_source('test', 'mine', 0, NULL, 1, NULL, '{}', '{}', '{}', '{}', '{}', '{}')";
    for (call, callers) in [
        (append, &SERVICES as &[&str]),
        (append_from, &["cartlog_translator"]),
        ("SELECT log_identity()", &["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher", OPERATOR]),
        ("SELECT key_in_scope(gen_random_uuid())", &["cartlog_projections", "cartlog_publisher", OPERATOR]),
        ("SELECT pg_read_file('PG_VERSION')", &[]),
        ("SELECT pg_ls_dir('.')", &[]),
        ("SELECT lo_import('/etc/passwd')", &[]),
        ("SELECT lo_create(0)", &[]),
        ("SELECT lo_from_bytea(0, 'mine')", &[]),
        ("SELECT repair_installation()", &[]),
        ("SELECT record_installation()", &[]),
        ("SELECT check_installation()", &["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher", OPERATOR]),
        ("SELECT pg_reload_conf()", &[]),
        ("SELECT pg_switch_wal()", &[]),
        ("SELECT pg_create_physical_replication_slot('mine')", &[]),
        ("SELECT pg_stat_reset()", &[]),
    ] {
        for role in all() {
            let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
            let became = tried(&mut session, call).await;
            let expected = if callers.contains(&role) { None } else { Some(REFUSED) };
            assert_eq!(became.as_deref(), expected, "{role}: {call}");
        }
    }
    // Functions of later migrations are refused too. A trigger's function cannot be called at all.
    let anybodys: Vec<String> = sqlx::query_scalar(
        "SELECT oid::regprocedure::text FROM pg_proc
         WHERE pronamespace IN ('public'::regnamespace, 'automation'::regnamespace, 'projection_a'::regnamespace, 'projection_b'::regnamespace)
           AND prorettype <> 'trigger'::regtype AND has_function_privilege('public', oid, 'EXECUTE')",
    )
    .fetch_all(&owner)
    .await
    .unwrap();
    assert_eq!(anybodys, [] as [&str; 0], "PUBLIC may call these: a migration that creates a function must REVOKE ALL ON it FROM PUBLIC");
    sqlx::query("CREATE FUNCTION of_a_later_migration() RETURNS integer LANGUAGE sql RETURN 1").execute(&owner).await.unwrap();
    for role in all() {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        assert_eq!(tried(&mut session, "SELECT of_a_later_migration()").await.as_deref(), Some(REFUSED), "{role}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_role_creates_changes_drops_or_escalates() {
    let (log, owner) = log().await;
    let (database, superuser): (String, String) =
        sqlx::query_as("SELECT current_database()::text, current_user::text").fetch_one(&owner).await.unwrap();
    let others: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&owner).await.unwrap();
    let refused = [
        // Creating objects that a function of the log might find by name.
        "CREATE TABLE mine (n integer)".to_owned(),
        "CREATE TABLE projection_a.mine (n integer)".into(),
        "CREATE TABLE automation.mine (n integer)".into(),
        "CREATE TEMPORARY TABLE mine (n integer)".into(),
        "CREATE VIEW mine AS SELECT 1".into(),
        "CREATE TYPE mine AS (n integer)".into(),
        "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql RETURN 1".into(),
        "CREATE FUNCTION pg_temp.mine() RETURNS integer LANGUAGE sql RETURN 1".into(),
        "CREATE SCHEMA mine".into(),
        "CREATE EXTENSION pgcrypto".into(),
        "CREATE PUBLICATION mine FOR TABLE event".into(),
        "CREATE ROLE mine".into(),
        // Changing what exists.
        "DROP TABLE event".into(),
        "ALTER TABLE event ADD COLUMN mine integer".into(),
        "ALTER TABLE event OWNER TO current_user".into(),
        "CREATE INDEX ON event (inserted_at)".into(),
        "CREATE TRIGGER mine BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()".into(),
        "CREATE RULE mine AS ON INSERT TO event DO INSTEAD NOTHING".into(),
        "DROP FUNCTION lock_log()".into(),
        "LOCK TABLE event IN ROW EXCLUSIVE MODE".into(),
        "LOCK TABLE event IN ACCESS EXCLUSIVE MODE".into(),
        "SELECT FROM event FOR UPDATE".into(),
        "COPY event TO PROGRAM 'cat'".into(),
        "COPY event TO '/tmp/event'".into(),
        // Gaining privileges.
        format!("SET ROLE {superuser}"),
        format!("SET SESSION AUTHORIZATION {superuser}"),
        "SET session_replication_role = replica".into(),
        "SET log_statement = 'none'".into(),
        "SET allow_system_table_mods = on".into(),
        "ALTER ROLE current_user SUPERUSER".into(),
        "ALTER ROLE current_user CREATEROLE".into(),
        "ALTER ROLE current_user BYPASSRLS".into(),
        format!("ALTER ROLE {superuser} PASSWORD 'mine'"),
        format!("GRANT {superuser} TO current_user"),
        "GRANT pg_write_all_data TO current_user".into(),
        format!("ALTER DATABASE {database} SET synchronous_commit = off"),
        format!("SELECT pg_terminate_backend({others})"),
    ];
    for role in all() {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        for statement in &refused {
            assert_eq!(tried(&mut session, statement).await.as_deref(), Some(REFUSED), "{role}: {statement}");
        }
        for other in all().filter(|other| *other != role) {
            for statement in
                [format!("SET ROLE {other}"), format!("ALTER ROLE {other} PASSWORD 'mine'"), format!("GRANT {other} TO {role}")]
            {
                assert_eq!(tried(&mut session, &statement).await.as_deref(), Some(REFUSED), "{role}: {statement}");
            }
        }
        // Unlike the others, not in a transaction.
        for statement in ["ALTER SYSTEM SET fsync = off".to_owned(), "CREATE DATABASE mine".into(), format!("DROP DATABASE {database}")] {
            let error = sqlx::query(&statement).execute(&mut session).await.unwrap_err();
            assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some(REFUSED), "{role}: {statement}");
        }
    }
    let untouched: i64 = sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&owner).await.unwrap();
    assert_eq!(untouched, 1);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_role_that_logs_in_owns_anything_or_is_more_than_plain() {
    let (_log, owner) = log().await;
    let roles: Vec<String> = all().map(str::to_owned).collect();
    let owned: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', pg_describe_object(classid, objid, objsubid), 'of', r.rolname)
         FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid AND d.refclassid = 'pg_authid'::regclass
         WHERE d.deptype = 'o' AND r.rolname = ANY ($1) AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .bind(&roles)
    .fetch_all(&owner)
    .await
    .unwrap();
    assert_eq!(owned, [] as [&str; 0]);
    let more: Vec<String> = sqlx::query_scalar(
        "SELECT rolname::text FROM pg_roles r WHERE rolname = ANY ($1)
           AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls OR NOT rolcanlogin
                OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid))",
    )
    .bind(&roles)
    .fetch_all(&owner)
    .await
    .unwrap();
    assert_eq!(more, [] as [&str; 0]);
    let found: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_roles WHERE rolname = ANY ($1)").bind(&roles).fetch_one(&owner).await.unwrap();
    assert_eq!(found, 5);
    // Functions run with the rights of their owner.
    let owners: Vec<(String, bool, bool, bool)> = sqlx::query_as(
        "SELECT DISTINCT r.rolname::text, r.rolsuper, r.rolcanlogin, r.rolcreaterole OR r.rolbypassrls OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid)
         FROM (SELECT relowner AS owner FROM pg_class WHERE relnamespace = ANY ($1::regnamespace[])
               UNION SELECT proowner FROM pg_proc WHERE pronamespace = ANY ($1::regnamespace[])) o JOIN pg_roles r ON r.oid = o.owner",
    )
    .bind(["public", "projection_a", "projection_b", "automation"])
    .fetch_all(&owner)
    .await
    .unwrap();
    assert_eq!(owners, [("cartlog_log".to_owned(), false, false, false)]);
}

/// The runtime's tables with a column that names a projection.
const OF_PROJECTIONS: [(&str, &str); 6] = [
    ("projection", "name"),
    ("replica", "name"),
    ("checkpoint", "name"),
    ("parked_key", "name"),
    ("parked_event", "name"),
    ("todo", "automation"),
];

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_role_takes_a_lock_that_others_need() {
    let (log, _) = log().await;
    for role in all() {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        for statement in [
            "SELECT pg_advisory_lock(4841369599423283247)",
            "SELECT pg_advisory_xact_lock(1, 2)",
            "SELECT pg_try_advisory_lock_shared(1)",
            "LOCK TABLE event_log IN SHARE UPDATE EXCLUSIVE MODE",
            "LOCK TABLE event_log IN ROW EXCLUSIVE MODE",
            "SELECT FROM event_log FOR UPDATE",
            "SELECT FROM event_log FOR KEY SHARE",
            "LOCK TABLE installation IN EXCLUSIVE MODE",
        ] {
            assert_eq!(tried(&mut session, statement).await.as_deref(), Some(REFUSED), "{role}: {statement}");
        }
        let of_a_read_model = tried(&mut session, "LOCK TABLE projection_a.cart_items_item IN ACCESS EXCLUSIVE MODE").await;
        assert_eq!(of_a_read_model.is_none(), ["cartlog_projections", OPERATOR].contains(&role), "{role}: {of_a_read_model:?}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_service_writes_and_locks_the_rows_of_its_own_projections_only() {
    let (log, owner) = log().await;
    let rows = |name: &str, build: &str, role: &str| {
        [
            format!("INSERT INTO projection (name, build, version, status) VALUES ('{name}', '{build}', 1, 'serving')"),
            format!("INSERT INTO replica (name, id, version, beats, lease) VALUES ('{name}', gen_random_uuid(), 1, 1, '1 s')"),
            format!("INSERT INTO checkpoint (name, build, segment) VALUES ('{name}', '{build}', 0)"),
            format!(
                "INSERT INTO parked_key (name, build, key, position, error) VALUES ('{name}', '{build}', '{}', 1, 'a test')",
                Uuid::nil()
            ),
            format!("INSERT INTO parked_event (name, build, key, position) VALUES ('{name}', '{build}', '{}', 1)", Uuid::nil()),
            format!("INSERT INTO todo (automation, key, position, payload, metadata) VALUES ('{name}', '{role}', 1, '{{}}', '{{}}')"),
        ]
    };
    let projections = [("cart_items", "projection_a", "cartlog_projections"), ("publish_cart", "automation", "cartlog_publisher")];
    for (name, build, _) in projections {
        for insert in rows(name, build, "") {
            sqlx::query(&insert).execute(&owner).await.unwrap();
        }
    }
    for (name, build, its) in projections {
        for role in ["cartlog_projections", "cartlog_publisher"] {
            let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
            sqlx::query("DELETE FROM parked_key WHERE false").execute(&mut session).await.unwrap();
            for (table, column) in OF_PROJECTIONS {
                for statement in [
                    format!("SELECT FROM {table} WHERE {column} = '{name}' FOR UPDATE"),
                    format!("UPDATE {table} SET {column} = {column} WHERE {column} = '{name}'"),
                ] {
                    let affected = sqlx::query(&statement).execute(&mut session).await.unwrap().rows_affected();
                    assert_eq!(affected, u64::from(role == its), "{role}: {statement}");
                }
            }
            // Another key or build, so that only the policy stands in the way.
            for insert in rows(name, if build == "automation" { build } else { "projection_b" }, role) {
                let own = role == its;
                let outcome = tried(&mut session, &insert).await;
                assert_eq!(outcome.as_deref() == Some(ROW_REFUSED), !own, "{role}: {insert}: {outcome:?}");
            }
            let foreign = if role == "cartlog_publisher" { "cart_items" } else { "publish_cart" };
            let renamed = tried(&mut session, &format!("UPDATE replica SET name = '{foreign}'")).await;
            assert_eq!(renamed.as_deref(), Some(ROW_REFUSED), "{role}");
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_projection_names_no_table_of_another_one() {
    let (log, _) = log().await;
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_projections")).await.unwrap();
    for (tables, fits) in [
        ("{}", true),
        ("{inventories}", true),
        ("{inventories,inventories_by_name}", true),
        ("{carts_with_products}", false),
        ("{inventoriesx}", false),
        ("{\"inventories; DROP TABLE event\"}", false),
        ("{\"inventories_a,projection_b.cart_items_item\"}", false),
        ("{NULL}", false),
    ] {
        let insert = format!(
            "INSERT INTO projection (name, build, version, status, tables) VALUES ('inventories', 'projection_a', 1, 'serving', '{tables}')"
        );
        assert_eq!(tried(&mut session, &insert).await, (!fits).then(|| "23514".to_owned()), "{tables}");
    }
    // Whoever uses the names gets them quoted.
    let quoted: String =
        sqlx::query_scalar("SELECT build_tables('projection_a', '{b,\"a; DROP\"}')").fetch_one(&mut session).await.unwrap();
    assert_eq!(quoted, r#"projection_a."a; DROP", projection_a.b"#);
}

/// Appends one event as a session's role. Returns PostgreSQL's code if it was refused.
async fn append_raw(
    session: &mut PgConnection,
    event_type: &str,
    payload: &[u8],
    metadata: &str,
    ids: [Option<Uuid>; 3],
) -> Option<String> {
    let append = "SELECT FROM append_events('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{0}', ARRAY[$1], ARRAY[$2], ARRAY[$3], ARRAY[$4], ARRAY[$5], ARRAY[$6])";
    let [cart_id, item_id, product_id] = ids;
    let outcome = sqlx::query(append)
        .bind(event_type)
        .bind(payload)
        .bind(metadata)
        .bind(cart_id)
        .bind(item_id)
        .bind(product_id)
        .execute(session)
        .await;
    outcome.err().map(|error| error.as_database_error().unwrap().code().unwrap().into_owned())
}

const METADATA: &str = r#"{"append_id":"01980000-0000-7000-8000-00000000000a"}"#;

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn each_role_appends_its_own_types_only() {
    let (log, _) = log().await;
    let own = |event_type: &str| match event_type {
        "CartCreated" | "ItemAdded" | "ItemRemoved" | "CartCleared" | "CartSubmitted" => "cartlog_commands",
        "InventoryChanged" | "PriceChanged" => "cartlog_translator",
        "ItemArchived" => "cartlog_projections",
        "CartPublished" | "CartPublicationFailed" => "cartlog_publisher",
        other => panic!("nobody appends {other}: add it here and to event_types (0004_roles.sql)"),
    };
    for role in SERVICES {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        for event_type in <DomainEvent as disintegrate::Event>::SCHEMA.events.iter().copied() {
            let payload = format!(r#"{{"{event_type}":{{}}}}"#);
            let refused = append_raw(&mut session, event_type, payload.as_bytes(), METADATA, [None; 3]).await;
            assert_eq!(refused.as_deref(), (own(event_type) != role).then_some(REFUSED), "{role}: {event_type}");
        }
        assert_eq!(
            append_raw(&mut session, "Unheard", br#"{"Unheard":{}}"#, METADATA, [None; 3]).await.as_deref(),
            Some(REFUSED),
            "{role}"
        );
    }
    let mut translator = PgConnection::connect_with(&log.database.options_as("cartlog_translator")).await.unwrap();
    let from_source =
        "SELECT FROM append_events_from_source('test', 'mine', 0, NULL, 1, NULL, '{CartCreated}', ARRAY['{\"CartCreated\":{}}'::bytea],
                           ARRAY['{\"append_id\":\"01980000-0000-7000-8000-00000000000a\"}'], '{NULL}', '{NULL}', '{NULL}')";
    assert_eq!(tried(&mut translator, from_source).await.as_deref(), Some(REFUSED));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_takes_no_payload_that_contradicts_its_row() {
    let (log, owner) = log().await;
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_commands")).await.unwrap();
    let cart = Shopping::new();
    let (cart_id, item_id, product_id) = (Some(cart.cart_id.uuid()), Some(cart.item(0).uuid()), Some(cart.product(0).uuid()));
    let payload = serde_json::to_vec(&cart.added(0)).unwrap();
    let of_another = serde_json::to_vec(&Shopping::new().added(0)).unwrap();
    let text = String::from_utf8(payload.clone()).unwrap();
    let padded = |bytes: usize| text.replace("\"description\":\"", &format!("\"description\":\"{}", " ".repeat(bytes - text.len())));
    let ids = [cart_id, item_id, product_id];
    let long_metadata = |bytes: usize| format!("{METADATA}{}", " ".repeat(bytes - METADATA.len()));
    for (what, payload, metadata, ids, refused) in [
        ("as it is", payload.clone(), METADATA, ids, None),
        ("64 KiB", padded(65_536).into_bytes(), METADATA, ids, None),
        ("more than 64 KiB", padded(65_537).into_bytes(), METADATA, ids, Some("22023")),
        ("another cart's ids", of_another, METADATA, ids, Some("22023")),
        ("no cart", payload.clone(), METADATA, [None, item_id, product_id], Some("22023")),
        ("no item", payload.clone(), METADATA, [cart_id, None, product_id], Some("22023")),
        ("another product", payload.clone(), METADATA, [cart_id, item_id, cart_id], Some("22023")),
        ("another type", serde_json::to_vec(&cart.created()).unwrap(), METADATA, ids, Some("22023")),
        ("no JSON", payload[..payload.len() - 1].to_vec(), METADATA, ids, Some("22023")),
        ("no UTF-8", [payload.as_slice(), b"\xff"].concat(), METADATA, ids, Some("22021")),
        ("no payload", vec![], METADATA, ids, Some("22023")),
        ("no metadata", payload.clone(), "", ids, Some("22023")),
        ("metadata without an append id", payload.clone(), "{}", ids, Some("22023")),
        ("metadata that is no JSON", payload.clone(), r#"{"append_id":""#, ids, Some("22P02")),
        ("8 KiB of metadata", payload.clone(), long_metadata(8192).as_str(), ids, None),
        ("more than 8 KiB of metadata", payload.clone(), long_metadata(8193).as_str(), ids, Some("22023")),
    ] {
        assert_eq!(append_raw(&mut session, "ItemAdded", &payload, metadata, ids).await.as_deref(), refused, "{what}");
    }
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&owner).await.unwrap();
    assert_eq!(written, 1 + 3);
}

/// Every type of event can be appended as the services write it: its ids come first.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn every_committed_event_can_be_appended() {
    let log = TestLog::<DomainEvent>::create().await;
    let committed = include_str!("../../cart-events/events.jsonl");
    log.append(committed.lines().map(|line| serde_json::from_str::<DomainEvent>(line).unwrap())).await;
    assert_eq!(log.store.head().await.unwrap().0, committed.lines().count() as i64);
}

async fn findings(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT finding FROM check_installation() ORDER BY 1").fetch_all(pool).await.unwrap()
}

/// A plain `pg_dump` and `pg_restore` keeps grants on objects, and loses what belongs to the database and to the roles in it.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn what_a_restore_loses_is_found_and_repaired() {
    let (log, owner) = log().await;
    assert_eq!(findings(&owner).await, [] as [&str; 0]);
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&owner).await.unwrap();
    let lost: [(String, String); 11] = [
        (format!("ALTER ROLE cartlog_commands IN DATABASE {name} RESET ALL"), "is missing, and 8 more".to_owned()),
        (format!("GRANT TEMPORARY ON DATABASE {name} TO PUBLIC"), format!("GRANT TEMPORARY ON DATABASE {name} TO PUBLIC is not allowed")),
        (
            format!("REVOKE CONNECT ON DATABASE {name} FROM cartlog_publisher"),
            format!("GRANT CONNECT ON DATABASE {name} TO cartlog_publisher is missing"),
        ),
        ("REVOKE SELECT ON event FROM cartlog_commands".into(), "GRANT SELECT ON TABLE public.event TO cartlog_commands is missing".into()),
        (
            "GRANT INSERT ON event TO cartlog_commands".into(),
            "GRANT INSERT ON TABLE public.event TO cartlog_commands is not allowed".into(),
        ),
        (
            "GRANT UPDATE (payload) ON event TO PUBLIC".into(),
            "GRANT UPDATE (payload) ON TABLE public.event TO PUBLIC is not allowed".into(),
        ),
        ("GRANT EXECUTE ON FUNCTION lo_create TO PUBLIC".into(), "pg_catalog.lo_create(oid) TO PUBLIC is not allowed".into()),
        ("GRANT EXECUTE ON FUNCTION repair_installation TO PUBLIC".into(), "public.repair_installation() TO PUBLIC is not allowed".into()),
        ("ALTER TABLE event OWNER TO postgres".into(), "TABLE public.event belongs to postgres".into()),
        ("ALTER SCHEMA projection_a OWNER TO postgres".into(), "SCHEMA projection_a belongs to postgres".into()),
        (
            format!("ALTER ROLE cartlog_operator IN DATABASE {name} SET statement_timeout = 7"),
            "SET statement_timeout = '7' is not allowed".into(),
        ),
    ];
    for (statement, finding) in lost {
        sqlx::query(&statement).execute(&owner).await.unwrap();
        let found = findings(&owner).await;
        assert!(found.len() == 1 && found[0].contains(&finding), "{statement}: {found:?}");
        let of_a_service = log.store.check_installation().await.unwrap();
        assert!(of_a_service[0].remedy.contains("cartlog-migrate"), "{of_a_service:?}");
        event_store::migrate(&owner).await.unwrap();
        assert_eq!(findings(&owner).await, [] as [&str; 0], "{statement}");
    }
    assert_eq!(event_store::migrate(&owner).await.unwrap(), [] as [&str; 0], "nothing is left to repair");
}

/// Brings the database into the state that `pg_restore --no-owner --no-privileges` leaves.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_database_without_any_grant_is_repaired() {
    let (log, owner) = log().await;
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_commands")).await.unwrap();
    sqlx::raw_sql(
        "DO $$ DECLARE role text; BEGIN
             FOREACH role IN ARRAY login_roles() LOOP EXECUTE format('DROP OWNED BY %I', role); END LOOP;
             REASSIGN OWNED BY cartlog_log TO postgres;
         END $$",
    )
    .execute(&owner)
    .await
    .unwrap();
    assert_eq!(tried(&mut session, "SELECT FROM event").await.as_deref(), Some(REFUSED));
    assert!(findings(&owner).await.iter().any(|finding| finding.contains(" is missing, and ")));
    event_store::migrate(&owner).await.unwrap();
    assert_eq!(findings(&owner).await, [] as [&str; 0]);
    assert_eq!(tried(&mut session, "SELECT FROM event").await, None);
    log.append([Shopping::new().created()]).await;
}

/// Settings of the database that would change what statements mean.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn settings_of_the_database_change_neither_appends_nor_migrations() {
    let (log, owner) = log().await;
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&owner).await.unwrap();
    for setting in ["default_transaction_isolation = 'serializable'", "search_path = projection_a, public", "lock_timeout = '1ms'"] {
        sqlx::query(&format!("ALTER DATABASE {name} SET {setting}")).execute(&owner).await.unwrap();
    }
    let tables = "SELECT count(*) FROM pg_class WHERE relkind = 'r'";
    let before: i64 = sqlx::query_scalar(tables).fetch_one(&owner).await.unwrap();
    // New sessions, which have the settings.
    let fresh = log.database.pool().await;
    assert_eq!(event_store::migrate(&fresh).await.unwrap(), [] as [&str; 0]);
    let after: i64 = sqlx::query_scalar(tables).fetch_one(&fresh).await.unwrap();
    assert_eq!(before, after, "the migrations were applied once more, to another schema");
    for role in SERVICES {
        let store = EventStore::<DomainEvent>::new(log.database.options_as(role), StoreSettings::default());
        assert_eq!(store.check_installation().await.unwrap(), []);
    }
    let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    assert_eq!(store.decide(&Appends(Shopping::new().created())).await.unwrap().0, 2);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn whoever_stops_all_appends_is_named() {
    let (log, owner) = log().await;
    let mut holder = PgConnection::connect_with(&log.database.options_as("cartlog_publisher")).await.unwrap();
    sqlx::raw_sql("SET idle_in_transaction_session_timeout = 0; SET transaction_timeout = 0; BEGIN; SELECT lock_log()")
        .execute(&mut holder)
        .await
        .unwrap();
    let (waiter, cart) = (log.store.clone(), Shopping::new());
    let waiting = tokio::spawn(async move { waiter.decide(&Appends(cart.created())).await });
    let found = eventually("the holder is named", || async { findings(&owner).await.into_iter().next() }).await;
    assert!(found.starts_with("cartlog_publisher holds the append lock (process "), "{found}");
    let [named] = log.store.check_installation().await.unwrap().try_into().unwrap();
    assert_eq!(named.holder.as_deref(), Some("cartlog_publisher"));
    assert!(named.waited.is_some_and(|seconds| (3.0..60.0).contains(&seconds)), "{named:?}");
    sqlx::query(named.remedy.strip_prefix("end it: ").unwrap()).execute(&owner).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(findings(&owner).await, [] as [&str; 0]);
}
