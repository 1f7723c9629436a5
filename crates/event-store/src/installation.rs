//! Whether roles, grants and settings are as the newest migration left them.

use std::fmt;

use opentelemetry::KeyValue;
use serde::Serialize;
use sqlx::PgConnection;

use crate::metrics::METRICS;

/// Something that is not as the newest migration left it, or a session that stops all appends.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Finding {
    /// The difference that was found.
    pub finding: String,
    /// The command that mends it.
    pub remedy: String,
    /// The role that holds the append lock while appends wait for it.
    #[serde(skip)]
    pub holder: Option<String>,
    /// How long appends have waited for it, in seconds.
    #[serde(skip)]
    pub waited: Option<f64>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.finding, self.remedy)
    }
}

/// The roles that can hold the append lock, and everybody else.
const ROLES: [&str; 6] =
    ["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher", "cartlog_operator", "other"];

/// Asks the database for everything that is wrong with it, and reports who holds the append lock as a metric.
pub(crate) async fn check(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let findings: Vec<Finding> =
        sqlx::query_as("SELECT finding, remedy, holder, waited FROM public.check_installation()").fetch_all(connection).await?;
    let holder =
        |finding: &Finding| finding.holder.clone().filter(|role| ROLES.contains(&role.as_str())).unwrap_or_else(|| "other".to_owned());
    for role in ROLES {
        // Also 0, so that the metric of a role that let go does not stay.
        let waited =
            findings.iter().filter(|finding| finding.waited.is_some() && holder(finding) == role).find_map(|finding| finding.waited);
        METRICS.append_lock_wait.record(waited.unwrap_or_default(), &[KeyValue::new("role", role)]);
    }
    Ok(findings)
}
