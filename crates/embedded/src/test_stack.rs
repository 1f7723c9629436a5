//! PostgreSQL and Kafka for tests, on free ports, in their own directory.

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

/// PostgreSQL and Kafka for tests, empty at the start. Several can run at once.
#[derive(Debug)]
pub struct TestStack {
    postgres: Postgres,
    kafka: Kafka,
    layout: Layout,
    directory: PathBuf,
    // Keeps others out of the directory.
    _lock: File,
}

impl TestStack {
    /// Starts both servers on free ports.
    ///
    /// # Errors
    /// A server does not start.
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

    /// Starts both servers while something is built. A signal stops both and leaves no server behind.
    ///
    /// # Errors
    /// A server does not start, the build fails, or a signal came.
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

    /// The PostgreSQL server.
    #[must_use]
    pub fn postgres(&mut self) -> &mut Postgres {
        &mut self.postgres
    }

    /// The directory of the servers' logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// The `bootstrap.servers` for clients.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.kafka.bootstrap_servers()
    }

    /// Kills both and removes their data. The logs stay.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn end(mut self) -> Result<(), Error> {
        // Nothing is kept, so nothing needs an orderly stop.
        self.kafka.kill().await?;
        self.postgres.kill().await?;
        files::remove(&self.directory.join("kafka"))?;
        postgres::remove_data(&self.layout, &self.directory).await
    }
}
