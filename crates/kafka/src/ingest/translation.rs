//! How the messages of a topic become events.

use super::{error::InvalidMessage, message::Message};

/// Translates a message into an event. It must be pure: a message is translated again if it is delivered again or its batch is retried.
pub(crate) type Translate<E> = fn(&Message<'_>) -> Result<E, InvalidMessage>;

/// How the messages of a topic become events.
pub struct Translation<E> {
    pub(crate) topic: String,
    pub(crate) translate: Translate<E>,
}

impl<E> Translation<E> {
    /// Translates the messages of a topic with a function. A message that the function refuses goes to `<topic>.dead-letters`.
    pub fn new(topic: impl Into<String>, translate: fn(&Message<'_>) -> Result<E, InvalidMessage>) -> Self {
        Self { topic: topic.into(), translate }
    }
}
