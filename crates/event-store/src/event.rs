//! Events and their metadata.

use std::ops::Deref;

use disintegrate::{Event, IdentifierValue};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{error::StoreError, position::Position};

/// The events of a log: disintegrate's `Event`, stored as JSON, with domain ids that are UUIDs.
pub trait LogEvent: Event + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<E: Event + Clone + Serialize + DeserializeOwned + Send + Sync + 'static> LogEvent for E {}

/// What is stored beside an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The W3C trace context of the event's cause. One trace then leads from the request to the published message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// An id that the caller gives to events that belong together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The event's direct cause: a position, or a message's topic, partition and offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
}

impl Metadata {
    /// Creates metadata with the current span's trace context.
    pub fn current() -> Self {
        Self { traceparent: crate::trace::current_traceparent(), ..Self::default() }
    }

    /// Returns the stored JSON. The append's id lets recovery find the append again if its answer is lost.
    pub(crate) fn stored(&self, append_id: Uuid) -> String {
        #[derive(Serialize)]
        struct Stored<'a> {
            append_id: Uuid,
            #[serde(flatten)]
            metadata: &'a Metadata,
        }
        serde_json::to_string(&Stored { append_id, metadata: self }).unwrap_or_else(|_| format!(r#"{{"append_id":"{append_id}"}}"#))
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
