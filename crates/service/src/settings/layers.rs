//! The layers settings are read from, merged; each value remembers where it came from.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
};

use config::{Config, File, FileFormat, Map, Source, Value, ValueKind};
use serde::de::DeserializeOwned;
use url::Url;

use super::{SettingsError, Validate, environment_variable, expectation};

const COMMON_DEFAULTS: &str = include_str!("../settings.toml");
const BUILT_IN: &str = "built in";
/// What the names of our environment variables begin with.
const PREFIX: &str = "CARTLOG_";
/// The variables of every program of the project.
const VARIABLES: &str = include_str!("../variables.txt");

/// All settings, merged and not yet typed.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    values: Map<String, Value>,
}

impl Layers {
    /// Merges the common defaults, the service's, the file and the environment.
    ///
    /// # Errors
    /// Where the file cannot be read, or it or the environment sets what is unknown.
    pub(crate) fn load(
        defaults: &[&str],
        file: Option<PathBuf>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, SettingsError> {
        let built_in = [COMMON_DEFAULTS].into_iter().chain(defaults.iter().copied());
        let mut layers = built_in
            .fold(Config::builder(), |layers, defaults| layers.add_source(File::from_str(defaults, FileFormat::Toml)))
            .build()
            .and_then(|defaults| defaults.collect())
            .map_err(|error| SettingsError::Defaults(error.to_string()))?;
        let known: BTreeSet<String> = layers.keys().cloned().collect();

        if let Some(path) = file {
            layers.extend(read_file(path, &known)?);
        }
        let variables: BTreeMap<String, String> = known.into_iter().map(|key| (environment_variable(&key), key)).collect();
        for (name, value) in environment.into_iter().filter(|(_, value)| !value.is_empty()) {
            let name = name.to_string_lossy().into_owned();
            let Some(key) = variables.get(&name) else {
                if name.starts_with(PREFIX) && !VARIABLES.lines().any(|known| known == name) {
                    return Err(SettingsError::Unknown { key: name, origin: "the environment".into(), known: listed(variables.keys()) });
                }
                continue;
            };
            let origin = format!("from the environment, {name}");
            let Ok(text) = value.into_string() else {
                let (key, value, allowed) = (key.clone(), "not UTF-8".into(), "text in UTF-8".into());
                return Err(SettingsError::Invalid { key, value, origin, allowed });
            };
            let kind = like(layers.get(key), text);
            layers.insert(key.clone(), Value::new(Some(&origin), kind));
        }
        Ok(Self { values: layers })
    }

    /// The settings as `T`, which takes the keys it knows and leaves the rest to others.
    ///
    /// # Errors
    /// Where a value is not what its type allows, or contradicts another.
    pub(crate) fn read<T: DeserializeOwned + Validate>(&self) -> Result<T, SettingsError> {
        // Through JSON, because the crate's own deserialiser keeps quiet about what it would have taken.
        let table = Value::new(None, ValueKind::Table(self.values.clone()));
        let table: serde_json::Value = table.try_deserialize().map_err(|error| SettingsError::Defaults(error.to_string()))?;
        let settings: T = serde_path_to_error::deserialize(table).map_err(|error| {
            let path = error.path().to_string();
            let key = path.split(['.', '[']).next().unwrap_or_default().to_owned();
            let allowed = expectation::of(&error.inner().to_string());
            if self.values.contains_key(&key) { self.invalid(&key, allowed) } else { SettingsError::Defaults(allowed) }
        })?;
        settings.validate().map_err(|invalid| self.invalid(invalid.key, invalid.allowed))?;
        Ok(settings)
    }

    fn invalid(&self, key: &str, allowed: String) -> SettingsError {
        let value = self.values.get(key);
        SettingsError::Invalid {
            value: value.map_or_else(|| "missing".to_owned(), |value| shown(key, value)),
            origin: value.and_then(Value::origin).unwrap_or(BUILT_IN).to_owned(),
            key: key.to_owned(),
            allowed,
        }
    }
}

/// The text of an environment variable as the kind of value that is there already; as text, where it is not one.
fn like(there: Option<&Value>, text: String) -> ValueKind {
    let parsed = match there.map(|value| &value.kind) {
        Some(ValueKind::Array(_)) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(ValueKind::Array(items.map(Value::from).collect()))
        }
        Some(ValueKind::Boolean(_)) => text.parse().ok().map(ValueKind::Boolean),
        Some(ValueKind::I64(_)) => text.parse().ok().map(ValueKind::I64),
        Some(ValueKind::Float(_)) => text.parse().ok().map(ValueKind::Float),
        _ => None,
    };
    parsed.unwrap_or(ValueKind::String(text))
}

fn read_file(path: PathBuf, known: &BTreeSet<String>) -> Result<Map<String, Value>, SettingsError> {
    let name = path.display().to_string();
    let unreadable = |reason: String| SettingsError::File { path: name.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    let values = File::from_str(&text, FileFormat::Toml).collect().map_err(|error| unreadable(error.to_string()))?;
    let origin = format!("from the file {name}");
    values
        .into_iter()
        .map(|(key, value)| {
            if known.contains(&key) {
                Ok((key, Value::new(Some(&origin), value.kind)))
            } else {
                Err(SettingsError::Unknown { key, origin: format!("the file {name}"), known: listed(known) })
            }
        })
        .collect()
}

fn listed<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// A value as it may appear in an error or a log.
fn shown(key: &str, value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) if key.ends_with("_url") => format!("{:?}", masked_url(text)),
        ValueKind::String(text) if text.is_empty() => "empty".to_owned(),
        // Where a secret is, is none.
        _ if !key.ends_with("_file") && ["password", "secret", "token"].iter().any(|word| key.contains(word)) => "***".to_owned(),
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| shown(key, item)).collect();
            format!("[{}]", items.join(", "))
        }
        _ => value.to_string(),
    }
}

/// A URL without its password. What cannot be read as a URL may be a secret as a whole.
pub(super) fn masked_url(text: &str) -> String {
    let Some(mut url) = Url::parse(text).ok().filter(Url::has_host) else {
        return "***".to_owned();
    };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    // `?password=` is as good as `:password@` to PostgreSQL; other parameters name files and modes, and are left out
    // with it.
    if url.query().is_some_and(|query| query.contains("password")) {
        url.set_query(Some("***"));
    }
    url.to_string()
}
