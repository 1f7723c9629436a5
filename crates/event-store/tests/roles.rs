//! Rights of each role in the database. Each statement is tried.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use cart_events::{DomainEvent, examples::Shopping};
use event_store::{EventStore, StoreSettings};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use test_support::{TestLog, eventually};
use uuid::Uuid;

use crate::common::Appends;

pub(crate) const SERVICES: [&str; 4] = ["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher"];
const OPERATOR: &str = "cartlog_operator";

fn all() -> impl Iterator<Item = &'static str> {
    SERVICES.into_iter().chain([OPERATOR])
}

/// PostgreSQL's "insufficient privilege".
pub(crate) const REFUSED: &str = "42501";

/// The code instead of [`REFUSED`] if the role may write the table, but not that row.
const ROW_REFUSED: &str = "row-level security";

/// Runs a statement and rolls it back. Returns PostgreSQL's code if it failed.
pub(crate) async fn tried(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let mut transaction = connection.begin().await.unwrap();
    let outcome = sqlx::raw_sql(statement).execute(&mut *transaction).await;
    transaction.rollback().await.unwrap();
    let error = outcome.err()?;
    let error = error.as_database_error().unwrap();
    Some(if error.message().contains(ROW_REFUSED) { ROW_REFUSED.to_owned() } else { error.code().unwrap().into_owned() })
}

/// Creates a log with an event and a stored offset.
pub(crate) async fn log() -> (TestLog<DomainEvent>, PgPool) {
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
        (OPERATOR, "public", "projection") => &["INSERT", "UPDATE", "DELETE"],
        ("cartlog_projections" | "cartlog_publisher", "public", "parked_event") => &["INSERT"],
        // UPDATE of columns only. The services delete through functions.
        ("cartlog_projections" | "cartlog_publisher", "public", "projection" | "checkpoint" | "replica" | "parked_key" | "todo") => {
            &["INSERT", "UPDATE"]
        }
        (OPERATOR, "public", "checkpoint" | "parked_key" | "parked_event" | "skipped_event") => &["INSERT", "UPDATE", "DELETE"],
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
        "SELECT n.nspname::text, c.relname::text, (SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum DESC LIMIT 1)
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
        ("SELECT delete_replicas('{cart_items}', '{NULL}', '{NULL}')", &["cartlog_projections", "cartlog_publisher"]),
        ("SELECT delete_parked('cart_items', 'projection_a', NULL, 1)", &["cartlog_projections", "cartlog_publisher"]),
        ("SELECT delete_done_todos('archive_item', '1 s', 1)", &["cartlog_projections", "cartlog_publisher"]),
        ("SELECT delete_progress('cart_items', 'projection_a')", &["cartlog_projections", "cartlog_publisher", OPERATOR]),
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
        // Taking more than its share, or hiding it.
        "SET temp_file_limit = -1".into(),
        "ALTER ROLE current_user SET temp_file_limit = -1".into(),
        format!("ALTER ROLE current_user IN DATABASE {database} RESET temp_file_limit"),
        "ALTER ROLE current_user CONNECTION LIMIT -1".into(),
        "SET track_activities = off".into(),
        "SET log_min_messages = debug5".into(),
        "CHECKPOINT".into(),
        // Comments and statistics of what exists, and what runs by itself.
        "COMMENT ON TABLE event IS 'mine'".into(),
        format!("COMMENT ON DATABASE {database} IS 'mine'"),
        "CREATE STATISTICS mine ON cart_id, item_id FROM event".into(),
        "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION suppress_redundant_updates_trigger()".into(),
        "CREATE SUBSCRIPTION mine CONNECTION '' PUBLICATION mine WITH (connect = false)".into(),
        "COPY event FROM STDIN".into(),
        "REINDEX TABLE event".into(),
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

/// Nothing that a role may do takes the others' connections or disk.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_role_has_its_share_of_connections_and_of_the_disk() {
    let (log, owner) = log().await;
    let shares: Vec<(String, bool)> = sqlx::query_as(
        "SELECT rolname::text, rolconnlimit BETWEEN 1 AND current_setting('max_connections')::integer * 6 / 10
         FROM pg_roles WHERE rolname = ANY (login_roles()) ORDER BY 1",
    )
    .fetch_all(&owner)
    .await
    .unwrap();
    let mut expected: Vec<_> = all().map(|role| (role.to_owned(), true)).collect();
    expected.sort_unstable();
    assert_eq!(shares, expected);
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&owner).await.unwrap();
    for role in SERVICES {
        // It may reset its other settings for later sessions. They are found and repaired.
        let reset = format!("ALTER ROLE {role} IN DATABASE {name} RESET ALL");
        PgConnection::connect_with(&log.database.options_as(role)).await.unwrap().execute(&*reset).await.unwrap();
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        session.execute("SET work_mem = '64kB'; SET transaction_timeout = 0").await.unwrap();
        let sort = "SELECT count(*) FROM (SELECT n, repeat('x', 1000) AS x FROM generate_series(1, 400000) n ORDER BY -n, x OFFSET 0) s";
        let error = session.execute(sort).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("53400"), "{role}: {error}");
    }
    event_store::migrate(&owner).await.unwrap();
    assert_eq!(findings(&owner).await, [] as [&str; 0]);
}

