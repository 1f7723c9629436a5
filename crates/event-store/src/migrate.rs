//! Migrations: applied by `cargo dev migrate` or the migrate image, never by a service.

use sqlx::{PgConnection, PgPool, migrate::Migrator};

/// The migrations that this build knows.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// A migration could not be applied.
#[derive(Debug, thiserror::Error)]
#[error("the migrations could not be applied: {0}")]
pub struct MigrateError(#[from] sqlx::migrate::MigrateError);

/// Applies what is missing, one migration a transaction, under sqlx's lock: several may try at once.
///
/// # Errors
/// Where the database is away, the role may not, or what is applied differs from what this build knows.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    Ok(MIGRATOR.run(pool).await?)
}

/// What to do where migrations are missing.
pub(crate) const HOW: &str = "apply them with `cargo dev migrate` (or the image `migrate`) and DATABASE_URL as their owner";

/// Nothing is applied yet.
fn all_missing() -> String {
    format!("the migrations: {HOW}")
}

/// What is missing for this build to work, as a sentence; `None` where all is applied.
pub(crate) async fn missing(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let applied: Vec<i64> = match sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(connection).await {
        Ok(applied) => applied,
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P01" | "42501")) => {
            return Ok(Some(all_missing()));
        }
        Err(error) => return Err(error),
    };
    let missing: Vec<String> = MIGRATOR.iter().filter(|m| !applied.contains(&m.version)).map(|m| m.version.to_string()).collect();
    Ok((!missing.is_empty()).then(|| format!("the migrations {}: {HOW}", missing.join(", "))))
}
