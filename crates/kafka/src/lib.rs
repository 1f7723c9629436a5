//! Between Kafka and the log. Knows no cart.
//!
//! [`Translator`] turns each message of its topics into an event, once, however often Kafka delivers it. One call to the log appends a
//! batch's events and moves the partition's stored offset. A message that cannot be read becomes a dead letter. [`Publisher`] sends
//! messages and returns when the broker has them. [`lags`] says how far translators are behind.

pub mod client;
mod ingest;
mod publish;

pub use client::{
    brokers::{Brokers, Security},
    error::{SendError, StartError},
};
pub use ingest::{
    config::TranslatorSettings,
    dead_letter,
    error::{InvalidMessage, TranslatorError},
    lag::{LagError, TopicLag, lags},
    message::{Message, json},
    translation::Translation,
    translator::{Translator, TranslatorStatus},
};
pub use publish::{CloudEvent, Publisher, PublisherSettings};
