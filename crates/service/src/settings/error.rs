//! What can be wrong with settings, said such that it can be mended.

/// Settings that the service cannot start with. Messages never contain secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A key has a value that is not allowed.
    #[error("{key} is {value} ({origin}), but must be {allowed}")]
    Invalid {
        /// The key.
        key: String,
        /// Its value, with secrets masked.
        value: String,
        /// Where the value came from.
        origin: String,
        /// What is allowed.
        allowed: String,
    },
    /// The file has a key, or the environment a variable of ours, that nothing knows.
    #[error("{origin} sets {key}, which is unknown; known are {known}")]
    Unknown {
        /// The key, or the variable's name.
        key: String,
        /// The file, or the environment.
        origin: String,
        /// Every one that may be set, separated by commas.
        known: String,
    },
    /// The settings file cannot be read, or is not TOML.
    #[error("the settings file {path} (named by {variable}) cannot be read: {reason}", variable = super::FILE_VARIABLE)]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The defaults built into the binary lack a key or are broken: a mistake in the program.
    #[error("the built-in defaults are wrong: {0}")]
    Defaults(String),
}
