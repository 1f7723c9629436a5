//! The layers of settings, merged. Each value remembers its origin.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf};

use config::{Config, File, FileFormat, Map, Source, Value, ValueKind};
use serde::de::DeserializeOwned;
use url::Url;

use super::{SettingsError, Validate, environment_variable};

const COMMON_DEFAULTS: &str = include_str!("../settings.toml");

/// All settings, merged but not yet typed.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    values: Map<String, Value>,
}

impl Layers {
    /// Merges the common defaults, the service's, the file and the environment, whose variables `environment` answers by name.
    ///
    /// # Errors
    /// If the file cannot be read or sets an unknown key.
    pub(crate) fn load(
        defaults: &[&str],
        file: Option<PathBuf>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, SettingsError> {
        let built_in = [COMMON_DEFAULTS].into_iter().chain(defaults.iter().copied());
        let mut values = built_in
            .fold(Config::builder(), |layers, defaults| layers.add_source(File::from_str(defaults, FileFormat::Toml)))
            .build()
            .and_then(|defaults| defaults.collect())
            .map_err(|error| SettingsError::Defaults(error.to_string()))?;
        let known: BTreeSet<String> = values.keys().cloned().collect();
        if let Some(path) = file {
            values.extend(read_file(path, &known)?);
        }
        for key in known {
            let variable = environment_variable(&key);
            let Some(value) = environment(&variable).filter(|value| !value.is_empty()) else { continue };
            let origin = format!("environment variable {variable}");
            let Ok(text) = value.into_string() else {
                return Err(SettingsError::Invalid { key, value: "not UTF-8".into(), origin, allowed: "text in UTF-8".into() });
            };
            let kind = match values.get(&key).map(|value| &value.kind) {
                Some(ValueKind::Array(_)) => ValueKind::Array(text.split(',').map(|item| Value::from(item.trim())).collect()),
                _ => ValueKind::String(text),
            };
            values.insert(key, Value::new(Some(&origin), kind));
        }
        Ok(Self { values })
    }

    /// Reads the settings into `T`, which takes the keys it knows.
    ///
    /// # Errors
    /// If a value is not allowed by its type, or contradicts another value.
    pub(crate) fn read<T: DeserializeOwned + Validate>(&self) -> Result<T, SettingsError> {
        // Through JSON, because the deserializer of `config` does not say what it expected.
        let table = Value::new(None, ValueKind::Table(self.values.clone()));
        let table: serde_json::Value = table.try_deserialize().map_err(|error| SettingsError::Defaults(error.to_string()))?;
        let settings: T = serde_path_to_error::deserialize(table).map_err(|error| {
            let (path, message) = (error.path().to_string(), error.inner().to_string());
            let key = path.split(['.', '[']).next().unwrap_or_default();
            // The text before it quotes the value, which may be a secret.
            let allowed = message.rsplit_once(", expected ").map_or(&*message, |(_, expected)| expected);
            if self.values.contains_key(key) { self.invalid(key, allowed.to_owned()) } else { SettingsError::Defaults(message) }
        })?;
        settings.validate().map_err(|invalid| self.invalid(invalid.key, invalid.allowed))?;
        Ok(settings)
    }

    fn invalid(&self, key: &str, allowed: String) -> SettingsError {
        let value = self.values.get(key);
        SettingsError::Invalid {
            value: value.map_or_else(|| "missing".to_owned(), |value| shown(key, value)),
            origin: value.and_then(Value::origin).unwrap_or("built-in default").to_owned(),
            key: key.to_owned(),
            allowed,
        }
    }
}

fn read_file(path: PathBuf, known: &BTreeSet<String>) -> Result<Map<String, Value>, SettingsError> {
    let name = path.display().to_string();
    let unreadable = |reason: String| SettingsError::File { path: name.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    let values = File::from_str(&text, FileFormat::Toml).collect().map_err(|error| unreadable(error.to_string()))?;
    let origin = format!("file {name}");
    let value = |(key, value): (String, Value)| {
        if known.contains(&key) {
            return Ok((key, Value::new(Some(&origin), value.kind)));
        }
        let known = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(SettingsError::Unknown { path: name.clone(), key, known })
    };
    values.into_iter().map(value).collect()
}

/// Writes a value for an error or a log.
fn shown(key: &str, value: &Value) -> String {
    match &value.kind {
        // A URL, or what is meant to be one.
        ValueKind::String(text) if key.ends_with("_url") || key.ends_with("_endpoint") || text.contains('@') => {
            format!("{:?}", masked_url(text))
        }
        ValueKind::String(text) if text.is_empty() => "empty".to_owned(),
        // The path of a file is no secret.
        _ if !key.ends_with("_file") && ["password", "secret", "token"].iter().any(|word| key.contains(word)) => "***".to_owned(),
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| shown(key, item)).collect();
            format!("[{}]", items.join(", "))
        }
        _ => value.to_string(),
    }
}

/// Masks the password in a URL. A text that is no URL may be a secret and is masked as a whole.
pub(super) fn masked_url(text: &str) -> String {
    let Some(mut url) = Url::parse(text).ok().filter(|url| url.has_host() && !event_store::is_password_cut(text)) else {
        return "***".to_owned();
    };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    // `?password=` is as good as `:password@` to PostgreSQL, and an unknown parameter may be a secret, too.
    if url.query_pairs().any(|(parameter, _)| parameter == "password" || !is_parameter(&parameter)) {
        url.set_query(Some("***"));
    }
    url.to_string()
}

/// The parameters that sqlx reads.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Tells whether sqlx reads a parameter of a database's URL.
pub(super) fn is_parameter(name: &str) -> bool {
    PARAMETERS.contains(&name) || name.starts_with("options[")
}
