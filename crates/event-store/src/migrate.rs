//! Migrations. `cargo dev migrate` or the image `migrate` applies them; a service never does.

use sqlx::{PgConnection, PgPool, migrate::Migrator};

/// The migrations that this build contains.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// A migration could not be applied.
#[derive(Debug, thiserror::Error)]
#[error("the migrations could not be applied: {0}")]
pub struct MigrateError(#[from] sqlx::migrate::MigrateError);

/// Applies the missing migrations, each in its own transaction. sqlx's lock makes it safe to run several at once.
///
/// # Errors
/// If the database is unreachable, the role may not create tables, or an applied migration differs from this build's.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    Ok(MIGRATOR.run(pool).await?)
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
