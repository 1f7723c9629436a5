//! Settings: documented defaults built into the binary, then a file, then the environment, then validation.
//!
//! A key is flat and in snake case. Its environment variable is `CARTLOG_` and the key in capitals, except for the three names that are
//! standard elsewhere: `DATABASE_URL`, `KAFKA_BOOTSTRAP_SERVERS` and `OTEL_EXPORTER_OTLP_ENDPOINT`. An empty variable counts as unset.
//! An unknown key in the file is an error. Unknown variables are ignored, because several programs may share one environment.

mod common;
mod error;
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

/// Conditions between settings, which the types of single settings cannot express.
pub trait Validate {
    /// Checks the conditions.
    ///
    /// # Errors
    /// [`Invalid`] names the key that is wrong and what is allowed. The service then does not start.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A setting that contradicts another.
#[derive(Debug)]
pub struct Invalid {
    /// The key that is wrong.
    pub key: &'static str,
    /// The allowed values; completes the sentence "the key must be …".
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
