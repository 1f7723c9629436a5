//! The settings every service has.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};

use super::{DatabaseUrl, Endpoint, LogFilter, Origin, PasswordFile, Validate, Whole};

/// The settings every service has; `settings.toml` of this crate documents them. A service's own defaults give `port`
/// and `database_url`.
#[derive(Debug, Clone, Deserialize)]
pub struct Common {
    /// The address to listen at.
    #[serde(deserialize_with = "ip_address")]
    pub bind_address: IpAddr,
    /// The port to listen at.
    pub port: Whole<1, 65_535>,
    /// The database.
    pub database_url: DatabaseUrl,
    /// The password for the database, where the URL has none.
    pub database_password_file: PasswordFile,
    /// Connections to the database that the process may hold.
    pub database_max_connections: Whole<1, 1_000>,
    /// Megabytes of folded states kept for the next command; 0 keeps none.
    pub known_states_megabytes: Whole<0, 100_000>,
    /// How logs look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: LogFilter,
    /// Origins whose pages may call the service from a browser; empty: none.
    pub cors_origins: Vec<Origin>,
    /// The time, in seconds, from the signal to stop until everything is finished.
    pub shutdown_deadline_seconds: Whole<1, 600>,
    /// The time, in seconds, for which requests are still taken after that signal, while `/ready` says no.
    pub shutdown_delay_seconds: Whole<0, 60>,
    /// Threads that serve HTTP; 0 is one for each core.
    pub http_workers: Whole<0, 512>,
    /// Threads for what is done beside HTTP: appending, projecting, publishing. 0 is one for each core.
    pub background_threads: Whole<0, 512>,
    /// Connections each of the HTTP threads serves at a time.
    pub http_max_connections: Whole<1, 1_000_000>,
    /// Where traces are sent.
    pub otel_exporter_otlp_endpoint: Endpoint,
}

impl Validate for Common {}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, else JSON.
    Auto,
    /// One readable line each.
    Pretty,
    /// One JSON object each.
    Json,
}

fn ip_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|_| de::Error::custom("an IP address, such as 127.0.0.1, 0.0.0.0 or ::1"))
}
