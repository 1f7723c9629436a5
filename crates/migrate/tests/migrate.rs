//! `cartlog-migrate` as a process, as deployments run it.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::{Command, Output};

use sqlx::{Connection, PgConnection};
use test_support::{Database, eventually};

fn migrate(url: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartlog-migrate"));
    command.env_remove("DATABASE_URL");
    if let Some(url) = url {
        command.env("DATABASE_URL", url);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn migrate_applies_everything_once() {
    let database = Database::create_empty().await;
    let url = database.url_as("postgres");

    let first = migrate(Some(&url));
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let said = text(&first.stdout);
    assert!(said.contains("0001 log applied"), "{said}");
    assert!(!said.contains("already"), "{said}");

    let second = migrate(Some(&url));
    assert_eq!(second.status.code(), Some(0), "{}", text(&second.stderr));
    let said = text(&second.stdout);
    assert!(said.contains("0001 log was already applied"), "{said}");
    assert!(said.lines().filter(|line| line.ends_with(" applied")).all(|line| line.ends_with("was already applied")), "{said}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn migrate_refuses_a_database_of_another_build() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let unknown =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)";
    sqlx::query(unknown).execute(&pool).await.unwrap();

    let refused = migrate(Some(&database.url_as("postgres")));
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("9999"), "{}", text(&refused.stderr));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn migrate_refuses_another_encoding_before_it_applies_anything() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = Database::create_with(&format!("ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")).await;
        let refused = migrate(Some(&database.url_as("postgres")));
        assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
        let said = text(&refused.stderr);
        assert!(said.contains(&format!("the database is encoded in {encoding}, and Cartlog needs UTF8")), "{said}");
        let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        assert_eq!(sqlx::query_scalar::<_, i64>(tables).fetch_one(&database.pool().await).await.unwrap(), 0, "{encoding}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn migrate_repairs_what_a_restore_lost() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&pool).await.unwrap();
    for lost in
        [format!("ALTER ROLE cartlog_commands IN DATABASE {name} RESET ALL"), format!("GRANT TEMPORARY ON DATABASE {name} TO PUBLIC")]
    {
        sqlx::query(&lost).execute(&pool).await.unwrap();
    }
    let repaired = migrate(Some(&database.url_as("postgres")));
    assert_eq!(repaired.status.code(), Some(0), "{}", text(&repaired.stderr));
    let said = text(&repaired.stdout);
    for statement in [
        format!("repaired: ALTER ROLE cartlog_commands IN DATABASE {name} SET idle_in_transaction_session_timeout = '3s'"),
        format!("repaired: REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"),
    ] {
        assert!(said.contains(&statement), "{said}");
    }
    let again = migrate(Some(&database.url_as("postgres")));
    assert!(!text(&again.stdout).contains("repaired"), "{}", text(&again.stdout));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn several_migrations_at_once_apply_everything_once() {
    let database = Database::create_empty().await;
    let url = database.url_as("postgres");
    let running: Vec<_> = (0..3)
        .map(|_| {
            tokio::task::spawn_blocking({
                let url = url.clone();
                move || migrate(Some(&url))
            })
        })
        .collect();
    for migrated in running {
        let migrated = migrated.await.unwrap();
        assert_eq!(migrated.status.code(), Some(0), "{}", text(&migrated.stderr));
    }
}

/// The server accepts the passwords: for this database, it asks for them.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn migrate_sets_passwords_that_the_server_accepts() {
    let database = Database::create_empty().await;
    let pool = database.pool().await;
    let (name, rules): (String, String) =
        sqlx::query_as("SELECT current_database()::text, current_setting('hba_file')").fetch_one(&pool).await.unwrap();
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    std::fs::create_dir_all(&directory).unwrap();
    for role in ["commands", "translator", "projections", "publisher", "operator"] {
        std::fs::write(directory.join(format!("{role}_password")), format!("the {role}'s 'pässword'\n")).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartlog-migrate"));
    let migrated = command.env("DATABASE_URL", database.url_as("postgres")).env("CARTLOG_ROLE_PASSWORDS", &directory).output().unwrap();
    assert_eq!(migrated.status.code(), Some(0), "{}", text(&migrated.stderr));

    let before = std::fs::read_to_string(&rules).unwrap();
    let asks = format!("host {name} cartlog_commands,cartlog_operator all scram-sha-256\n{before}");
    std::fs::write(&rules, asks).unwrap();
    sqlx::query("SELECT pg_reload_conf()").execute(&pool).await.unwrap();
    let login = async |role: &str, password: &str| {
        let outcome = PgConnection::connect_with(&database.options_as(role).password(password)).await;
        outcome.err().map(|error| error.as_database_error().unwrap().code().unwrap().into_owned())
    };
    eventually("the server asks for passwords", || async { login("cartlog_commands", "wrong").await }).await;
    let outcomes = [
        login("cartlog_commands", "the commands's 'pässword'").await,
        login("cartlog_operator", "the operator's 'pässword'").await,
        login("cartlog_operator", "the commands's 'pässword'").await,
    ];
    std::fs::write(&rules, before).unwrap();
    sqlx::query("SELECT pg_reload_conf()").execute(&pool).await.unwrap();
    assert_eq!(outcomes, [None, None, Some("28P01".to_owned())]);
}

/// A full device or a closed pipe takes the report, not the work, and leaves the exit code.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn migrate_works_on_a_full_device() {
    for output in [">/dev/full 2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"] {
        let database = Database::create_empty().await;
        let run = |arguments: &str, url: &str| {
            let program = format!("exec '{}' {arguments} {output}", env!("CARGO_BIN_EXE_cartlog-migrate"));
            Command::new("sh").args(["-c", &program]).env("DATABASE_URL", url).status().unwrap().code()
        };
        assert_eq!(run("", &database.url_as("postgres")), Some(0), "{output}");
        let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations").fetch_one(&database.pool().await).await.unwrap();
        assert!(applied >= 4, "{output}: {applied}");
        // Nothing listens on port 9.
        assert_eq!(run("", "postgres://owner@127.0.0.1:9/cartlog"), Some(1), "{output}");
        assert_eq!(run("", "nonsense"), Some(2), "{output}");
        assert_eq!(run("--unknown", "nonsense"), Some(2), "{output}");
        assert_eq!(run("--version", "nonsense"), Some(0), "{output}");
    }
}

#[test]
fn migrate_names_an_unreadable_password_file() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartlog-migrate"));
    command.env("DATABASE_URL", "postgres://owner@127.0.0.1:9/cartlog").env("CARTLOG_DATABASE_PASSWORD_FILE", "/nowhere/password");
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("Cannot read /nowhere/password, which CARTLOG_DATABASE_PASSWORD_FILE names"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn migrate_exits_with_1_if_the_database_is_unreachable() {
    // Nothing listens on port 9.
    let away = migrate(Some("postgres://owner:secret@127.0.0.1:9/cartlog"));
    assert_eq!(away.status.code(), Some(1));
    assert!(text(&away.stderr).contains("Cannot connect to the database"), "{}", text(&away.stderr));
    assert!(!format!("{away:?}").contains("secret"));
}

#[test]
fn migrate_exits_with_2_without_a_database_url() {
    let of_a_password = [Some("postgres://owner:1/secret@127.0.0.1:9/cartlog"), Some("postgres://owner:1#secret@127.0.0.1:9/cartlog")];
    for url in [None, Some(""), Some("cartlog"), Some("mysql://owner:secret@127.0.0.1/cartlog")].into_iter().chain(of_a_password) {
        let refused = migrate(url);
        assert_eq!(refused.status.code(), Some(2), "{url:?}");
        assert!(text(&refused.stderr).contains("DATABASE_URL"), "{url:?}");
        assert!(!format!("{refused:?}").contains("secret"));
    }
}
