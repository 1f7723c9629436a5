//! Types of settings that cannot hold a wrong value. Their errors say what is allowed.

use std::{fmt, ops::Deref, path::PathBuf, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use sqlx::postgres::PgConnectOptions;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Url;

use super::layers::{is_parameter, masked_url};

/// A whole number from `MIN` to `MAX`, both included. It is read from numbers and from text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Whole<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Whole<MIN, MAX> {
    /// Creates the number, or `None` if it is out of range.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        if value >= MIN && value <= MAX { Some(Self(value)) } else { None }
    }

    /// Answers the number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Answers the number as `usize`, saturated.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Answers the number as `u16`, saturated.
    #[must_use]
    pub fn as_u16(self) -> u16 {
        u16::try_from(self.0).unwrap_or(u16::MAX)
    }

    /// Answers the number as `u32`, saturated.
    #[must_use]
    pub fn as_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }

    /// Answers that many seconds.
    #[must_use]
    pub const fn seconds(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }

    /// Answers that many days.
    #[must_use]
    pub const fn days(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0 * 24 * 60 * 60)
    }

    /// Answers that many milliseconds.
    #[must_use]
    pub const fn milliseconds(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl<const MIN: u64, const MAX: u64> fmt::Debug for Whole<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InRange<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> Visitor<'_> for InRange<MIN, MAX> {
            type Value = Whole<MIN, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                Whole::new(value).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                let number = u64::try_from(value).ok().and_then(Whole::new);
                number.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                let number = value.trim().parse().ok().and_then(Whole::new);
                number.ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(InRange::<MIN, MAX>)
    }
}

/// Deserializes through `FromStr`, whose error says what is allowed.
macro_rules! deserialize_from_str {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
deserialize_from_str!(DatabaseUrl, PasswordFile, Endpoint, LogFilter, Origin, TopicName, BootstrapServers);

/// The rule for a setting. It completes the sentence "the key must be ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Allowed(&'static str);

/// The URL of a PostgreSQL database. Its `Debug` and `Display` mask the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// Answers the URL with its password, for connecting and never for logs.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatabaseUrl {
    type Err = Allowed;
    fn from_str(text: &str) -> Result<Self, Allowed> {
        if event_store::is_password_cut(text) {
            return Err(Allowed("a URL whose password has %2F for a slash, %23 for a hash and %40 for an at sign"));
        }
        let is_postgres = Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql") && url.path().len() > 1);
        if !is_postgres {
            return Err(Allowed("a URL such as postgres://user:password@host:5432/database"));
        }
        // sqlx ignores a parameter that it does not know, such as a mistyped sslmode, and logs its value, which may be a secret.
        if !Url::parse(text).is_ok_and(|url| url.query_pairs().all(|(parameter, _)| is_parameter(&parameter))) {
            return Err(Allowed("a URL whose parameters are among sslmode, sslrootcert, sslcert, sslkey, application_name and options"));
        }
        if text.parse::<PgConnectOptions>().is_err() {
            return Err(Allowed("a URL such as postgres://user:password@host:5432/database?sslmode=verify-full, with valid parameters"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked_url(&self.0))
    }
}

/// A password from a file, or none. Its `Debug` names the file only.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordFile(Option<(PathBuf, String)>);

impl PasswordFile {
    /// Answers the password, for connecting and never for logs. `None` if the setting is empty.
    #[must_use]
    pub fn expose(&self) -> Option<&str> {
        self.0.as_ref().map(|(_, password)| password.as_str())
    }
}

impl FromStr for PasswordFile {
    type Err = Allowed;
    fn from_str(text: &str) -> Result<Self, Allowed> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let path = PathBuf::from(text);
        match event_store::read_password(&path) {
            Ok(password) => Ok(Self(Some((path, password)))),
            Err(_) => Err(Allowed("empty, or a file that this process can read, with the password and nothing else in it")),
        }
    }
}

impl fmt::Debug for PasswordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((path, _)) => write!(f, "{}", path.display()),
            None => f.write_str("none"),
        }
    }
}

