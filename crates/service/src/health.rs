//! Whether the service is ready for requests.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt, join_all};
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

/// What must hold for the service to be ready.
#[derive(Clone)]
pub(crate) struct Readiness {
    checks: Vec<(&'static str, Check)>,
    stopping: CancellationToken,
}

impl Readiness {
    /// Is ready until checks are added or `stopping` is cancelled.
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

    /// Runs all checks at once.
    ///
    /// # Errors
    /// 503 that lists what the service waits for.
    pub(crate) async fn check(&self) -> Result<(), HttpError> {
        if self.stopping.is_cancelled() {
            return Err(not_ready("shutting down"));
        }
        let outcomes = join_all(self.checks.iter().map(|(name, check)| async move {
            match timeout(CHECK_TIMEOUT, check()).await {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some(format!("{name}: {reason}")),
                Err(_) => Some(format!("{name}: no answer within {} seconds", CHECK_TIMEOUT.as_secs())),
            }
        }))
        .await;
        let waiting: Vec<String> = outcomes.into_iter().flatten().collect();
        if waiting.is_empty() { Ok(()) } else { Err(not_ready(format!("waiting for: {}", waiting.join("; ")))) }
    }
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
