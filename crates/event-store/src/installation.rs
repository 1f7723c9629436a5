//! Whether roles, grants and settings are as the newest migration left them.

use std::fmt;

use serde::Serialize;
use sqlx::PgConnection;

/// Something that is not as the newest migration left it, or a session that stops all appends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Finding {
    /// The difference that was found.
    pub finding: String,
    /// The command that mends it.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.finding, self.remedy)
    }
}

/// Asks the database for everything that is wrong with it.
pub(crate) async fn check(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    sqlx::query_as("SELECT finding, remedy FROM public.check_installation()").fetch_all(connection).await
}
