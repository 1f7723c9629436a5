//! Settings: documented defaults built into the binary, then a file, then the environment, then checked.
//!
//! A key is flat and in snake case. Its environment variable is `CARTLOG_` and the key in capitals, except for the
//! three that the rest of the world names: `DATABASE_URL`, `KAFKA_BOOTSTRAP_SERVERS` and
//! `OTEL_EXPORTER_OTLP_ENDPOINT`. An empty variable counts as unset. One whose name begins with `CARTLOG_` and is no setting's is a
//! mistake, unless `variables.txt` has it: one environment may serve all programs.

mod common;
mod error;
pub(crate) mod expectation;
mod kafka;
mod layers;
mod types;

pub use common::{Common, LogFormat};
pub use error::SettingsError;
pub use kafka::Kafka;
pub(crate) use layers::Layers;
pub use types::{BootstrapServers, DatabaseUrl, Endpoint, LogFilter, Origin, PasswordFile, Secret, TopicName, Whole};

/// The environment variable that names the settings file (TOML).
pub const FILE_VARIABLE: &str = "CARTLOG_SETTINGS_FILE";

/// What the types of single settings cannot say: conditions between them.
pub trait Validate {
    /// Checks conditions between settings.
    ///
    /// # Errors
    /// [`Invalid`] names the key that is wrong and what is allowed; the service then does not start.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A setting that contradicts another.
#[derive(Debug)]
pub struct Invalid {
    /// The key at fault.
    pub key: &'static str,
    /// What is allowed, as in "(key) must be …".
    pub allowed: String,
}

/// The environment variable of a settings key.
#[must_use]
pub fn environment_variable(key: &str) -> String {
    let capitals = key.to_uppercase();
    match key {
        "database_url" | "kafka_bootstrap_servers" | "otel_exporter_otlp_endpoint" => capitals,
        _ => format!("CARTLOG_{capitals}"),
    }
}

#[cfg(test)]
mod tests;
