//! Passwords of the roles, from files.

use std::path::{Path, PathBuf};

use sqlx::PgPool;

use crate::failure::Failure;

/// Reads the password of each role from a directory with one file a role: `commands_password` for `cartlog_commands`, and so on. Returns the
/// statements that set them.
///
/// A statement contains the verifier that the server stores, not the password: a server may log its statements.
///
/// # Errors
/// If a file is missing, cannot be read or is empty.
pub(crate) fn statements(directory: &Path) -> Result<Vec<String>, Failure> {
    let of = |role: &str| {
        let path: PathBuf = directory.join(format!("{role}_password"));
        let password = event_store::read_password(&path).map_err(|error| Failure::RolePassword(path.display().to_string(), error))?;
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        Ok(format!("ALTER ROLE cartlog_{role} PASSWORD '{verifier}'"))
    };
    ["commands", "translator", "projections", "publisher", "operator"].into_iter().map(of).collect()
}

/// Sets the passwords.
///
/// # Errors
/// If the database refuses it.
pub(crate) async fn set(pool: &PgPool, statements: &[String]) -> Result<(), Failure> {
    for statement in statements {
        sqlx::raw_sql(statement).execute(pool).await.map_err(Failure::Password)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn no_statement_contains_a_password() {
        let directory = std::env::temp_dir().join(format!("cartlog-passwords-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for role in ["commands", "translator", "projections", "publisher", "operator"] {
            std::fs::write(directory.join(format!("{role}_password")), "hunter2hunter2\n").unwrap();
        }
        let all = statements(&directory).unwrap();
        assert!(
            all.iter().all(|statement| statement.contains(" PASSWORD 'SCRAM-SHA-256$4096:") && !statement.contains("hunter2")),
            "{all:?}"
        );
        std::fs::write(directory.join("operator_password"), "").unwrap();
        let missing = statements(&directory).unwrap_err().to_string();
        assert!(missing.contains("operator_password"), "{missing}");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
