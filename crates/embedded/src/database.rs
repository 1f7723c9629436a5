//! Databases on a server: creating, migrating and connecting.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};
use url::Url;

use crate::error::{Context, Error};

const DEADLINE: Duration = Duration::from_secs(10);

/// The database's name on our own servers.
pub const NAME: &str = "cartlog";

/// event-store embeds the same migrations. `cargo dev queries` must also run while event-store does not compile.
static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// Creates a database if it does not exist. `name` must be a plain identifier, because it is not quoted.
///
/// # Errors
/// The server cannot be reached, or its user may not create databases.
pub async fn create(server_url: &str, name: &str) -> Result<(), Error> {
    let pool = connect(server_url).await?;
    let made = sqlx::raw_sql(&format!("CREATE DATABASE {name}")).execute(&pool).await;
    pool.close().await;
    match made {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P04") => Ok(()),
        other => other.map(drop).context(|| format!("create the database {name}")),
    }
}

/// Applies the missing migrations, and makes roles, grants and settings what they say.
///
/// # Errors
/// The server cannot be reached, its user lacks a right, or an applied migration differs from this build's.
pub async fn migrate(url: &str) -> Result<(), Error> {
    let pool = connect(url).await?;
    let migrated = async {
        MIGRATOR.run(&pool).await?;
        sqlx::query("SELECT public.repair_installation()").execute(&pool).await.context(|| "repair the roles".to_owned())?;
        Ok(())
    }
    .await;
    pool.close().await;
    migrated
}

/// Opens a small pool of connections.
///
/// # Errors
/// The server cannot be reached, or refuses the user.
pub async fn connect(url: &str) -> Result<PgPool, Error> {
    let options = parse(url)?;
    let failed = || format!("connect to {}", masked(url));
    // A pool hides why it has no connection. A single connection says it.
    let first = tokio::time::timeout(DEADLINE, options.connect()).await;
    let Ok(first) = first else { return Err(Error::NoAnswer { what: failed(), seconds: DEADLINE.as_secs() }) };
    first.context(failed)?.close().await.context(failed)?;
    PgPoolOptions::new().max_connections(4).acquire_timeout(DEADLINE).connect_with(options).await.context(failed)
}

/// Returns the URL for another user, without a password; none if the URL has no place for a user.
#[must_use]
pub fn for_role(url: &str, role: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.set_username(role).ok()?;
    url.set_password(None).ok()?;
    Some(url.into())
}

/// Tells whether this URL's user can connect.
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

/// Returns the URL with its password hidden.
#[must_use]
pub fn masked(url: &str) -> String {
    match Url::parse(url) {
        // PostgreSQL takes `?password=` as well as `:password@`.
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
    fn for_role_replaces_user_and_password() {
        let url = "postgres://owner:secret@db.example:5432/cartlog?sslmode=require";
        let expected = "postgres://cartlog_commands@db.example:5432/cartlog?sslmode=require";
        assert_eq!(for_role(url, "cartlog_commands").as_deref(), Some(expected));
    }

    #[test]
    fn masked_hides_the_password() {
        assert_eq!(masked("postgres://owner:secret@db/cartlog"), "postgres://owner:***@db/cartlog");
        assert_eq!(masked("postgres://owner@db/cartlog"), "postgres://owner@db/cartlog");
        assert_eq!(masked("no url: secret"), "DATABASE_URL");
        assert_eq!(masked("postgres://db/cartlog?user=owner&password=secret"), "DATABASE_URL");
    }
}
