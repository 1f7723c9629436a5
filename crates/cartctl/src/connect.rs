//! Connects to the database and the broker.

use std::{path::Path, time::Duration};

use cart_events::DomainEvent;
use event_store::{EventStore, SessionTimeouts, StoreSettings};
use kafka::Brokers;
use operations::Operator;
use sqlx::{ConnectOptions as _, Connection as _, postgres::PgConnectOptions};

use crate::{
    arguments::{BOOTSTRAP_SERVERS, Common},
    error::Error,
};

/// The variables for the connection to the broker, with librdkafka's names.
const SECURITY: [(&str, &str); 7] = [
    ("CARTLOG_KAFKA_SECURITY_PROTOCOL", "security.protocol"),
    ("CARTLOG_KAFKA_SASL_MECHANISM", "sasl.mechanism"),
    ("CARTLOG_KAFKA_SASL_USERNAME", "sasl.username"),
    ("CARTLOG_KAFKA_SASL_PASSWORD", "sasl.password"),
    ("CARTLOG_KAFKA_SSL_CA_LOCATION", "ssl.ca.location"),
    ("CARTLOG_KAFKA_SSL_CERTIFICATE_LOCATION", "ssl.certificate.location"),
    ("CARTLOG_KAFKA_SSL_KEY_LOCATION", "ssl.key.location"),
];

/// The longest wait for a connection to the database.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Common {
    /// Connects to the log. Fails if the database is unreachable or not migrated.
    pub(crate) async fn log(&self) -> Result<EventStore<DomainEvent>, Error> {
        let missing = "No database is given. Set --database-url or DATABASE_URL; `cargo dev env` prints the one of `cargo dev up`";
        let url = self.database_url.as_deref().filter(|url| !url.is_empty()).ok_or_else(|| Error::Usage(missing.to_owned()))?;
        // The URL may contain a password, so the message repeats neither the URL nor the parser's error.
        let wrong = "The database URL is malformed. It must look like postgres://owner:password@host:5432/cartlog. In a password, write %2F for a slash, %23 for a hash and %40 for an at sign";
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) || event_store::is_password_cut(url) {
            return Err(Error::Usage(wrong.to_owned()));
        }
        let mut options: PgConnectOptions = url.parse().map_err(|_| Error::Usage(wrong.to_owned()))?;
        // An empty variable counts as unset.
        if let Some(path) = self.database_password_file.as_deref().filter(|path| !path.is_empty()).map(Path::new) {
            let wrong = |error| format!("Cannot read the password from {} (--database-password-file): {error}", path.display());
            options = options.password(&event_store::read_password(path).map_err(|error| Error::Usage(wrong(error)))?);
        }
        let options = options.application_name("cartctl");
        // A pool retries until its timeout and hides the cause. A single connection reports the cause at once.
        let first = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await;
        let first = first.map_err(|_| Error::NoAnswer(CONNECT_TIMEOUT.as_secs()))?;
        first.map_err(Error::Unreachable)?.close().await.map_err(Error::Unreachable)?;
        // If this process freezes, its transaction must not block the services.
        let timeouts = SessionTimeouts {
            idle_in_transaction: Duration::from_secs(5),
            transaction: None,
            statement: Some(Duration::from_secs(30)),
            lock: Some(Duration::from_secs(5)),
        };
        let settings = StoreSettings { connect_timeout: CONNECT_TIMEOUT, state_cache_bytes: 0, timeouts, ..StoreSettings::default() };
        let log = EventStore::new(options, settings);
        log.ready().await.map_err(|missing| Error::Refused(format!("The log is not ready: {missing}")))?;
        Ok(log)
    }

    /// Creates a client of the broker. Does not connect yet.
    pub(crate) fn kafka(&self) -> Result<Operator, Error> {
        // An empty variable counts as unset.
        let servers = if self.bootstrap_servers.is_empty() { BOOTSTRAP_SERVERS } else { &self.bootstrap_servers };
        // The services use the same variables. librdkafka reports wrong values.
        let security = SECURITY.iter().filter_map(|(variable, property)| {
            let value = std::env::var(variable).ok().filter(|value| !value.is_empty())?;
            Some((*property, value))
        });
        Ok(Operator::new(&Brokers::new(servers, "cartctl").secured(security.collect()))?)
    }
}
