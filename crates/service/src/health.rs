//! Whether the process is alive, and whether it is ready for requests.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt, join_all};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::HttpError;

/// The time a single check has.
const CHECK_DEADLINE: Duration = Duration::from_secs(2);

type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What must hold for the service to be ready.
#[derive(Clone)]
pub(crate) struct Readiness {
    checks: Vec<(&'static str, Check)>,
    stopping: CancellationToken,
}

impl Readiness {
    /// Ready, until checks are added or `stopping` is cancelled.
    pub(crate) fn new(stopping: CancellationToken) -> Self {
        Self { checks: Vec::new(), stopping }
    }

    pub(crate) fn add<F, Fut>(&mut self, name: &'static str, check: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push((name, Arc::new(move || check().boxed())));
    }

    /// Runs every check, side by side.
    ///
    /// # Errors
    /// 503 naming everything that is waited for.
    pub(crate) async fn check(&self) -> Result<(), HttpError> {
        if self.stopping.is_cancelled() {
            return Err(not_ready("shutting down"));
        }
        let outcomes = join_all(self.checks.iter().map(|(name, check)| async move {
            match timeout(CHECK_DEADLINE, check()).await {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some(format!("{name}: {reason}")),
                Err(_) => Some(format!("{name}: no answer within {} seconds", CHECK_DEADLINE.as_secs())),
            }
        }))
        .await;
        let waiting: Vec<String> = outcomes.into_iter().flatten().collect();
        if waiting.is_empty() { Ok(()) } else { Err(not_ready(format!("waiting for: {}", waiting.join("; ")))) }
    }
}

fn not_ready(message: impl Into<String>) -> HttpError {
    HttpError::unavailable(message).code("not_ready")
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}
