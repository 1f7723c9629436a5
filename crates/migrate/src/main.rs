//! `cartlog-migrate` applies the migrations to `DATABASE_URL`, and repairs what a restore loses. Deployments run it before the services.
//!
//! If `CARTLOG_ROLE_PASSWORDS` names a directory, it then sets the passwords of the services' roles and of `cartctl` from the files there.
//!
//! Exit codes:
//!
//! - 0: every migration is applied.
//! - 1: the database is unreachable, or a migration failed. Another try may help.
//! - 2: `DATABASE_URL` is missing or malformed, or a file with a password cannot be read.
//! - 3: the database is not encoded in UTF8, or it has migrations that this build does not have, or has with other content. Use another
//!   database, or run another build.

mod failure;
mod passwords;

use std::{env, error::Error, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use event_store::MIGRATOR;
use sqlx::{
    ConnectOptions, Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use failure::Failure;

/// Reports a line. A full device or a closed pipe must not end a migration, so the line is lost then.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The longest wait for a connection. The migrations themselves have no time limit.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let _ = clap::Command::new("cartlog-migrate")
        .about("Applies the migrations to the database in DATABASE_URL, as the role that owns its tables")
        .version(version::VERSION)
        .after_help(
            "Exit codes:\n  0  every migration is applied\n  1  the database is unreachable, or a migration failed\n  \
             2  DATABASE_URL is missing or malformed, or a file with a password cannot be read\n  3  the database is not encoded in UTF8, or has other migrations than this build",
        )
        .get_matches();
    match migrate().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut line = format!("cartlog-migrate: {failure}");
            let mut cause = failure.source();
            while let Some(error) = cause {
                line += &format!(": {error}");
                cause = error.source();
            }
            let _ = writeln!(std::io::stderr(), "{line}");
            failure.exit_code()
        }
    }
}

async fn migrate() -> Result<(), Failure> {
    let url = env::var("DATABASE_URL").unwrap_or_default();
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) || event_store::is_password_cut(&url) {
        return Err(Failure::Url);
    }
    let options: PgConnectOptions = url.parse().map_err(|_| Failure::Url)?;
    let options = match env::var_os("CARTLOG_DATABASE_PASSWORD_FILE").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            let password = event_store::read_password(&path);
            options.password(&password.map_err(|error| Failure::PasswordFile(path.display().to_string(), error))?)
        }
        None => options,
    };
    let options = options.application_name("cartlog-migrate").disable_statement_logging();
    let passwords = match env::var_os("CARTLOG_ROLE_PASSWORDS").filter(|path| !path.is_empty()) {
        Some(directory) => passwords::statements(&PathBuf::from(directory))?,
        None => vec![],
    };
    say(&format!(
        "applying the migrations to {} at {}:{} as {}",
        options.get_database().unwrap_or("the user's database"),
        options.get_host(),
        options.get_port(),
        options.get_username(),
    ));
    // A pool retries until its timeout and hides the cause. A single connection reports the cause at once.
    let first = tokio::time::timeout(CONNECT_DEADLINE, options.connect()).await;
    let first = first.map_err(|_| Failure::NoAnswer(CONNECT_DEADLINE.as_secs()))?;
    first.map_err(Failure::Unreachable)?.close().await.map_err(Failure::Unreachable)?;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(CONNECT_DEADLINE)
        .connect_with(options)
        .await
        .map_err(Failure::Unreachable)?;
    let before = applied(&pool).await.map_err(Failure::Unreachable)?;
    let repaired = event_store::migrate(&pool).await?;
    for migration in MIGRATOR.iter() {
        let word = if before.contains(&migration.version) { "was already applied" } else { "applied" };
        say(&format!("{:04} {} {word}", migration.version, migration.description));
    }
    // A restore loses some of it. Nobody needs to read what a migration itself left to do.
    if !before.is_empty() {
        repaired.iter().for_each(|statement| say(&format!("repaired: {statement}")));
    }
    passwords::set(&pool, &passwords).await?;
    if !passwords.is_empty() {
        say("set the passwords of the roles");
    }
    pool.close().await;
    Ok(())
}

/// Returns the versions that are already applied. Empty if the database was never migrated.
async fn applied(pool: &PgPool) -> Result<Vec<i64>, sqlx::Error> {
    const UNDEFINED_TABLE: &str = "42P01";
    match sqlx::query_scalar("SELECT version FROM public._sqlx_migrations WHERE success").fetch_all(pool).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => Ok(vec![]),
        applied => applied,
    }
}
