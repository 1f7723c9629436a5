//! The settings, which `settings.toml` describes.

use std::{ops::Deref, str::FromStr};

use serde::{Deserialize, Deserializer, de};
use service::{
    Validate,
    settings::{Invalid, TopicName, Whole},
};

#[derive(Debug, Deserialize)]
pub(crate) struct Settings {
    pub(crate) inventories_topic: TopicName,
    pub(crate) price_changes_topic: TopicName,
    pub(crate) consumer_group: ConsumerGroup,
    pub(crate) session_timeout_seconds: Whole<6, 300>,
}

impl Validate for Settings {
    fn validate(&self) -> Result<(), Invalid> {
        if self.inventories_topic == self.price_changes_topic {
            return Err(Invalid { key: "price_changes_topic", allowed: "another topic than inventories_topic".into() });
        }
        Ok(())
    }
}

/// A consumer group's name: 1 to 200 letters, digits, dots, underscores and hyphens.
#[derive(Debug)]
pub(crate) struct ConsumerGroup(String);

impl Deref for ConsumerGroup {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConsumerGroup {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=200).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        fits.then(|| Self(text.to_owned())).ok_or("1 to 200 letters, digits, dots, underscores and hyphens")
    }
}

impl<'de> Deserialize<'de> for ConsumerGroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
