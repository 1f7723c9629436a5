//! A Kafka broker as a child process. It is its own controller (KRaft).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use tokio::process::Command;

use crate::distribution::KafkaDistribution;
use crate::error::{Context, Error};
use crate::files;
use crate::ports;
use crate::process::Process;

const STOP_DEADLINE: Duration = Duration::from_secs(20);
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// A running Kafka broker on 127.0.0.1.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    distribution: KafkaDistribution,
    files: BrokerFiles,
    port: u16,
}

/// The broker's own files. It runs in their directory and knows them by these names: Kafka and Java give a meaning to commas, colons and
/// backslashes in a path, and a checkout's path may contain them.
#[derive(Debug, Clone)]
struct BrokerFiles {
    directory: PathBuf,
    log: PathBuf,
}

const SETTINGS: &str = "server.properties";
const DATA: &str = "data";
const LOGGING: &str = "log4j2.properties";
const IDENTITY: &str = "identity.pem";
/// A link to the directory of Kafka's jars.
const JARS: &str = "jars";

/// A second listener.
#[derive(Debug)]
enum Listener<'a> {
    Secured { secured: &'a Secured<'a>, port: u16 },
    Forwarded { port: u16, address: u16 },
}

/// A listener for one user, over TLS, with SCRAM-SHA-512 or PLAIN.
#[derive(Debug)]
pub struct Secured<'a> {
    /// A file with the broker's private key and certificate (PEM).
    pub identity: &'a Path,
    /// The user.
    pub user: &'a str,
    /// The user's password, of letters and digits.
    pub password: &'a str,
}

/// A topic to create.
#[derive(Debug, Clone)]
pub struct Topic<'a> {
    /// Its name.
    pub name: &'a str,
    /// The number of partitions, at least 1.
    pub partitions: i32,
    /// The largest message in bytes; the broker's default if none is given.
    pub max_message_bytes: Option<u32>,
}

impl Kafka {
    /// Starts a broker with its data in `directory`/kafka, and waits until it answers. Creates the data if they are missing.
    /// Clients connect to `port`; the broker uses `controller_port` itself. Its log is `directory`/logs/kafka.log.
    ///
    /// # Errors
    /// Its data cannot be created, or it does not start. The error has the end of its log.
    pub async fn start(distribution: &KafkaDistribution, directory: &Path, port: u16, controller_port: u16) -> Result<Self, Error> {
        Self::start_with(distribution, directory, port, controller_port, None).await
    }

