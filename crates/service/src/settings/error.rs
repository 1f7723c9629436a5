//! Wrong settings.

/// Settings that the service cannot start with. Messages contain no secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A value is not allowed.
    #[error("{key} is {value} ({origin}), but it must be {allowed}")]
    Invalid {
        /// The key.
        key: String,
        /// Its value, with secrets masked.
        value: String,
        /// The origin of the value.
        origin: String,
        /// The allowed values.
        allowed: String,
    },
    /// The file sets a key that the service does not have.
    #[error("the settings file {path} sets {key}, which is unknown; known keys are {known}")]
    Unknown {
        /// The file.
        path: String,
        /// The key.
        key: String,
        /// Every key that may be set, separated by commas.
        known: String,
    },
    /// The settings file cannot be read, or is not TOML.
    #[error("the settings file {path} (from {variable}) cannot be read: {reason}", variable = super::FILE_VARIABLE)]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The built-in defaults lack a key or cannot be read: a mistake in the program.
    #[error("the built-in defaults are wrong: {0}")]
    Defaults(String),
}
