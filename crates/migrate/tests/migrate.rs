//! The command, run as deployments run it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};

use test_support::Database;

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
async fn an_empty_database_is_migrated_and_a_second_run_finds_nothing_to_do() {
    let database = Database::create_empty().await;
    let url = database.url_as("postgres");

    let first = migrate(Some(&url));
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let said = text(&first.stdout);
    assert!(said.contains("0001 log is applied now"), "{said}");
    assert!(!said.contains("before"), "{said}");

    let second = migrate(Some(&url));
    assert_eq!(second.status.code(), Some(0), "{}", text(&second.stderr));
    let said = text(&second.stdout);
    assert!(said.contains("0001 log was applied before"), "{said}");
    assert!(!said.contains("now"), "{said}");
}

#[tokio::test]
async fn a_database_of_another_build_is_left_alone() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let unknown =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)";
    sqlx::query(unknown).execute(&pool).await.unwrap();

    let refused = migrate(Some(&database.url_as("postgres")));
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("9999"), "{}", text(&refused.stderr));
}

#[test]
fn a_password_file_that_cannot_be_read_is_named() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cartlog-migrate"));
    command.env("DATABASE_URL", "postgres://owner@127.0.0.1:9/cartlog").env("CARTLOG_DATABASE_PASSWORD_FILE", "/nowhere/password");
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("CARTLOG_DATABASE_PASSWORD_FILE names /nowhere/password"), "{}", text(&refused.stderr));
}

#[test]
fn a_database_that_is_away_is_worth_another_try() {
    // Port 9 is "discard", which nobody serves.
    let away = migrate(Some("postgres://owner:secret@127.0.0.1:9/cartlog"));
    assert_eq!(away.status.code(), Some(1));
    assert!(text(&away.stderr).contains("cannot be reached"), "{}", text(&away.stderr));
    assert!(!format!("{away:?}").contains("secret"));
}

#[test]
fn without_a_database_url_it_says_what_it_needs() {
    for url in [None, Some(""), Some("cartlog"), Some("mysql://owner:secret@127.0.0.1/cartlog")] {
        let refused = migrate(url);
        assert_eq!(refused.status.code(), Some(2), "{url:?}");
        assert!(text(&refused.stderr).contains("DATABASE_URL"), "{url:?}");
        assert!(!format!("{refused:?}").contains("secret"));
    }
}