    /// Starts a broker as [`start`](Self::start) does, on free ports, with a second listener over TLS for one user. Returns the second
    /// listener's port, too.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_secured(distribution: &KafkaDistribution, directory: &Path, secured: &Secured<'_>) -> Result<(Self, u16), Error> {
        let [port, controller_port, secured_port] = ports::free([None, None, None])?;
        let listener = Listener::Secured { secured, port: secured_port };
        let broker = Self::start_with(distribution, directory, port, controller_port, Some(listener)).await?;
        Ok((broker, secured_port))
    }

    /// Starts a broker as [`start`](Self::start) does, on free ports, with a second listener for clients that reach it through `address`,
    /// another port of 127.0.0.1. Returns the port to which `address` must lead, too.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_forwarded(distribution: &KafkaDistribution, directory: &Path, address: u16) -> Result<(Self, u16), Error> {
        let [port, controller_port, forwarded_port] = ports::free([None, None, None])?;
        let listener = Listener::Forwarded { port: forwarded_port, address };
        let broker = Self::start_with(distribution, directory, port, controller_port, Some(listener)).await?;
        Ok((broker, forwarded_port))
    }

    async fn start_with(
        distribution: &KafkaDistribution,
        directory: &Path,
        port: u16,
        controller_port: u16,
        listener: Option<Listener<'_>>,
    ) -> Result<Self, Error> {
        let files = BrokerFiles { directory: directory.join("kafka"), log: directory.join("logs/kafka.log") };
        let own = |name| files.directory.join(name);
        files::create_directory(&files.directory)?;
        files::write_atomically(&own(SETTINGS), settings(port, controller_port, listener.as_ref()).as_bytes())?;
        files::write_atomically(&own(LOGGING), LOG_SETTINGS.as_bytes())?;
        let jars = own(JARS);
        if jars.is_symlink() {
            std::fs::remove_file(&jars).context(|| format!("remove {}", jars.display()))?;
        }
        std::os::unix::fs::symlink(&distribution.jars, &jars).context(|| format!("create {}", jars.display()))?;
        let secured = match listener {
            Some(Listener::Secured { secured, .. }) => Some(secured),
            _ => None,
        };
        if let Some(Secured { identity, .. }) = secured {
            std::fs::copy(identity, own(IDENTITY)).context(|| format!("copy {}", identity.display()))?;
        }
        if !own(DATA).join("meta.properties").exists() {
            format(distribution, &files, secured).await?;
        }
        let process = launch(distribution, &files, port).await?;
        Ok(Self { process, distribution: distribution.clone(), files, port })
    }

    /// Starts a broker as [`start`](Self::start) does, on free ports.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_on_free_ports(distribution: &KafkaDistribution, directory: &Path) -> Result<Self, Error> {
        let [port, controller_port] = ports::free([None, None])?;
        Self::start(distribution, directory, port, controller_port).await
    }

    /// The port on 127.0.0.1 that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The `bootstrap.servers` for clients.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The broker's process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops it (SIGTERM).
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn stop(&mut self) -> Result<(), Error> {
        self.process.stop(Signal::SIGTERM, STOP_DEADLINE).await.map(drop)
    }

    /// Kills it as a crash would (SIGKILL). [`restart`](Self::restart) recovers it.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn kill(&mut self) -> Result<(), Error> {
        self.process.kill().await.map(drop)
    }

    /// Stops it if it runs, and starts it again on the same ports and data.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop().await?;
        self.process = launch(&self.distribution, &self.files, self.port).await?;
        Ok(())
    }
}

/// Creates the missing topics, with the broker's number of replicas. Existing topics stay as they are.
///
/// # Errors
/// The broker cannot be reached, or refuses a topic.
pub async fn create_topics(bootstrap_servers: &str, topics: &[Topic<'_>]) -> Result<(), Error> {
    let admin = admin(bootstrap_servers)?;
    let limits: Vec<Option<String>> = topics.iter().map(|topic| topic.max_message_bytes.map(|bytes| bytes.to_string())).collect();
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .zip(&limits)
        .map(|(topic, limit)| {
            let new = NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(-1));
            match limit {
                Some(limit) => new.set("max.message.bytes", limit),
                None => new,
            }
        })
        .collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST_DEADLINE)).operation_timeout(Some(REQUEST_DEADLINE));
    let failed = |reason: String| Error::Kafka { what: "create topics".to_owned(), reason };
    let results = admin.create_topics(&new, &options).await.map_err(|error| failed(error.to_string()))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(failed(format!("{topic}: {code}"))),
        }
    }
    Ok(())
}

/// Deletes topics, with their messages.
///
/// # Errors
/// The broker cannot be reached, or refuses.
pub async fn delete_topics(bootstrap_servers: &str, topics: &[&str]) -> Result<(), Error> {
    let options = AdminOptions::new().request_timeout(Some(REQUEST_DEADLINE)).operation_timeout(Some(REQUEST_DEADLINE));
    let failed = |reason: String| Error::Kafka { what: "delete topics".to_owned(), reason };
    let results = admin(bootstrap_servers)?.delete_topics(topics, &options).await.map_err(|error| failed(error.to_string()))?;
    results.into_iter().try_for_each(|result| result.map(drop).map_err(|(topic, code)| failed(format!("{topic}: {code}"))))
}

