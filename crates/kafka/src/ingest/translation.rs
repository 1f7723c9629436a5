//! How the messages of a topic become events.

use super::{error::Poison, message::Message};

/// Makes an event of a message. Pure: a message that is delivered again, or whose batch is tried again, is translated again.
pub(crate) type Translate<E> = fn(&Message<'_>) -> Result<E, Poison>;

/// How the messages of a topic become events.
pub struct Translation<E> {
    pub(crate) topic: String,
    pub(crate) translate: Translate<E>,
}

impl<E> Translation<E> {
    /// The messages of this topic by this function. What the function refuses becomes a dead letter in the topic `<topic>.dead-letters`.
    pub fn new(topic: impl Into<String>, translate: fn(&Message<'_>) -> Result<E, Poison>) -> Self {
        Self { topic: topic.into(), translate }
    }
}
