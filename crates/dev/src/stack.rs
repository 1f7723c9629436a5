//! The whole system on this machine: PostgreSQL, Kafka, topics, migrations and services, started and stopped in order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{join_all, select_all, try_join_all};
use serde::{Deserialize, Serialize};

use crate::cargo::{self, PROGRAMS};
use crate::settings::Settings;
use crate::state::{Up, UpServer, UpService};
use embedded::database;
use embedded::distribution;
use embedded::error::{Context, Error};
use embedded::files;
use embedded::kafka::{self, Kafka};
use embedded::layout::Layout;
use embedded::ports;
use embedded::postgres::Postgres;
use embedded::process::Process;
use embedded::report::Report;
use shop::services::{self, Kind, Service};
use shop::topics;

/// On a busy machine a service takes long to become ready.
const READY_DEADLINE: Duration = Duration::from_secs(180);
/// The time after a service's own shutdown deadline until it is killed.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The running parts of the system. A start fills it step by step, so that an interrupted start can be stopped in order.
#[derive(Debug)]
pub struct Stack {
    layout: Layout,
    settings: Settings,
    report: Report,
    postgres: Option<Postgres>,
    kafka: Option<Kafka>,
    services: Vec<Service>,
}

impl Stack {
    /// Makes a stack of which nothing runs.
    #[must_use]
    pub fn new(layout: Layout, settings: Settings, report: Report) -> Self {
        Self { layout, settings, report, postgres: None, kafka: None, services: Vec::new() }
    }

    /// Builds and starts everything, and waits until it is ready.
    ///
    /// # Errors
    /// A program does not compile, or something does not start. What has started still runs and needs [`stop`](Self::stop).
    pub async fn start(&mut self, release: bool) -> Result<Up, Error> {
        let directory = self.layout.stack();
        let remembered = Ports::read(&directory);
        let [postgres, kafka, controller] = ports::free([remembered.postgres, remembered.kafka, remembered.kafka_controller])?;
        Ports { postgres: Some(postgres), kafka: Some(kafka), kafka_controller: Some(controller) }.write(&directory)?;

        let (layout, report, settings) = (&self.layout, &self.report, &self.settings);
        let build = async {
            report.say("building the services and cartctl");
            let programs = cargo::build(layout, &PROGRAMS, release).await?;
            report.say("the services and cartctl are built");
            Ok(programs)
        };
        let (programs, database_url, bootstrap_servers) = tokio::try_join!(
            build,
            start_database(layout, settings, postgres, &mut self.postgres, report),
            start_kafka(layout, settings, [kafka, controller], &mut self.kafka, report),
        )?;
        self.start_services(&programs, &database_url, &bootstrap_servers).await?;
        Ok(self.whereabouts(database_url, bootstrap_servers, programs.join("cartctl")))
    }

    async fn start_services(&mut self, programs: &Path, database_url: &str, bootstrap_servers: &str) -> Result<(), Error> {
        self.report.say("starting the services");
        let logs = self.logs();
        for (kind, port) in self.settings.services() {
            let mut settings = services::Settings::new(kind, programs, &logs, port);
            settings.database_url = self.database_url_of(kind, database_url).await;
            settings.kafka_bootstrap_servers = bootstrap_servers.to_owned();
            self.services.push(Service::start(kind, settings)?);
        }
        let report = self.report;
        try_join_all(self.services.iter_mut().map(|service| async move {
            service.until_ready(READY_DEADLINE).await?;
            report.say(format!("{} is ready", service.kind().name));
            Ok(())
        }))
        .await
        .map(drop)
    }

    /// The database URL with the service's role; with the owner if the server wants a password for the role.
    async fn database_url_of(&self, kind: Kind, owner_url: &str) -> String {
        match database::for_role(owner_url, kind.role) {
            Some(url) if self.postgres.is_some() || database::lets_in(&url).await => url,
            _ => {
                let name = kind.name;
                let role = kind.role;
                self.report.say(format!("{name} uses the user of DATABASE_URL, because the server wants a password for {role}"));
                owner_url.to_owned()
            }
        }
    }

    fn logs(&self) -> PathBuf {
        self.layout.stack().join("logs")
    }

    fn whereabouts(&self, database_url: String, bootstrap_servers: String, cartctl: PathBuf) -> Up {
        let logs = self.logs();
        let service = |service: &Service| UpService {
            name: service.kind().name.to_owned(),
            variable: service.kind().variable.to_owned(),
            url: service.url(),
            log: logs.join(format!("{}.log", service.kind().name)),
        };
        Up {
            services: self.services.iter().map(service).collect(),
            database: UpServer { address: database_url, log: self.postgres.is_some().then(|| logs.join("postgres.log")) },
            cartctl,
            kafka: UpServer { address: bootstrap_servers, log: self.kafka.is_some().then(|| logs.join("kafka.log")) },
        }
    }

