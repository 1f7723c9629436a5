//! Timeouts for database work.

use std::time::Duration;

use crate::error::StoreError;

/// How long a statement that reads may go unanswered. After this the server counts as frozen or gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs database work with the timeout of a read: 5 seconds.
///
/// # Errors
/// The work's own error, or [`StoreError::NoAnswer`].
pub async fn with_timeout<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    with_timeout_of(ANSWER_TIMEOUT, work).await
}

/// Runs database work with a timeout.
///
/// # Errors
/// The work's own error, or [`StoreError::NoAnswer`].
pub async fn with_timeout_of<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(StoreError::NoAnswer(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_without_an_answer_is_not_blamed_on_the_pool() {
        let outcome = with_timeout_of(Duration::from_millis(20), std::future::pending::<Result<(), sqlx::Error>>()).await;
        let error = outcome.unwrap_err();
        assert!(error.is_unavailable());
        assert_eq!(error.to_string(), "the database did not answer within 20 ms");
    }
}
