//! A service: what it waits for, what runs in its background, and the data that its routes use.

use std::{
    fmt,
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::web::Data;
use anyhow::Context;
use event_store::{EventStore, LogEvent, SessionTimeouts, StoreSettings};
use projections::{Automation, Projection, Projections, rebuild};
use sqlx::postgres::PgConnectOptions;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use utoipa::openapi::OpenApi;

use crate::{
    fault::Fault,
    health::Readiness,
    http::{
        common::{Operations, Routes},
        lag,
        live::Changes,
        position::Draining,
        server,
    },
    settings::Common,
    supervise::Supervisor,
    telemetry::Metrics,
};

/// How old an answer of the database may be that `/ready` warns from. It takes some milliseconds.
const FRESH: Duration = Duration::from_secs(10);

/// Adds data to an application.
type AddData = Arc<dyn Fn(&mut Routes<'_>) + Send + Sync>;

/// A service that is being put together.
pub struct Service {
    name: &'static str,
    settings: Common,
    metrics: Metrics,
    readiness: Readiness,
    background: Supervisor,
    data: Vec<AddData>,
    stopping: CancellationToken,
}

impl Service {
    pub(crate) fn new(name: &'static str, settings: Common, metrics: Metrics, stopping: CancellationToken) -> Self {
        let readiness = Readiness::new(stopping.clone());
        Self { name, settings, metrics, readiness, background: Supervisor::default(), data: vec![], stopping }
    }

    /// Answers the service's name, as in telemetry.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Answers the settings of every service.
    #[must_use]
    pub fn settings(&self) -> &Common {
        &self.settings
    }

    /// Answers a token that is cancelled when a signal asks the process to stop. Background tasks get a token of their own, which is
    /// cancelled later, when the running requests are answered.
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

    /// Makes `/ready` show a warning while a check fails. The service stays ready: it does its work, but an operator should act, for
    /// example on a blocked segment or partition. The check may take [`CHECK_TIMEOUT`](crate::CHECK_TIMEOUT).
    #[must_use]
    pub fn warn_when<F, Fut>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.readiness.warn(name, check);
        self
    }

    /// Starts a background task. It runs until its token is cancelled, then finishes its work. If it ends or panics before, the process
    /// stops with exit code 1.
    #[must_use]
    pub fn background<F, Fut>(mut self, name: &'static str, task: F) -> Self
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        self.background.start(name, task);
        self
    }

    /// Gives handlers a value, as [`Data`].
    #[must_use]
    pub fn data<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        let data = Data::new(value);
        self.data.push(Arc::new(move |app| {
            app.app_data(data.clone());
        }));
        self
    }

    /// Opens the log that the settings name. `/ready` waits for the log, and warns of what differs from what the migrations left.
    /// Handlers get the log as [`Data`], and streams of read models follow it. A connection is made when it is first needed.
    ///
    /// # Errors
    /// If the URL cannot be read; the settings have checked it.
    pub fn with_log<E: LogEvent>(self) -> Result<(Self, EventStore<E>), Fault> {
        self.with_log_in(SessionTimeouts::default())
    }

    /// Opens the log as [`with_log`](Self::with_log) does, with these timeouts of the server.
    ///
    /// # Errors
    /// As there.
    pub fn with_log_in<E: LogEvent>(self, timeouts: SessionTimeouts) -> Result<(Self, EventStore<E>), Fault> {
        let mut options: PgConnectOptions = self.settings.database_url.expose().parse()?;
        if let Some(password) = self.settings.database_password_file.expose() {
            options = options.password(password);
        }
        let settings = StoreSettings {
            max_connections: self.settings.database_max_connections.as_u32(),
            command_timeout: self.settings.command_timeout_milliseconds.milliseconds(),
            state_cache_bytes: self.settings.state_cache_megabytes.as_usize() * 1_000_000,
            timeouts,
            ..StoreSettings::default()
        };
        let log = EventStore::<E>::new(options, settings);
        let (ready, installed) = (log.clone(), log.clone());
        let installation = Arc::new(
            lag::Cached::new(move || {
                let log = installed.clone();
                async move { log.check_installation().await }
            })
            .fresh_for(FRESH),
        );
        let service = self
            .data(log.clone())
            .data(Changes::of(&log))
            .ready_when("log", move || {
                let log = ready.clone();
                async move { log.ready().await }
            })
            .warn_when("installation", move || {
                let installation = installation.clone();
                async move {
                    match installation.get().await {
                        Ok(findings) if findings.is_empty() => Ok(()),
                        Ok(findings) => Err(findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
                        // The check "log" says why the database does not answer.
                        Err(_) => Ok(()),
                    }
                }
            });
        Ok((service, log))
    }

    /// Prepares the runtime of projections over a log. Handlers get it as [`Data`], and [`lag::route`] answers from it. `/ready` warns of
    /// blocked segments, parked keys and failed to-dos.
    #[must_use]
    pub fn with_projections<E: LogEvent>(self, log: &EventStore<E>) -> (Self, Projections<E>) {
        let projections = Projections::new(log.clone());
        let backlogs = Arc::new(lag::of(&projections).fresh_for(FRESH));
        let service = self.data(projections.clone()).data(lag::of(&projections)).warn_when("projections", move || {
            let backlogs = backlogs.clone();
            async move {
                // The check "log" says why the database does not answer.
                let warnings = backlogs.get().await.map(|lag| lag.warnings()).unwrap_or_default();
                if warnings.is_empty() { Ok(()) } else { Err(format!("{}; `cartctl status` says more", warnings.join(", "))) }
            }
        });
        (service, projections)
    }

    /// Runs a projection in the background. `/ready` waits until it is registered, because its read model cannot answer before, and fails
    /// while this process does not do its work. With `is_rebuilt` it is rebuilt first.
    #[must_use]
    pub fn projection<P: Projection>(
        self,
        projections: &Projections<P::Log>,
        settings: &projections::Settings,
        projection: P,
        is_rebuilt: bool,
    ) -> Self {
        let (service, settings, projections) = (self.ready_when_working::<P>(projections), settings.clone(), projections.clone());
        service.background(P::NAME, move |shutdown: CancellationToken| async move {
            while is_rebuilt && projections.store().wait_ready(&shutdown).await.is_ok() {
                match rebuild::<P>(projections.store().pool()).await {
                    Err(error) if error.is_unavailable() => warn!(projection = P::NAME, %error, "rebuild delayed"),
                    outcome => {
                        outcome?;
                        break;
                    }
                }
            }
            Ok(projections.run(projection, settings, shutdown).await?)
        })
    }

    /// Runs an automation in the background. `/ready` waits until it is registered, and fails while this process does not do its work.
    #[must_use]
    pub fn automation<A: Automation>(self, projections: &Projections<A::Log>, settings: &projections::Settings, automation: A) -> Self {
        let running = projections.clone();
        let settings = settings.clone();
        self.ready_when_working::<A>(projections).background(A::NAME, move |shutdown: CancellationToken| async move {
            Ok(running.run_automation(automation, settings, shutdown).await?)
        })
    }

    fn ready_when_working<P: Projection>(self, projections: &Projections<P::Log>) -> Self {
        let projections = projections.clone();
        self.ready_when(P::NAME, move || std::future::ready(projections.working(P::NAME)))
    }

    /// Tells whether a background task of this name was started.
    pub(crate) fn has_background(&self, name: &str) -> bool {
        self.background.has(name)
    }

    /// Serves the routes until the process is asked to stop or a background task fails. `document` tells a wrong method from an unknown
    /// route. `routes` is called once in each HTTP worker.
    ///
    /// # Errors
    /// If the port is taken, the server fails, or a background task ends.
    pub(crate) async fn serve<F>(self, document: OpenApi, routes: F) -> Result<(), Fault>
    where
        F: Fn(&mut Routes<'_>) + Clone + Send + 'static,
    {
        let address = SocketAddr::from((self.settings.bind_address, self.settings.port.as_u16()));
        let listener = TcpListener::bind(address).with_context(|| {
            format!("cannot listen on {address}; choose another with bind_address (CARTLOG_BIND_ADDRESS) and port (CARTLOG_PORT)")
        })?;
        self.serve_on(listener, document, routes).await
    }

    pub(crate) async fn serve_on<F>(mut self, listener: TcpListener, document: OpenApi, routes: F) -> Result<(), Fault>
    where
        F: Fn(&mut Routes<'_>) + Clone + Send + 'static,
    {
        let deadline = self.settings.shutdown_deadline_seconds.seconds();
        // Background tasks stop after the requests, which may need them, and have time of their own.
        let drain_deadline = deadline - (deadline / 4).min(Duration::from_secs(2));
        let address = listener.local_addr().context("the listener has no address")?;
        let draining = Draining::new(drain_deadline);
        let operations = Operations { readiness: self.readiness, metrics: self.metrics, draining: draining.clone() };
        let data = self.data;
        let routes = move |app: &mut Routes<'_>| {
            data.iter().for_each(|add| add(app));
            routes(app);
        };
        let server = server::start(listener, &self.settings, drain_deadline, operations, &document, routes)?;
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
            error!(error = format!("{fault:#}"), "stopping after a fault");
        }
        // From here on `/ready` answers 503.
        self.stopping.cancel();
        if outcome.is_ok() {
            // The proxy must notice before connections are refused. A fault cuts this short.
            let delay = self.settings.shutdown_delay_seconds.seconds();
            if let Ok(fault) = timeout(delay, self.background.failure()).await {
                error!(error = format!("{fault:#}"), "fault while stopping");
                outcome = Err(fault);
            }
        }
        let start = Instant::now();
        draining.begin();
        if !server.is_finished() && timeout(drain_deadline, handle.stop(true)).await.is_err() {
            warn!("requests cut off at the deadline");
        }
        self.background.stop(deadline.saturating_sub(start.elapsed())).await;
        outcome
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("name", &self.name).field("readiness", &self.readiness).finish_non_exhaustive()
    }
}
