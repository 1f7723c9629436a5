//! Whether the service is ready for requests.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt, join, join_all};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    fault::Fault,
    http::{error::HttpError, error_code::ErrorCode},
    settings::Common,
};

/// How long a readiness check may take. Container platforms must give their probe a second more.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Checks that must hold for the service to be ready, and warnings for an operator although it is.
#[derive(Clone)]
pub(crate) struct Readiness {
    checks: Vec<(&'static str, Check)>,
    warnings: Vec<(&'static str, Check)>,
    stopping: CancellationToken,
}

/// The message of each check that failed, by its name.
pub(crate) type Reasons = BTreeMap<&'static str, String>;

impl Readiness {
    /// Is ready until checks are added or `stopping` is cancelled.
    pub(crate) fn new(stopping: CancellationToken) -> Self {
        Self { checks: vec![], warnings: vec![], stopping }
    }

    pub(crate) fn add<F, Fut>(&mut self, name: &'static str, check: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push((name, Arc::new(move || check().boxed())));
    }

    /// Adds a check that does not make the service unready.
    pub(crate) fn warn<F, Fut>(&mut self, name: &'static str, check: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.warnings.push((name, Arc::new(move || check().boxed())));
    }

    /// Runs all checks at once, and answers the warnings.
    ///
    /// # Errors
    /// 503 that lists what the service waits for, and the warnings.
    pub(crate) async fn check(&self) -> Result<Reasons, HttpError> {
        if self.stopping.is_cancelled() {
            return Err(not_ready("shutting down"));
        }
        let (waiting, warnings) = join(failing(&self.checks), failing(&self.warnings)).await;
        if waiting.is_empty() {
            return Ok(warnings);
        }
        let sentence = |reasons: &Reasons| reasons.iter().map(|(name, reason)| format!("{name}: {reason}")).collect::<Vec<_>>().join("; ");
        let mut message = format!("waiting for: {}", sentence(&waiting));
        if !warnings.is_empty() {
            message += &format!(". Warnings: {}", sentence(&warnings));
        }
        Err(not_ready(message))
    }
}

async fn failing(checks: &[(&'static str, Check)]) -> Reasons {
    let outcomes = checks.iter().map(|(name, check)| async move {
        let reason = match timeout(CHECK_TIMEOUT, check()).await {
            Ok(outcome) => outcome.err()?,
            Err(_) => format!("no answer within {} seconds", CHECK_TIMEOUT.as_secs()),
        };
        Some((*name, reason))
    });
    join_all(outcomes).await.into_iter().flatten().collect()
}

/// Asks the process that serves with these settings whether it is ready. A container's health check runs this, because the image has no
/// other HTTP client.
///
/// # Errors
/// If it does not answer or is not ready.
pub(crate) fn ask(settings: &Common) -> Result<(), Fault> {
    let address = match settings.bind_address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    let url = format!("http://{}/ready", SocketAddr::new(address, settings.port.as_u16()));
    let client = reqwest::blocking::Client::builder().no_proxy().timeout(CHECK_TIMEOUT + Duration::from_secs(1)).build()?;
    let answer = client.get(&url).send()?;
    let status = answer.status();
    anyhow::ensure!(status.is_success(), "{url} answers {status}: {}", answer.text().unwrap_or_default());
    Ok(())
}

fn not_ready(message: impl Into<String>) -> HttpError {
    HttpError::new(ErrorCode::NotReady, message)
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}
