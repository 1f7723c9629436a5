//! The servers' programs, downloaded from Maven Central once and kept in the build directory.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::{Context, Error};
use crate::files;
use crate::java;
use crate::layout::Layout;
use crate::maven::{self, Artifact, Jars};
use crate::report::Report;

/// The version of PostgreSQL.
pub const POSTGRES: &str = "18.4";
/// The version of Kafka.
pub const KAFKA: &str = "4.3.1";
/// The version of the logging library. Kafka's own download contains it, but its Maven artifact does not.
const LOG4J: &str = "2.25.4";

/// PostgreSQL's programs: a directory with `bin`, `lib` and `share`.
#[derive(Debug, Clone)]
pub struct PostgresDistribution {
    pub(crate) directory: PathBuf,
    pub(crate) account: Option<Account>,
    /// Environment variables of the servers.
    pub(crate) environment: Vec<(String, String)>,
    /// Says how the start goes.
    pub(crate) report: Report,
}

impl PostgresDistribution {
    /// Sets an environment variable of the servers that are started from now on.
    #[must_use]
    pub fn with_environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Kafka's jars and the Java to run them.
#[derive(Debug, Clone)]
pub struct KafkaDistribution {
    pub(crate) jars: PathBuf,
    pub(crate) java: PathBuf,
    /// Says how the start goes.
    pub(crate) report: Report,
}

/// Downloads PostgreSQL's programs if they are missing.
///
/// # Errors
/// There is no build for this machine, Maven is missing or fails, or a directory cannot be written.
pub async fn postgres(layout: &Layout, report: &Report) -> Result<PostgresDistribution, Error> {
    let account = Account::for_postgres()?;
    let all = layout.reachable(&layout.distributions(), account.as_ref()).await?;
    let directory = all.join(format!("postgres-{POSTGRES}"));
    let _lock = lock(&all.join("postgres.lock"), report).await?;
    if !directory.exists() {
        report.say(format!("downloading PostgreSQL {POSTGRES}"));
        let name = format!("embedded-postgres-binaries-{}", platform()?);
        let version = format!("{POSTGRES}.0");
        let fetched = fresh(&all.join("postgres.fetched"))?;
        let artifact = Artifact { group: "io.zonky.test.postgres", name: &name, version: &version, alone: false };
        maven::fetch(&[artifact], Jars::Unpacked, &fetched, report).await?;
        let unpacked = fresh(&all.join("postgres.unpacked"))?;
        let (from, into) = (fetched.clone(), unpacked.clone());
        blocking(move || unpack(&from, &into)).await?;
        std::fs::rename(&unpacked, &directory).context(|| format!("create {}", directory.display()))?;
        files::remove(&fetched)?;
    }
    Ok(PostgresDistribution { directory, account, environment: vec![], report: *report })
}

/// Downloads Kafka's jars if they are missing, and finds a Java.
///
/// # Errors
/// Java or Maven is missing or fails, or a directory cannot be written.
pub async fn kafka(layout: &Layout, report: &Report) -> Result<KafkaDistribution, Error> {
    let java = java::java(report).await?;
    let all = layout.distributions();
    files::create_directory(&all)?;
    let jars = all.join(format!("kafka-{KAFKA}"));
    let _lock = lock(&all.join("kafka.lock"), report).await?;
    // This jar came last into the list: an older download may lack it.
    if !jars.join(format!("kafka-tools-{KAFKA}.jar")).exists() {
        report.say(format!("downloading Kafka {KAFKA}"));
        let fetched = fresh(&all.join("kafka.jars"))?;
        let artifacts = [
            Artifact { group: "org.apache.kafka", name: "kafka_2.13", version: KAFKA, alone: false },
            // People read and write topics with its tools.
            Artifact { group: "org.apache.kafka", name: "kafka-tools", version: KAFKA, alone: true },
            Artifact { group: "org.apache.logging.log4j", name: "log4j-slf4j-impl", version: LOG4J, alone: false },
        ];
        maven::fetch(&artifacts, Jars::Kept, &fetched, report).await?;
        files::remove(&jars)?;
        std::fs::rename(&fetched, &jars).context(|| format!("create {}", jars.display()))?;
    }
    Ok(KafkaDistribution { jars, java, report: *report })
}

/// The system and processor in the names of PostgreSQL's artifacts.
fn platform() -> Result<&'static str, Error> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok("linux-amd64"),
        ("linux", "aarch64") => Ok("linux-arm64v8"),
        ("macos", "x86_64") => Ok("darwin-amd64"),
        ("macos", "aarch64") => Ok("darwin-arm64v8"),
        (os, arch) => Err(Error::Missing(format!(
            "Maven Central has no PostgreSQL for {os} on {arch}. Set DATABASE_URL to a PostgreSQL that you run."
        ))),
    }
}

/// Lets one process download at a time. The others find what it downloaded.
async fn lock(path: &Path, report: &Report) -> Result<File, Error> {
    let path = path.to_owned();
    let file = File::create(&path).context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        report.say("another `cargo dev` is downloading the same; waiting");
        return blocking(move || file.lock().map(|()| file).context(|| format!("lock {}", path.display()))).await;
    }
    Ok(file)
}

fn fresh(directory: &Path) -> Result<PathBuf, Error> {
    files::remove(directory)?;
    files::create_directory(directory)?;
    Ok(directory.to_owned())
}

/// Unpacks PostgreSQL's artifact, which is one compressed tar archive.
fn unpack(artifact: &Path, into: &Path) -> Result<(), Error> {
    let files = std::fs::read_dir(artifact).context(|| format!("read {}", artifact.display()))?;
    let archive = files
        .flatten()
        .map(|file| file.path())
        .find(|path| path.extension() == Some(OsStr::new("txz")))
        .ok_or_else(|| Error::Unreadable { path: artifact.to_owned(), reason: "it holds no .txz".to_owned() })?;
    let file = File::open(&archive).context(|| format!("open {}", archive.display()))?;
    tar::Archive::new(xz2::read::XzDecoder::new(file)).unpack(into).context(|| format!("unpack {}", archive.display()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).context(|| "finish a piece of work".to_owned())?
}
