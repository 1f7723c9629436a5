//! Events, positions and metadata.

use std::ops::Deref;

use disintegrate::{Event, IdentifierValue};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{error::StoreError, position::Position};

/// What a log is made of: disintegrate's `Event`, stored as JSON, tagged with ids that are UUIDs.
pub trait LogEvent: Event + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<E: Event + Clone + Serialize + DeserializeOwned + Send + Sync + 'static> LogEvent for E {}

/// What is known of an event besides itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The W3C trace context of what caused the event, so that one trace leads from the request to the published message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What this and other events belong together by, where the caller names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// What directly caused the event: a position, or a message's topic, partition and offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
}

impl Metadata {
    /// Metadata with the current span's trace context.
    pub fn current() -> Self {
        Self { traceparent: crate::trace::current_traceparent(), ..Self::default() }
    }

    /// As stored, with the id by which an append is found again when its answer was lost.
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

/// An event as it stands in the log.
#[derive(Debug, Clone)]
pub struct Recorded<E> {
    /// Where it stands.
    pub position: Position,
    /// What happened.
    pub event: E,
    /// What is known besides.
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

/// The ids of a log's schema, in the order in which every array and column list of the SQL has them.
pub fn domain_ids<E: Event>() -> Vec<&'static str> {
    let mut ids: Vec<_> = E::SCHEMA.domain_ids.iter().map(|id| id.ident.into_inner()).collect();
    ids.sort_unstable();
    ids
}

/// An event's ids, in the schema's order.
///
/// # Errors
/// Where an id is no UUID: the log has only uuid columns.
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

/// Reads an event back from its stored payload.
///
/// # Errors
/// Where the payload is not of today's shape.
pub fn decode<E: DeserializeOwned>(position: i64, payload: &[u8]) -> Result<E, StoreError> {
    serde_json::from_slice(payload).map_err(|error| StoreError::Decode { position: Position(position), error: error.to_string() })
}
