//! What each role may do in the database, and what it may not. Each statement is tried.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use cart_events::{DomainEvent, examples::Shopping};
use sqlx::{Connection, PgConnection, PgPool};
use test_support::TestLog;

const SERVICES: [&str; 4] = ["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher"];
const OPERATOR: &str = "cartlog_operator";

fn all() -> impl Iterator<Item = &'static str> {
    SERVICES.into_iter().chain([OPERATOR])
}

/// PostgreSQL's "insufficient privilege".
const REFUSED: &str = "42501";

/// Runs a statement and rolls it back. Returns PostgreSQL's code if it failed.
async fn tried(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let mut transaction = connection.begin().await.unwrap();
    let outcome = sqlx::raw_sql(statement).execute(&mut *transaction).await;
    transaction.rollback().await.unwrap();
    outcome.err().map(|error| error.as_database_error().unwrap().code().unwrap().into_owned())
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
        (OPERATOR, "public", "todo" | "source_offset") => &["UPDATE"],
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
    let append = "SELECT * FROM append_events('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{0}', '{CartCreated}', ARRAY['\\x7b7d'::bytea], \
                  ARRAY['{}'], ARRAY[gen_random_uuid()], '{NULL}', '{NULL}')";
    let append_from = "SELECT * FROM append_events_from_source('test', 'mine', 0, NULL, 1, '{}', '{}', '{}', '{}', '{}', '{}')";
    for (call, callers) in [
        (append, &SERVICES as &[&str]),
        (append_from, &["cartlog_translator"]),
        ("SELECT log_identity()", &["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher", OPERATOR]),
        ("SELECT key_in_scope(gen_random_uuid())", &["cartlog_projections", "cartlog_publisher", OPERATOR]),
        ("SELECT pg_read_file('PG_VERSION')", &[]),
        ("SELECT pg_ls_dir('.')", &[]),
        ("SELECT lo_import('/etc/passwd')", &[]),
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
async fn the_migrating_role_owns_everything_and_roles_are_plain() {
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
}