/// A password, or none. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Answers the password, for connecting and never for logs.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Answers whether there is no password.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "***" })
    }
}

/// The base URL of a collector, or none. Its `Debug` masks a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Option<Url>);

impl Endpoint {
    /// Answers the URL. `None` if the setting is empty.
    #[must_use]
    pub fn url(&self) -> Option<&Url> {
        self.0.as_ref()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(url) => f.write_str(&masked_url(url.as_str())),
            None => f.write_str("none"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Allowed;
    fn from_str(text: &str) -> Result<Self, Allowed> {
        const ALLOWED: Allowed = Allowed("empty, or a URL such as http://127.0.0.1:4318");
        if text.is_empty() {
            return Ok(Self(None));
        }
        let url = Url::parse(text).map_err(|_| ALLOWED)?;
        if matches!(url.scheme(), "http" | "https") { Ok(Self(Some(url))) } else { Err(ALLOWED) }
    }
}

/// The log level, by target if wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl Deref for LogFilter {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = Allowed;
    fn from_str(text: &str) -> Result<Self, Allowed> {
        // A word that is no level, such as `warning` for `warn`, would count as a target's name and silence everything else.
        let a_level = |word: &str| match word.find(['=', '[']) {
            Some(end) => word.chars().take(end).all(|one| one.is_ascii_alphanumeric() || "_:-".contains(one)),
            None => word.is_empty() || word.parse::<LevelFilter>().is_ok(),
        };
        match EnvFilter::builder().parse(text) {
            Ok(_) if text.split(',').all(|word| a_level(word.trim())) => Ok(Self(text.to_owned())),
            _ => Err(Allowed("a level (error, warn, info, debug, trace, off), or levels by target such as info,sqlx=warn")),
        }
    }
}

/// An origin of web pages, as browsers send it: scheme, host, and port unless it is the scheme's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl Deref for Origin {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = Allowed;
    fn from_str(text: &str) -> Result<Self, Allowed> {
        const ALLOWED: Allowed = Allowed("a list of origins such as https://shop.example or http://localhost:3000, without a path");
        let url = Url::parse(text).map_err(|_| ALLOWED)?;
        // An opaque origin is written "null", which differs from every URL.
        let origin = url.origin().ascii_serialization();
        if matches!(url.scheme(), "http" | "https") && origin.eq_ignore_ascii_case(text) { Ok(Self(origin)) } else { Err(ALLOWED) }
    }
}

/// The name of a Kafka topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicName(String);

impl Deref for TopicName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicName {
    type Err = Allowed;
    fn from_str(text: &str) -> Result<Self, Allowed> {
        // The rule of org.apache.kafka.common.internals.Topic, less the length of our suffix.
        const MAX_LENGTH: usize = 249 - ".dead-letters".len();
        let characters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !text.is_empty() && text.len() <= MAX_LENGTH && text.chars().all(characters) && text != "." && text != ".." {
            Ok(Self(text.to_owned()))
        } else {
            Err(Allowed("a topic's name: 1 to 236 letters, digits, dots, underscores and hyphens"))
        }
    }
}

/// Addresses of Kafka brokers, `host:port` separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapServers(String);

impl Deref for BootstrapServers {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl FromStr for BootstrapServers {
    type Err = Allowed;
    fn from_str(text: &str) -> Result<Self, Allowed> {
        let is_address = |address: &str| {
            let (host, port) = address.trim().rsplit_once(':')?;
            let port: u16 = port.parse().ok()?;
            (!host.is_empty() && !host.contains(char::is_whitespace) && port > 0).then_some(())
        };
        if text.split(',').all(|address| is_address(address).is_some()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Allowed("addresses of brokers, host:port, separated by commas"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_that_is_no_level_is_refused() {
        for good in ["info", "WARN", "off", "info,sqlx=warn", "cart_commands[route]=debug"] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
        for wrong in ["warning", "verbose", "info;sqlx=warn", "info,sqlx=loud", "info,sqlx"] {
            assert!(wrong.parse::<LogFilter>().is_err(), "{wrong}");
        }
    }
}
