//! `cartlog-migrate`: applies the migrations to DATABASE_URL and says what it did. The step before the services, in deployments.
//!
//! Exits with 0 where every migration is applied; 1 where the database is away or one of them fails, so that another try may help;
//! 2 where DATABASE_URL is missing or no database's URL, or where CARTLOG_DATABASE_PASSWORD_FILE, for a URL without a password, cannot be
//! read; 3 where the database has migrations that this build does not know, or knows
//! otherwise: then this build is the wrong one.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command says what it does")]

use std::{env, error::Error, io, path::PathBuf, process::ExitCode, time::Duration};

use event_store::{MIGRATOR, MigrateError};
use sqlx::{
    ConnectOptions, Connection, PgPool,
    migrate::MigrateError as SqlxMigrateError,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// The time for connecting. Applying has no bound: a migration takes what it takes.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Why the migrations are not applied.
#[derive(Debug, thiserror::Error)]
enum Failure {
    // The URL may hold a password, so neither it nor the parser's words are shown.
    #[error("DATABASE_URL is missing or no database's URL; it must be one such as postgres://owner:password@host:5432/cartlog")]
    Url,
    #[error("CARTLOG_DATABASE_PASSWORD_FILE names {0}, which cannot be read; it must be a file with the password and nothing else in it")]
    PasswordFile(String, #[source] io::Error),
    #[error("the database cannot be reached")]
    Unreachable(#[source] sqlx::Error),
    #[error(transparent)]
    Migration(#[from] MigrateError),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Url | Self::PasswordFile(..) => ExitCode::from(2),
            Self::Migration(error) if is_wrong_build(error) => ExitCode::from(3),
            Self::Unreachable(_) | Self::Migration(_) => ExitCode::from(1),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let _ = clap::Command::new("cartlog-migrate")
        .about("Applies the migrations to the database that DATABASE_URL names, as its owner, and says what it did")
        .version(version::VERSION)
        .after_help("Exits with 0 where all are applied, 1 where the database is away or one fails, 2 without a DATABASE_URL, 3 where the database has others.")
        .get_matches();
    match migrate().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("cartlog-migrate: {failure}");
            let mut cause = failure.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            failure.exit_code()
        }
    }
}

async fn migrate() -> Result<(), Failure> {
    let url = env::var("DATABASE_URL").unwrap_or_default();
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
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
    println!(
        "applying the migrations to {} at {}:{} as {}",
        options.get_database().unwrap_or("the user's database"),
        options.get_host(),
        options.get_port(),
        options.get_username(),
    );
    // A pool tries for as long as it may, and hides why it has no connection; one connection says it at once.
    let first = tokio::time::timeout(CONNECT_DEADLINE, options.connect()).await;
    first.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(Failure::Unreachable)?.close().await.map_err(Failure::Unreachable)?;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(CONNECT_DEADLINE)
        .connect_with(options)
        .await
        .map_err(Failure::Unreachable)?;
    let before = applied(&pool).await.map_err(Failure::Unreachable)?;
    event_store::migrate(&pool).await?;
    for migration in MIGRATOR.iter() {
        let word = if before.contains(&migration.version) { "was applied before" } else { "is applied now" };
        println!("{:04} {} {word}", migration.version, migration.description);
    }
    pool.close().await;
    Ok(())
}

/// The versions that are applied already; none where the database has never seen a migration.
async fn applied(pool: &PgPool) -> Result<Vec<i64>, sqlx::Error> {
    const UNDEFINED_TABLE: &str = "42P01";
    match sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(pool).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => Ok(vec![]),
        applied => applied,
    }
}

/// The database was migrated by a build that knows other migrations than this one.
fn is_wrong_build(error: &MigrateError) -> bool {
    matches!(
        error.source().and_then(|source| source.downcast_ref()),
        Some(SqlxMigrateError::VersionMissing(_) | SqlxMigrateError::VersionMismatch(_))
    )
}
