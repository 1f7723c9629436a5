//! A service that is killed, frozen and started again. Each start has its own log.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use embedded::error::{Error, chain};
use embedded::ports;
use shop::services::{Kind, Service, Settings};

/// Longer than a service's own shutdown deadline.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Actor {
    kind: Kind,
    name: String,
    settings: Settings,
    logs: PathBuf,
    /// None if it was killed or stopped, or has ended.
    service: Option<Service>,
    is_frozen: bool,
    lives: u32,
    port: Arc<AtomicU16>,
}

impl Actor {
    pub(super) fn new(
        kind: Kind,
        name: String,
        programs: &Path,
        logs: &Path,
        database_url: String,
        environment: Vec<(String, String)>,
    ) -> Self {
        let kafka_bootstrap_servers = environment.iter().find(|(name, _)| name == "KAFKA_BOOTSTRAP_SERVERS");
        let kafka_bootstrap_servers = kafka_bootstrap_servers.map(|(_, servers)| servers.clone()).unwrap_or_default();
        let settings = Settings { database_url, environment, kafka_bootstrap_servers, ..Settings::new(kind, programs, logs, 0) };
        Self { kind, name, settings, logs: logs.to_owned(), service: None, is_frozen: false, lives: 0, port: Arc::default() }
    }

    /// The port of its current start.
    pub(super) fn port(&self) -> Arc<AtomicU16> {
        self.port.clone()
    }

    /// Starts it again, and returns the path of its log.
    pub(super) fn start(&mut self) -> Result<PathBuf, Error> {
        // A new port, because another process may have taken the old one.
        let [port] = ports::free([None])?;
        self.lives += 1;
        self.settings.port = port;
        self.settings.log = self.logs.join(format!("{}-{:03}.log", self.name, self.lives));
        self.service = Some(Service::start(self.kind, self.settings.clone())?);
        self.port.store(port, Ordering::Relaxed);
        Ok(self.settings.log.clone())
    }

    pub(super) async fn until_ready(&mut self, deadline: Duration) -> Result<(), Error> {
        match &mut self.service {
            Some(service) => service.until_ready(deadline).await,
            None => Ok(()),
        }
    }

    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        match self.service.take() {
            Some(mut service) => service.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// Stops it, and returns how it ended.
    pub(super) async fn stop(&mut self) -> Result<ExitStatus, Error> {
        match self.service.take() {
            Some(mut service) => service.stop(STOP_DEADLINE).await,
            None => Ok(ExitStatus::default()),
        }
    }

    pub(super) fn freeze(&mut self) -> Result<(), Error> {
        self.is_frozen = true;
        self.service.as_mut().map_or(Ok(()), |service| service.process().freeze())
    }

    pub(super) fn thaw(&mut self) -> Result<(), Error> {
        self.is_frozen = false;
        self.service.as_mut().map_or(Ok(()), |service| service.process().thaw())
    }

    pub(super) fn is_running(&mut self) -> Result<bool, Error> {
        match &mut self.service {
            Some(service) => Ok(service.process().exited()?.is_none()),
            None => Ok(false),
        }
    }

    /// Tells whether it runs and is not frozen.
    pub(super) fn is_well(&mut self) -> Result<bool, Error> {
        Ok(!self.is_frozen && self.is_running()?)
    }

    /// Returns its last words if it has ended unexpectedly, once for each end.
    pub(super) fn ended_by_itself(&mut self) -> Result<Option<String>, Error> {
        let Some(service) = &mut self.service else { return Ok(None) };
        let Some(status) = service.process().exited()? else { return Ok(None) };
        let said = chain(&service.process().ended(status));
        self.service = None;
        Ok(Some(format!("{} ended unexpectedly: {said}", self.name)))
    }
}
