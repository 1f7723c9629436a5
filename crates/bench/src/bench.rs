//! Starts services on the bench's own databases.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use embedded::ports;
use shop::services::{Kind, Service, Settings};

use crate::{
    database::{Database, Server},
    sizes::Sizes,
};

/// The servers, programs and sizes of a run, which every scenario uses.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) kafka: Option<String>,
    pub(crate) sizes: Sizes,
    pub(crate) programs: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) screen: embedded::report::Report,
}

impl Bench {
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        self.screen.say(text);
    }

    /// Starts a service as it is deployed, on a database of the bench, and waits until it is ready.
    pub(crate) async fn start(
        &self,
        kind: Kind,
        name: &str,
        database: &Database,
        mut environment: Vec<(String, String)>,
    ) -> Result<Service> {
        let [port] = ports::free([None])?;
        // Logs are JSON, as in a deployment.
        environment.push(("CARTLOG_LOG_FORMAT".to_owned(), "json".to_owned()));
        let settings = Settings {
            database_url: database.url_as(kind.role)?,
            environment,
            log: self.logs.join(format!("bench-{}-{name}.log", kind.name)),
            ..Settings::new(kind, &self.programs, &self.logs, port)
        };
        let mut service = Service::start(kind, settings)?;
        service.until_ready(Duration::from_secs(60)).await?;
        Ok(service)
    }
}

/// Kills services. The next scenario uses a new database, so nothing has to be finished.
pub(crate) async fn kill(services: Vec<Service>) -> Result<()> {
    for mut service in services {
        service.kill().await?;
    }
    Ok(())
}
