//! An event as pages show it.

use cart_events::DomainEvent;
use event_store::Metadata;
use operations::{Entry, metadata, text};
use serde_json::Value;

/// The characters of a value that a list shows.
const SHORT: usize = 80;

/// An event as pages show it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) position: i64,
    pub(crate) at: String,
    pub(crate) event_type: String,
    /// Its fields, as text.
    pub(crate) fields: Vec<Field>,
    pub(crate) cause: Option<Cause>,
    pub(crate) correlation_id: Option<String>,
    /// Why it cannot be decoded.
    pub(crate) error: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: String,
    /// The page about the value.
    pub(crate) link: Option<String>,
}

/// What caused an event.
#[derive(Debug)]
pub(crate) enum Cause {
    Event(i64),
    Message(String),
}

impl Shown {
    /// An event in a list: long values are cut.
    pub(crate) fn of(entry: &Entry<DomainEvent>) -> Self {
        Self::with(entry, SHORT)
    }

    /// An event alone.
    pub(crate) fn whole(entry: &Entry<DomainEvent>) -> Self {
        Self::with(entry, usize::MAX)
    }

    fn with(entry: &Entry<DomainEvent>, longest: usize) -> Self {
        let Metadata { correlation_id, causation_id, .. } = metadata(entry);
        // As it is stored if this release cannot decode it.
        let data = match &entry.event {
            Ok(event) => serde_json::to_value(event).ok(),
            Err(_) => serde_json::from_slice(&entry.payload).ok(),
        };
        let fields = match data {
            Some(Value::Object(event)) => event.into_iter().next().map(|(_, fields)| fields),
            _ => None,
        };
        let fields = match fields {
            Some(Value::Object(fields)) => fields.into_iter().map(|(name, value)| field(&name, &value, longest)).collect(),
            _ => vec![],
        };
        Self {
            position: entry.position.0,
            at: text::moment(entry.recorded_at),
            event_type: text::clean(&entry.event_type).into_owned(),
            fields,
            cause: causation_id.map(|cause| cause.parse().map_or_else(|_| Cause::Message(text::clean(&cause).into_owned()), Cause::Event)),
            correlation_id,
            error: entry.event.as_ref().err().map(|error| text::clean(&error.to_string()).into_owned()),
        }
    }
}

fn field(name: &str, value: &Value, longest: usize) -> Field {
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let is_id = uuid::Uuid::try_parse(&shown).is_ok();
    let link = match name {
        "cart_id" if is_id => Some(format!("/console/carts/{shown}")),
        "product_id" if is_id => Some(format!("/console/log?product={shown}")),
        "item_id" if is_id => Some(format!("/console/log?item={shown}")),
        "price_changed_at" if value.is_i64() => Some(format!("/console/log/{shown}")),
        _ => None,
    };
    Field { name: text::clean(name).into_owned(), value: short(&text::clean(&shown), longest), link }
}

/// Cuts a text after so many characters.
pub(crate) fn short(text: &str, longest: usize) -> String {
    if text.chars().nth(longest).is_none() { text.to_owned() } else { text.chars().take(longest).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_and_their_hidden_characters_shown() {
        let value = Value::String(format!("<b>\u{202e}{}", "🛒".repeat(1_000)));
        let shown = field("description", &value, SHORT).value;
        assert!(shown.starts_with("<b>\\u{202e}🛒") && shown.ends_with("🛒…"), "{shown}");
        assert_eq!(shown.chars().count(), SHORT + 1);
        assert_eq!(field("description", &value, usize::MAX).value.chars().count(), 1_011);
        assert_eq!(field("inventory", &Value::from(7), SHORT).value, "7");
    }
}
