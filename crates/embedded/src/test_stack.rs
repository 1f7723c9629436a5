//! PostgreSQL and Kafka for tests, on free ports, in a directory of their own.

use std::fs::File;
use std::path::PathBuf;

use crate::distribution;
use crate::error::Error;
use crate::files;
use crate::kafka::Kafka;
use crate::layout::Layout;
use crate::orphans;
use crate::postgres::{self, Postgres};
use crate::report::Report;
use crate::signals::Signals;

/// PostgreSQL and Kafka for tests, empty at the start. Several may run beside each other.
#[derive(Debug)]
pub struct TestStack {
    postgres: Postgres,
    kafka: Kafka,
    layout: Layout,
    directory: PathBuf,
    // Keeps the directory ours.
    _lock: File,
}

impl TestStack {
    /// Starts both servers on free ports.
    ///
    /// # Errors
    /// One does not come up.
    pub async fn start(layout: &Layout, report: &Report) -> Result<Self, Error> {
        let (directory, lock) = layout.claim_test()?;
        orphans::end(&directory.join("logs"), report).await?;
        postgres::remove_data(layout, &directory).await?;
        files::remove(&directory)?;
        files::create_directory(&directory)?;
        let postgres = async {
            let distribution = distribution::postgres(layout, report).await?;
            Postgres::start_on_free_port(layout, &distribution, &directory).await
        };
        let kafka = async {
            let distribution = distribution::kafka(layout, report).await?;
            Kafka::start_on_free_ports(&distribution, &directory).await
        };
        let (postgres, kafka) = tokio::try_join!(postgres, kafka)?;
        Ok(Self { postgres, kafka, layout: layout.clone(), directory, _lock: lock })
    }

    /// The same, while something is built. A signal ends both, and leaves no server behind.
    ///
    /// # Errors
    /// One does not come up, the building's, and that a signal came.
    pub async fn start_beside<T>(
        layout: &Layout,
        report: &Report,
        building: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, Self), Error> {
        let mut signals = Signals::listen()?;
        tokio::select! {
            both = async { tokio::try_join!(building, Self::start(layout, report)) } => both,
            () = signals.next() => Err(Error::Interrupted),
        }
    }

    /// The superuser's URL of the database `postgres`.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.url_of("postgres")
    }

    /// The superuser's URL of a database.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        self.postgres.url("postgres", database)
    }

    /// The server, to be stopped and started again.
    #[must_use]
    pub fn postgres(&mut self) -> &mut Postgres {
        &mut self.postgres
    }

    /// Where the servers write their logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// What clients of the broker need.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.kafka.bootstrap_servers()
    }

    /// Kills both and removes their data; the logs stay.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub async fn end(mut self) -> Result<(), Error> {
        // Nothing is to be kept, so nothing needs an orderly end.
        self.kafka.kill().await?;
        self.postgres.kill().await?;
        files::remove(&self.directory.join("kafka"))?;
        postgres::remove_data(&self.layout, &self.directory).await
    }
}
