//! A service being put together, and served.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use actix_web::web::ServiceConfig;
use anyhow::Context;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use utoipa::openapi::OpenApi;

use crate::{
    Fault,
    health::Readiness,
    http::{
        position::Draining,
        server::{self, Operations},
    },
    settings::Common,
    supervise::Supervisor,
    telemetry::Metrics,
};

/// A service being put together: what it waits for, what works beside its requests, and at last its routes.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    settings: Common,
    metrics: Metrics,
    readiness: Readiness,
    background: Supervisor,
    stopping: CancellationToken,
}

impl Service {
    pub(crate) fn new(name: &'static str, settings: Common, metrics: Metrics, stopping: CancellationToken) -> Self {
        let readiness = Readiness::new(stopping.clone());
        Self { name, settings, metrics, readiness, background: Supervisor::default(), stopping }
    }

    /// The service's name, as in telemetry.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The settings every service has.
    #[must_use]
    pub fn settings(&self) -> &Common {
        &self.settings
    }

    /// Cancelled when a signal asks the process to stop; background tasks get their own, which is cancelled later,
    /// when the requests in hand are answered.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Makes `/ready` wait for a condition. Each request to `/ready` runs the check, which answers what it waits for and may take
    /// [`CHECK_TIMEOUT`](crate::CHECK_TIMEOUT).
    #[must_use]
    pub fn ready_when<F, Fut>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.readiness.add(name, check);
        self
    }

    /// Starts a task beside the requests. It runs until its token is cancelled and then finishes what it has in hand;
    /// where it ends or panics before, the process shuts down with exit code 1.
    #[must_use]
    pub fn background<F, Fut>(mut self, name: &'static str, task: F) -> Self
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        self.background.start(name, task);
        self
    }

    /// Serves the routes and the common ones until the process is asked to stop or a background task fails.
    ///
    /// `document` lists the routes; by it a wrong method is told from an unknown route. `routes` is called once in
    /// each HTTP worker.
    ///
    /// # Errors
    /// Where the port is taken, the server fails, or a background task ended.
    pub async fn serve<F>(self, document: OpenApi, routes: F) -> Result<(), Fault>
    where
        F: Fn(&mut ServiceConfig) + Clone + Send + 'static,
    {
        let address = SocketAddr::from((self.settings.bind_address, self.settings.port.as_u16()));
        let listener = TcpListener::bind(address).with_context(|| {
            format!(
                "cannot listen at {address}; the settings bind_address (CARTLOG_BIND_ADDRESS) and port (CARTLOG_PORT) \
                 choose another"
            )
        })?;
        self.serve_on(listener, document, routes).await
    }

    pub(crate) async fn serve_on<F>(mut self, listener: TcpListener, document: OpenApi, routes: F) -> Result<(), Fault>
    where
        F: Fn(&mut ServiceConfig) + Clone + Send + 'static,
    {
        let deadline = self.settings.shutdown_deadline_seconds.seconds();
        // Background tasks finish after the requests, which may need them, and get time of their own.
        let drain_deadline = deadline - (deadline / 4).min(Duration::from_secs(2));
        let address = listener.local_addr().context("the listener has no address")?;
        let operations = Operations { readiness: self.readiness, metrics: self.metrics };
        let draining = Draining::new(drain_deadline);
        let server = server::start(listener, &self.settings, drain_deadline, draining.clone(), operations, document, routes)?;
        let handle = server.handle();
        let mut server = tokio::spawn(server);
        info!(%address, "listening");

        let mut outcome = tokio::select! {
            () = self.stopping.cancelled() => Ok(()),
            fault = self.background.failure() => Err(fault),
            ended = &mut server => Err(match ended {
                Ok(Ok(())) => anyhow::anyhow!("the HTTP server ended by itself"),
                Ok(Err(error)) => Fault::new(error).context("the HTTP server failed"),
                Err(error) => Fault::new(error).context("the HTTP server failed"),
            }),
        };
        if let Err(fault) = &outcome {
            error!(error = format!("{fault:#}"), "stopping because of a fault");
        }
        // `/ready` answers 503 from here on.
        self.stopping.cancel();
        if outcome.is_ok() {
            // Whoever sends requests here has to notice first; a fault cuts that short.
            let delay = self.settings.shutdown_delay_seconds.seconds();
            if let Ok(fault) = timeout(delay, self.background.failure()).await {
                error!(error = format!("{fault:#}"), "a fault while stopping");
                outcome = Err(fault);
            }
        }
        let start = Instant::now();
        draining.begin();
        if !server.is_finished() && timeout(drain_deadline, handle.stop(true)).await.is_err() {
            warn!("requests in hand did not finish in time; they are cut off");
        }
        self.background.stop(deadline.saturating_sub(start.elapsed())).await;
        outcome
    }
}
