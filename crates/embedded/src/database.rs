//! The database on a server: made, migrated, reached by the services' roles.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};
use url::Url;

use crate::error::{Context, Error};

const DEADLINE: Duration = Duration::from_secs(10);

/// The database's name where it is ours to choose.
pub const NAME: &str = "cartlog";

/// As event-store has them. Not from there: `cargo dev queries` is run where a query of event-store does not compile yet.
static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// Makes a database where there is none of this name. `name` is taken as it is, so it must be a plain identifier.
///
/// # Errors
/// The server is away, or its user may not.
pub async fn create(server_url: &str, name: &str) -> Result<(), Error> {
    let pool = connect(server_url).await?;
    let made = sqlx::raw_sql(&format!("CREATE DATABASE {name}")).execute(&pool).await;
    pool.close().await;
    match made {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P04") => Ok(()),
        other => other.map(drop).context(|| format!("create the database {name}")),
    }
}

/// Applies the migrations that are missing.
///
/// # Errors
/// The server is away, its user may not, or what is applied differs from what this build knows.
pub async fn migrate(url: &str) -> Result<(), Error> {
    let pool = connect(url).await?;
    let migrated = MIGRATOR.run(&pool).await;
    pool.close().await;
    Ok(migrated?)
}

/// A small pool of connections.
///
/// # Errors
/// The server is away, or refuses the user.
pub async fn connect(url: &str) -> Result<PgPool, Error> {
    let options = parse(url)?;
    let failed = || format!("connect to {}", masked(url));
    // A pool hides why it has no connection; one connection says it.
    let first = tokio::time::timeout(DEADLINE, options.connect()).await;
    first.unwrap_or(Err(sqlx::Error::PoolTimedOut)).context(failed)?.close().await.context(failed)?;
    PgPoolOptions::new().max_connections(4).acquire_timeout(DEADLINE).connect_with(options).await.context(failed)
}

/// The same database for another user, without a password; none where the URL has no place for a user.
#[must_use]
pub fn for_role(url: &str, role: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.set_username(role).ok()?;
    url.set_password(None).ok()?;
    Some(url.into())
}

/// This URL's user gets in.
pub async fn lets_in(url: &str) -> bool {
    let Ok(options) = parse(url) else {
        return false;
    };
    let connected = tokio::time::timeout(Duration::from_secs(5), options.connect()).await;
    match connected {
        Ok(Ok(connection)) => connection.close().await.is_ok(),
        _ => false,
    }
}

/// The URL as it may be shown: with its password hidden.
#[must_use]
pub fn masked(url: &str) -> String {
    match Url::parse(url) {
        // `?password=` is as good as `:password@` to PostgreSQL.
        Ok(parsed) if parsed.query().is_some_and(|query| query.contains("password")) => "DATABASE_URL".to_owned(),
        Ok(mut parsed) if parsed.password().is_some() => match parsed.set_password(Some("***")) {
            Ok(()) => parsed.into(),
            Err(()) => "DATABASE_URL".to_owned(),
        },
        Ok(_) => url.to_owned(),
        Err(_) => "DATABASE_URL".to_owned(),
    }
}

fn parse(url: &str) -> Result<PgConnectOptions, Error> {
    let options = url.parse::<PgConnectOptions>().context(|| format!("read the database URL {}", masked(url)))?;
    Ok(options.disable_statement_logging())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_takes_the_place_of_the_user_and_its_password() {
        let url = "postgres://owner:secret@db.example:5432/cartlog?sslmode=require";
        let expected = "postgres://cartlog_commands@db.example:5432/cartlog?sslmode=require";
        assert_eq!(for_role(url, "cartlog_commands").as_deref(), Some(expected));
    }

    #[test]
    fn a_password_is_never_shown() {
        assert_eq!(masked("postgres://owner:secret@db/cartlog"), "postgres://owner:***@db/cartlog");
        assert_eq!(masked("postgres://owner@db/cartlog"), "postgres://owner@db/cartlog");
        assert_eq!(masked("no url: secret"), "DATABASE_URL");
        assert_eq!(masked("postgres://db/cartlog?user=owner&password=secret"), "DATABASE_URL");
    }
}