/// Asks a broker for its metadata.
///
/// # Errors
/// The reason why there was no answer.
pub async fn ping(bootstrap_servers: &str) -> Result<(), String> {
    let admin = admin(bootstrap_servers).map_err(|error| error.to_string())?;
    let asked = tokio::task::spawn_blocking(move || {
        admin.inner().fetch_metadata(None, Duration::from_millis(1500)).map(|metadata| metadata.brokers().len())
    });
    match asked.await {
        Ok(Ok(0)) => Err("no broker registered yet".to_owned()),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn admin(bootstrap_servers: &str) -> Result<AdminClient<DefaultClientContext>, Error> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        // A starting broker refuses connections: try again soon, and do not log it.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200")
        .set("log_level", "0")
        .create()
        .map_err(|error| Error::Kafka { what: format!("reach {bootstrap_servers}"), reason: error.to_string() })
}

async fn format(distribution: &KafkaDistribution, files: &BrokerFiles, secured: Option<&Secured<'_>>) -> Result<(), Error> {
    let output = java(distribution, files, &["-Xmx128m"])
        .args(["kafka.tools.StorageTool", "format", "--ignore-formatted", "--cluster-id", &cluster_id(), "--config"])
        .arg(SETTINGS)
        .args(secured.iter().flat_map(|Secured { user, password, .. }| {
            ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={user},password={password}]")]
        }))
        .stdin(Stdio::null())
        .output()
        .await
        .context(|| "run java".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    Err(Error::Command { command: "kafka.tools.StorageTool format".to_owned(), status: output.status, output: text })
}

async fn launch(distribution: &KafkaDistribution, files: &BrokerFiles, port: u16) -> Result<Process, Error> {
    let mut command = java(distribution, files, &["-Xms128m", "-Xmx512m"]);
    command.args(["kafka.Kafka", SETTINGS]);
    let mut process = Process::spawn("Kafka", command, &files.log)?;
    let servers = format!("127.0.0.1:{port}");
    process.until_started(&distribution.report, || ping(&servers)).await?;
    Ok(process)
}

fn java(distribution: &KafkaDistribution, files: &BrokerFiles, memory: &[&str]) -> Command {
    let mut command = Command::new(&distribution.java);
    command
        .args(memory)
        .args(["-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"])
        .arg(format!("-Dlog4j2.configurationFile={LOGGING}"))
        .args(["-cp", &format!("{JARS}/*")])
        .current_dir(&files.directory);
    command
}

/// Makes a cluster id: 16 bytes in base 64, which leave no free bits in the last of 22 characters.
fn cluster_id() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    let mut id: String = (0..21).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect();
    id.push('A');
    id
}

fn settings(port: u16, controller_port: u16, listener: Option<&Listener<'_>>) -> String {
    let (listener, advertised, protocol, further) = match listener {
        None => Default::default(),
        Some(Listener::Secured { secured: Secured { user, password, .. }, port }) => (
            format!(",SECURED://127.0.0.1:{port}"),
            format!(",SECURED://127.0.0.1:{port}"),
            ",SECURED:SASL_SSL",
            format!(
                "listener.name.secured.ssl.keystore.type=PEM
listener.name.secured.ssl.keystore.location={IDENTITY}
listener.name.secured.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN
listener.name.secured.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secured.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}=\"{password}\";
"
            ),
        ),
        Some(Listener::Forwarded { port, address }) => {
            (format!(",FORWARDED://127.0.0.1:{port}"), format!(",FORWARDED://127.0.0.1:{address}"), ",FORWARDED:PLAINTEXT", String::new())
        }
    };
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{listener}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocol}
{further}log.dirs={DATA}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
# One broker cannot keep three copies, and one user needs few partitions of Kafka's own topics.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
# After a crash the broker waits until its old session expires.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Tests create hundreds of topics, and an index has its full size from the start.
log.index.size.max.bytes=1048576
"
    )
}

const LOG_SETTINGS: &str = "rootLogger.level=WARN
rootLogger.appenderRef.out.ref=OUT
logger.server.name=kafka.server
logger.server.level=INFO
appender.out.type=Console
appender.out.name=OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} %-5p %c{1.} %m%n
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_id_has_22_letters_or_digits() {
        let id = cluster_id();
        assert_eq!(id.len(), 22);
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
}