/// The runtime's tables with a column that names a projection.
const OF_PROJECTIONS: [(&str, &str, &str); 6] = [
    ("projection", "name", "paused"),
    ("replica", "name", "beats"),
    ("checkpoint", "name", "position"),
    ("parked_key", "name", "error"),
    ("parked_event", "name", "position"),
    ("todo", "automation", "status"),
];

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn no_role_takes_a_lock_that_others_need() {
    let (log, owner) = log().await;
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
    // The modes that a statement of another role conflicts with. Every role reads and inserts, so ROW EXCLUSIVE hinders nobody.
    let shared: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetch_all(&owner).await.unwrap();
    assert!(shared.len() > 10, "{shared:?}");
    for role in SERVICES {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        for table in &shared {
            for mode in ["SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"] {
                let lock = format!("LOCK TABLE {table} IN {mode} MODE");
                assert_eq!(tried(&mut session, &lock).await.as_deref(), Some(REFUSED), "{role}: {lock}");
            }
        }
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
            for (table, column, written) in OF_PROJECTIONS {
                for statement in [
                    format!("SELECT FROM {table} WHERE {column} = '{name}' FOR UPDATE"),
                    format!("UPDATE {table} SET {written} = {written} WHERE {column} = '{name}'"),
                ] {
                    if table == "parked_event" {
                        assert_eq!(tried(&mut session, &statement).await.as_deref(), Some(REFUSED), "{role}: {statement}");
                        continue;
                    }
                    let affected = sqlx::query(&statement).execute(&mut session).await.unwrap().rows_affected();
                    assert_eq!(affected, u64::from(role == its), "{role}: {statement}");
                }
                let renamed = tried(&mut session, &format!("UPDATE {table} SET {column} = '{name}'")).await;
                assert_eq!(renamed.as_deref(), Some(REFUSED), "{role}: {table}");
            }
            // Functions that run as the owner.
            let left = |table: &'static str| {
                let owner = owner.clone();
                async move { sqlx::query_scalar::<_, i64>(&format!("SELECT count(*) FROM {table}")).fetch_one(&owner).await.unwrap() }
            };
            if role != its {
                for delete in [
                    format!("SELECT delete_replicas(array_agg(name), array_agg(id), array_agg(beats)) FROM replica WHERE name = '{name}'"),
                    format!("SELECT delete_parked('{name}', '{build}', '{}', 1)", Uuid::nil()),
                    format!("SELECT delete_done_todos('{name}', '-1 s', 10)"),
                    format!("SELECT delete_progress('{name}', '{build}')"),
                ] {
                    sqlx::query(&delete).execute(&mut session).await.unwrap();
                }
                for (table, ..) in OF_PROJECTIONS {
                    assert_eq!(left(table).await, 2, "{role}: {table}");
                }
            }
            // Another key or build, so that only the policy stands in the way.
            for insert in rows(name, if build == "automation" { build } else { "projection_b" }, role) {
                let own = role == its;
                let outcome = tried(&mut session, &insert).await;
                assert_eq!(outcome.as_deref() == Some(ROW_REFUSED), !own, "{role}: {insert}: {outcome:?}");
            }
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
    let lost: [(String, String); 12] = [
        (format!("ALTER ROLE cartlog_commands IN DATABASE {name} RESET ALL"), "is missing, and 9 more".to_owned()),
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
        ("ALTER TABLE todo DISABLE ROW LEVEL SECURITY".into(), "ALTER TABLE public.todo ENABLE ROW LEVEL SECURITY is missing".into()),
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
    for setting in ["default_transaction_isolation = 'serializable'", "search_path = projection_a, public", "row_security = off"] {
        sqlx::query(&format!("ALTER DATABASE {name} SET {setting}")).execute(&owner).await.unwrap();
    }
    // New sessions, which have the settings.
    for role in SERVICES {
        let store = EventStore::<DomainEvent>::new(log.database.options_as(role), StoreSettings::default());
        let [found] = store.check_installation().await.unwrap().try_into().unwrap();
        assert!(found.finding.contains(&format!("ALTER DATABASE {name} SET row_security = 'off'")), "{found}");
        assert!(found.remedy.contains("cartlog-migrate"), "{found}");
    }
    let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    assert_eq!(store.decide(&Appends(Shopping::new().created())).await.unwrap().0, 2);
    let projections = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
    sqlx::query("SELECT FROM checkpoint").execute(projections.pool()).await.unwrap();
    let tables = "SELECT count(*) FROM pg_class WHERE relkind = 'r'";
    let before: i64 = sqlx::query_scalar(tables).fetch_one(&owner).await.unwrap();
    let fresh = log.database.pool().await;
    let mut repaired = event_store::migrate(&fresh).await.unwrap();
    repaired.sort_unstable();
    let reset = ["default_transaction_isolation", "row_security", "search_path"];
    assert_eq!(repaired, reset.map(|setting| format!("ALTER DATABASE {name} RESET {setting}")));
    let after: i64 = sqlx::query_scalar(tables).fetch_one(&fresh).await.unwrap();
    assert_eq!(before, after, "the migrations were applied once more, to another schema");
    assert_eq!(findings(&fresh).await, [] as [&str; 0]);
}

/// Tries changes of the cluster in a transaction, so that no other test sees them.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn settings_and_rights_of_a_role_everywhere_are_found_and_repaired() {
    let (_log, owner) = log().await;
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&owner).await.unwrap();
    let limit: i32 = sqlx::query_scalar("SELECT connection_limit()").fetch_one(&owner).await.unwrap();
    let limited = format!("ALTER ROLE cartlog_projections CONNECTION LIMIT {limit}");
    for (change, repair) in [
        // A role may do these itself.
        ("ALTER ROLE cartlog_commands SET search_path = mine, public", Some("ALTER ROLE cartlog_commands RESET search_path")),
        ("ALTER ROLE cartlog_publisher SET row_security = off", Some("ALTER ROLE cartlog_publisher RESET row_security")),
        ("ALTER ROLE cartlog_projections SET projection.key = 'x'", Some("ALTER ROLE cartlog_projections RESET projection.key")),
        (
            "ALTER ROLE cartlog_translator SET default_transaction_isolation = serializable",
            Some("ALTER ROLE cartlog_translator RESET default_transaction_isolation"),
        ),
        ("GRANT pg_write_all_data TO cartlog_publisher", Some("REVOKE pg_write_all_data FROM cartlog_publisher GRANTED BY postgres")),
        ("GRANT cartlog_log TO cartlog_commands", Some("REVOKE cartlog_log FROM cartlog_commands GRANTED BY postgres")),
        ("ALTER ROLE cartlog_translator SUPERUSER", Some("ALTER ROLE cartlog_translator NOSUPERUSER")),
        ("ALTER ROLE cartlog_operator BYPASSRLS", Some("ALTER ROLE cartlog_operator NOBYPASSRLS")),
        ("ALTER ROLE cartlog_log LOGIN", Some("ALTER ROLE cartlog_log NOLOGIN")),
        ("ALTER ROLE cartlog_projections CONNECTION LIMIT -1", Some(&*limited)),
        // An operator may want these for a while, so they are named only.
        ("ALTER ROLE cartlog_commands SET default_transaction_read_only = on", None),
        ("ALTER ROLE cartlog_commands SET synchronous_commit = off", None),
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", None),
        ("ALTER DATABASE {name} SET synchronous_commit = local", None),
    ] {
        let change = change.replace("{name}", &name);
        let mut transaction = owner.begin().await.unwrap();
        sqlx::query(&change).execute(&mut *transaction).await.unwrap();
        let find = "SELECT finding || ': ' || remedy FROM check_installation()";
        let found: Vec<String> = sqlx::query_scalar(find).fetch_all(&mut *transaction).await.unwrap();
        assert_eq!(found.len(), 1, "{change}: {found:?}");
        let repaired: Vec<String> = sqlx::query_scalar("SELECT repair_installation()").fetch_all(&mut *transaction).await.unwrap();
        assert_eq!(repaired, repair.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{change}");
        let left: Vec<String> = sqlx::query_scalar(find).fetch_all(&mut *transaction).await.unwrap();
        if repair.is_some() {
            assert_eq!(left, [] as [&str; 0], "{change}");
        } else {
            let (_, remedy) = left[0].rsplit_once(": ").unwrap();
            sqlx::query(remedy).execute(&mut *transaction).await.unwrap();
            let left: Vec<String> = sqlx::query_scalar(find).fetch_all(&mut *transaction).await.unwrap();
            assert_eq!(left, [] as [&str; 0], "{change}: {remedy}");
        }
        transaction.rollback().await.unwrap();
    }
    // How PostgreSQL writes names changes nothing.
    let mut transaction = owner.begin().await.unwrap();
    sqlx::raw_sql("SET LOCAL quote_all_identifiers = on; SET LOCAL search_path = ''").execute(&mut *transaction).await.unwrap();
    let found: Vec<String> =
        sqlx::query_scalar("SELECT finding FROM public.check_installation()").fetch_all(&mut *transaction).await.unwrap();
    assert_eq!(found, [] as [&str; 0]);
    let repaired: Vec<String> = sqlx::query_scalar("SELECT public.repair_installation()").fetch_all(&mut *transaction).await.unwrap();
    assert_eq!(repaired, [] as [&str; 0]);
    transaction.rollback().await.unwrap();
    // Other settings of a role are nobody's business.
    let mut transaction = owner.begin().await.unwrap();
    sqlx::raw_sql("ALTER ROLE cartlog_commands SET work_mem = '8MB'; ALTER ROLE cartlog_commands CONNECTION LIMIT 7")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let found: Vec<String> = sqlx::query_scalar("SELECT finding FROM check_installation()").fetch_all(&mut *transaction).await.unwrap();
    assert_eq!(found, [] as [&str; 0]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn whoever_keeps_others_waiting_is_named() {
    let (log, owner) = log().await;
    let connect = async |role| PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
    let (mut holder, mut waiter) = (connect(OPERATOR).await, connect("cartlog_projections").await);
    let unlimited = "SET idle_in_transaction_session_timeout = 0; SET transaction_timeout = 0";
    sqlx::raw_sql(&format!("{unlimited}; BEGIN; LOCK TABLE checkpoint IN ACCESS EXCLUSIVE MODE")).execute(&mut holder).await.unwrap();
    sqlx::raw_sql(unlimited).execute(&mut waiter).await.unwrap();
    let waiting = tokio::spawn(async move { sqlx::query("UPDATE checkpoint SET position = 1").execute(&mut waiter).await });
    let found = eventually("the holder is named", || async { findings(&owner).await.into_iter().next() }).await;
    assert!(found.starts_with("cartlog_operator holds a lock (process ") && found.contains("cartlog_projections waited for it"), "{found}");
    let [named] = log.store.check_installation().await.unwrap().try_into().unwrap();
    assert_eq!((named.holder.as_deref(), named.lock.as_deref()), (Some(OPERATOR), Some("other")));
    assert!(named.waited.is_some_and(|seconds| (3.0..60.0).contains(&seconds)), "{named:?}");
    sqlx::query(named.remedy.strip_prefix("end it: ").unwrap()).execute(&owner).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(findings(&owner).await, [] as [&str; 0]);
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
    assert_eq!((named.holder.as_deref(), named.lock.as_deref()), (Some("cartlog_publisher"), Some("append")));
    assert!(named.waited.is_some_and(|seconds| (1.0..60.0).contains(&seconds)), "{named:?}");
    sqlx::query(named.remedy.strip_prefix("end it: ").unwrap()).execute(&owner).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(findings(&owner).await, [] as [&str; 0]);
}
