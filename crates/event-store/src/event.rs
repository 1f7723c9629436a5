//! Events and their metadata.

use std::ops::Deref;

use disintegrate::{Event, IdentifierValue};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{error::StoreError, position::Position};

/// The events of a log: disintegrate's `Event`, stored as JSON, with domain ids that are UUIDs.
pub trait LogEvent: Event + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<E: Event + Clone + Serialize + DeserializeOwned + Send + Sync + 'static> LogEvent for E {}

/// Facts that are stored beside an event.
///
/// A value that cannot be read counts as missing, because it must not keep anybody from reading the event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The id of the append that wrote the event. Unlike its position, a restored log never gives it to another event. The store sets it.
    #[serde(default, deserialize_with = "readable", skip_serializing_if = "Option::is_none")]
    pub append_id: Option<Uuid>,
    /// The W3C trace context of the event's cause. One trace then leads from the request to the published message.
    #[serde(default, deserialize_with = "readable", skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// An id that everything has that one request or message leads to.
    #[serde(default, deserialize_with = "readable", skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The event's direct cause: a position, or a message's topic, partition and offset.
    #[serde(default, deserialize_with = "readable", skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
}

/// Reads a value, or `None` if it has another shape, such as arrays that are nested too deep to be read.
fn readable<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(|value| serde_json::from_str(value.get()).ok())
}

impl Metadata {
    /// Creates metadata with the current span's trace context and the current correlation id.
    pub fn current() -> Self {
        let correlation_id = crate::correlation::current();
        Self { traceparent: crate::trace::current_traceparent(), correlation_id, ..Self::default() }
    }

    /// Returns the stored JSON. The append's id lets recovery find the append again if its answer is lost.
    pub(crate) fn stored(&self, append_id: Uuid) -> String {
        let stored = Self { append_id: Some(append_id), ..self.clone() };
        serde_json::to_string(&stored).unwrap_or_else(|_| format!(r#"{{"append_id":"{append_id}"}}"#))
    }
}

/// An event of the log, with its position and metadata.
#[derive(Debug, Clone)]
pub struct Recorded<E> {
    /// Its position.
    pub position: Position,
    /// The event.
    pub event: E,
    /// Its metadata.
    pub metadata: Metadata,
    /// When it was written, by the database's clock.
    pub recorded_at: time::OffsetDateTime,
}

impl<E> Deref for Recorded<E> {
    type Target = E;
    fn deref(&self) -> &E {
        &self.event
    }
}

/// Returns the domain ids of a log's schema, sorted: the order that every array and column list of the SQL has.
pub fn domain_ids<E: Event>() -> Vec<&'static str> {
    let mut ids: Vec<_> = E::SCHEMA.domain_ids.iter().map(|id| id.ident.into_inner()).collect();
    ids.sort_unstable();
    ids
}

/// Returns an event's ids, in the schema's order.
///
/// # Errors
/// If an id is not a UUID: the log has only uuid columns.
pub(crate) fn ids_of<E: Event>(event: &E, order: &[&'static str]) -> Result<Vec<Option<Uuid>>, StoreError> {
    let mut ids = vec![None; order.len()];
    for (ident, value) in &*event.domain_ids() {
        let (Some(slot), IdentifierValue::Uuid(id)) = (order.iter().position(|name| *name == ident.into_inner()), value) else {
            return Err(StoreError::Schema(format!("the domain id {ident} of {} is no UUID of the log's schema", event.name())));
        };
        if let Some(slot) = ids.get_mut(slot) {
            *slot = Some(*id);
        }
    }
    Ok(ids)
}

pub(crate) fn encode<E: Serialize>(event: &E) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(event).map_err(|error| StoreError::Encode(error.to_string()))
}

/// Reads an event from its stored payload.
///
/// # Errors
/// If the payload does not have the event's shape.
pub fn decode<E: DeserializeOwned>(position: i64, payload: &[u8]) -> Result<E, StoreError> {
    serde_json::from_slice(payload).map_err(|error| StoreError::Decode { position: Position(position), error: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_metadata_counts_as_missing() {
        let stored = r#"{"append_id":7,"traceparent":["00-"],"correlation_id":"order 1","causation_id":null,"more":{}}"#;
        let read: Metadata = serde_json::from_str(stored).unwrap();
        assert_eq!(read, Metadata { correlation_id: Some("order 1".to_owned()), ..Metadata::default() });
        let deep = format!(r#"{{"traceparent":{}{},"correlation_id":"order 1","more":1e999999}}"#, "[".repeat(4_000), "]".repeat(4_000));
        assert_eq!(serde_json::from_str::<Metadata>(&deep).unwrap(), read);
        assert_eq!(serde_json::from_value::<Metadata>(serde_json::json!({"traceparent": {}, "correlation_id": "order 1"})).unwrap(), read);
    }

    #[test]
    fn stored_metadata_begins_with_the_append_id() {
        let id = Uuid::now_v7();
        let others = Metadata { append_id: Some(Uuid::nil()), causation_id: Some("9".to_owned()), ..Metadata::default() };
        assert_eq!(others.stored(id), format!(r#"{{"append_id":"{id}","causation_id":"9"}}"#));
    }
}
