//! Migrations. `cargo dev migrate` or the image `migrate` applies them; a service never does.

use sqlx::{Connection, PgConnection, PgPool, migrate::Migrator};

/// The migrations that this build contains.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// The migrations could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database stores text in an encoding that cannot hold every description. Nothing was applied.
    #[error(
        "the database is encoded in {0}, and Cartlog needs UTF8. Create another one: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
    )]
    Encoding(String),
    /// A migration failed, or the applied ones differ from this build's.
    #[error("the migrations could not be applied: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// Roles, grants and settings could not be made what the migrations say.
    #[error("the roles, grants and settings could not be repaired: {0}")]
    Installation(#[from] sqlx::Error),
}

/// Settings that the migrations depend on, whatever was set on the database, the role or the server.
///
/// A migration that waits for a lock makes every later statement on that table wait too, so it gives up after a while.
const SESSION: &str = "SET search_path = public; SET default_transaction_isolation = 'read committed'; SET row_security = on; \
     SET standard_conforming_strings = on; SET quote_all_identifiers = off; SET check_function_bodies = on; SET statement_timeout = 0; \
     SET transaction_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '30s'; SET client_min_messages = error";

/// Applies the missing migrations, each in its own transaction, and makes roles, grants, settings and owners what the migrations say: a
/// restore loses some of them. sqlx's lock makes it safe to run several at once. Returns the statements that repaired something.
///
/// # Errors
/// If the database is unreachable or not encoded in UTF8, the role may not create tables, or an applied migration differs from this build's.
pub async fn migrate(pool: &PgPool) -> Result<Vec<String>, MigrateError> {
    // Closed at the end, because its settings are not those of the pool.
    let mut connection = pool.acquire().await?.detach();
    let encoding: String = sqlx::query_scalar("SELECT current_setting('server_encoding')").fetch_one(&mut connection).await?;
    if encoding != "UTF8" {
        return Err(MigrateError::Encoding(encoding));
    }
    sqlx::raw_sql(SESSION).execute(&mut connection).await?;
    // First, because a migration's grants fail if their roles are missing.
    let mut repaired = repair(&mut connection).await?;
    MIGRATOR.run(&mut connection).await?;
    repaired.extend(repair(&mut connection).await?);
    connection.close().await?;
    Ok(repaired)
}

/// Makes roles, grants, settings and owners what the applied migrations say. Returns the statements that this took.
async fn repair(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let installed: bool =
        sqlx::query_scalar("SELECT to_regprocedure('public.repair_installation()') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !installed {
        return Ok(vec![]);
    }
    sqlx::query_scalar("SELECT public.repair_installation()").fetch_all(connection).await
}

/// How to apply missing migrations.
pub(crate) const HOW: &str = "apply them with `cargo dev migrate` (or the image `migrate`) and DATABASE_URL as their owner";

/// Says that no migration was applied.
pub(crate) fn all_missing() -> String {
    format!("the migrations: {HOW}")
}

/// Returns what is missing for this build to work, as a sentence. `None` if every migration is applied.
pub(crate) async fn missing(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let applied: Vec<i64> = match sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(connection).await {
        Ok(applied) => applied,
        // No migration was ever applied.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P01" | "42501")) => {
            return Ok(Some(all_missing()));
        }
        Err(error) => return Err(error),
    };
    let missing: Vec<String> = MIGRATOR.iter().filter(|m| !applied.contains(&m.version)).map(|m| m.version.to_string()).collect();
    Ok((!missing.is_empty()).then(|| format!("the migrations {}: {HOW}", missing.join(", "))))
}
