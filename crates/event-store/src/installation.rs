//! Whether roles, grants and settings are as the newest migration left them.

use std::fmt;

use opentelemetry::KeyValue;
use serde::Serialize;
use sqlx::PgConnection;

use crate::metrics::METRICS;

/// Something that is not as the newest migration left it, or a session that keeps others waiting for a lock.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Finding {
    /// The difference that was found.
    pub finding: String,
    /// The command that mends it.
    pub remedy: String,
    /// The role that holds a lock while others wait for it.
    #[serde(skip)]
    pub holder: Option<String>,
    /// That lock: `append` or `other`.
    #[serde(skip)]
    pub lock: Option<String>,
    /// How long others have waited for it, in seconds.
    #[serde(skip)]
    pub waited: Option<f64>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.finding, self.remedy)
    }
}

/// The roles that can hold a lock, and everybody else.
const ROLES: [&str; 6] =
    ["cartlog_commands", "cartlog_translator", "cartlog_projections", "cartlog_publisher", "cartlog_operator", "other"];

/// Asks the database for everything that is wrong with it, and reports who holds its locks as a metric.
pub(crate) async fn check(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let checked =
        sqlx::query_as("SELECT finding, remedy, holder, lock, waited FROM public.check_installation()").fetch_all(connection).await;
    // Without an answer nobody is known to wait.
    let findings: &[Finding] = checked.as_deref().unwrap_or_default();
    for (lock, role) in ["append", "other"].into_iter().flat_map(|lock| ROLES.map(|role| (lock, role))) {
        // Also 0, so that the metric of a role that let go does not stay.
        METRICS.lock_wait.record(longest(findings, lock, role), &[KeyValue::new("role", role), KeyValue::new("lock", lock)]);
    }
    checked
}

/// Returns how long others have waited for a role's lock, in seconds. Zero if they do not wait.
fn longest(findings: &[Finding], lock: &str, role: &str) -> f64 {
    let holder = |finding: &Finding| finding.holder.as_deref().filter(|name| ROLES.contains(name)).unwrap_or("other") == role;
    let waits = findings.iter().filter(|finding| finding.lock.as_deref() == Some(lock) && holder(finding));
    waits.filter_map(|finding| finding.waited).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_wait_is_found_by_lock_and_role() {
        let found = |holder: Option<&str>, lock: Option<&str>, waited| Finding {
            finding: String::new(),
            remedy: String::new(),
            holder: holder.map(str::to_owned),
            lock: lock.map(str::to_owned),
            waited,
        };
        let findings = [
            found(None, None, None),
            found(Some("cartlog_publisher"), Some("append"), Some(4.0)),
            found(Some("cartlog_publisher"), Some("append"), Some(7.0)),
            found(Some("cartlog_publisher"), Some("other"), Some(5.0)),
            found(Some("postgres"), Some("other"), Some(6.0)),
        ];
        assert_eq!(longest(&findings, "append", "cartlog_publisher"), 7.0);
        assert_eq!(longest(&findings, "other", "cartlog_publisher"), 5.0);
        assert_eq!(longest(&findings, "other", "other"), 6.0);
        assert_eq!(longest(&findings, "append", "cartlog_commands"), 0.0);
    }
}