    /// Waits until a process ends unexpectedly, and returns the error. Cancel safe.
    pub async fn failure(&mut self) -> Error {
        let processes: Vec<&mut Process> = self.processes();
        if processes.is_empty() {
            return std::future::pending().await;
        }
        let ends = processes.into_iter().map(|process| {
            async move {
                match process.wait().await {
                    Ok(status) => process.ended(status),
                    Err(error) => error,
                }
            }
            .boxed()
        });
        select_all(ends).await.0
    }

    /// Stops everything: all services together, then Kafka, then PostgreSQL.
    ///
    /// # Errors
    /// The operating system refuses. The rest is stopped nevertheless.
    pub async fn stop(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        if !self.services.is_empty() {
            self.report.say("stopping the services");
            let deadline = self.settings.shutdown_deadline() + STOP_MARGIN;
            let stops = self.services.iter_mut().map(|service| service.stop(deadline));
            result = join_all(stops).await.into_iter().try_for_each(|stopped| stopped.map(drop));
        }
        if let Some(kafka) = &mut self.kafka {
            self.report.say("stopping Kafka");
            result = result.and(kafka.stop().await);
        }
        if let Some(postgres) = &mut self.postgres {
            self.report.say("stopping PostgreSQL");
            result = result.and(postgres.stop().await);
        }
        result
    }

    /// Kills everything. The data survive, as after a crash.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn kill(&mut self) -> Result<(), Error> {
        let kills = self.processes().into_iter().map(Process::kill);
        join_all(kills).await.into_iter().try_for_each(|killed| killed.map(drop))
    }

    fn processes(&mut self) -> Vec<&mut Process> {
        let services = self.services.iter_mut().map(Service::process);
        let kafka = self.kafka.iter_mut().map(Kafka::process);
        let postgres = self.postgres.iter_mut().map(Postgres::process);
        services.chain(kafka).chain(postgres).collect()
    }
}

/// Starts or finds PostgreSQL, and returns the owner's URL of the migrated database.
async fn start_database(
    layout: &Layout,
    settings: &Settings,
    port: u16,
    started: &mut Option<Postgres>,
    report: &Report,
) -> Result<String, Error> {
    let url = match &settings.database_url {
        Some(url) => {
            // It may be set for another program: the error names the variable.
            database::connect(url).await.map_err(|error| given("DATABASE_URL", &error))?.close().await;
            url.clone()
        }
        None => {
            let distribution = distribution::postgres(layout, report).await?;
            report.say("starting PostgreSQL");
            let postgres = Postgres::start(layout, &distribution, &layout.stack(), port).await?;
            let postgres = started.insert(postgres);
            report.say("PostgreSQL is up");
            database::create(&postgres.url("postgres", "postgres"), database::NAME).await?;
            postgres.url("postgres", database::NAME)
        }
    };
    database::migrate(&url).await?;
    report.say(format!("the migrations are applied to {}", database::masked(&url)));
    Ok(url)
}

/// Makes the error for a server that the environment names and that cannot be used.
fn given(variable: &str, error: &Error) -> Error {
    let error = embedded::error::chain(error);
    Error::Refused(format!("{error}. The environment sets {variable}: unset it, and `cargo dev` starts its own server."))
}

/// Starts or finds Kafka, creates the topics, and returns the bootstrap servers.
async fn start_kafka(
    layout: &Layout,
    settings: &Settings,
    [port, controller_port]: [u16; 2],
    started: &mut Option<Kafka>,
    report: &Report,
) -> Result<String, Error> {
    let servers = match &settings.kafka_bootstrap_servers {
        Some(servers) => {
            let failed = |reason| Error::Kafka { what: format!("reach Kafka at {servers}"), reason };
            kafka::ping(servers).await.map_err(|reason| given("KAFKA_BOOTSTRAP_SERVERS", &failed(reason)))?;
            servers.clone()
        }
        None => {
            let distribution = distribution::kafka(layout, report).await?;
            report.say("starting Kafka");
            let kafka = Kafka::start(&distribution, &layout.stack(), port, controller_port).await?;
            started.insert(kafka).bootstrap_servers()
        }
    };
    topics::create(&servers).await?;
    report.say(format!("Kafka is up at {servers}, with its topics"));
    Ok(servers)
}

/// The servers' ports. A run takes the ports of the last run if they are free, because other programs may be set up for them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Ports {
    postgres: Option<u16>,
    kafka: Option<u16>,
    kafka_controller: Option<u16>,
}

impl Ports {
    fn read(directory: &Path) -> Self {
        let bytes = std::fs::read(directory.join("ports.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn write(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join("ports.json");
        let bytes = serde_json::to_vec(self).map_err(std::io::Error::other);
        files::write_atomically(&path, &bytes.context(|| format!("write {}", path.display()))?)
    }
}
