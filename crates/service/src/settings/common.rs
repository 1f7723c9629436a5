//! The settings of every service.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};

use super::{DatabaseUrl, Endpoint, LogFilter, Origin, PasswordFile, Validate, Whole};

/// The settings of every service; `settings.toml` of this crate documents them. A service's own defaults give `port`, `database_url` and
/// `command_timeout_milliseconds`.
#[derive(Debug, Clone, Deserialize)]
pub struct Common {
    /// The address to listen on.
    #[serde(deserialize_with = "ip_address")]
    pub bind_address: IpAddr,
    /// The port to listen on.
    pub port: Whole<1, 65_535>,
    /// The database.
    pub database_url: DatabaseUrl,
    /// The password for the database, if the URL has none.
    pub database_password_file: PasswordFile,
    /// The largest number of connections to the database.
    pub database_max_connections: Whole<1, 1_000>,
    /// The time that a command or a query may take, in milliseconds.
    pub command_timeout_milliseconds: Whole<10, 60_000>,
    /// The size of the state cache, in megabytes; 0 turns it off.
    pub state_cache_megabytes: Whole<0, 100_000>,
    /// The format of the log.
    pub log_format: LogFormat,
    /// The log level, by target if wanted.
    pub log_filter: LogFilter,
    /// Origins whose pages may call the service from a browser; empty: none.
    pub cors_origins: Vec<Origin>,
    /// The time from the signal to stop until everything has finished, in seconds.
    pub shutdown_deadline_seconds: Whole<1, 600>,
    /// The time after that signal in which requests are still accepted, in seconds.
    pub shutdown_delay_seconds: Whole<0, 60>,
    /// Threads that serve HTTP; 0 is one per core.
    pub http_workers: Whole<0, 512>,
    /// Threads for background work; 0 is one per core.
    pub background_threads: Whole<0, 512>,
    /// Connections per HTTP thread.
    pub http_max_connections: Whole<1, 1_000_000>,
    /// The collector of traces.
    pub otel_exporter_otlp_endpoint: Endpoint,
}

impl Validate for Common {}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, otherwise JSON.
    Auto,
    /// One readable line per event.
    Pretty,
    /// One JSON object per event.
    Json,
}

fn ip_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|_| de::Error::custom("an IP address, such as 127.0.0.1, 0.0.0.0 or ::1"))
}
