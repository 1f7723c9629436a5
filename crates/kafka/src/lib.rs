//! Between Kafka and the log. Knows no cart.
//!
//! [`Translator`] turns the messages of topics into events, each once, however often Kafka delivers it: a batch of a partition's events
//! and the partition's next offset go into the log in one step. What cannot be read becomes a dead letter. [`Publisher`] sends
//! messages, and answers only when the broker has them. [`Operator`] shows dead letters and sends them back.

mod client;
mod ingest;
mod operate;
mod publish;

pub use client::{
    brokers::{Brokers, Security},
    error::{SendError, StartError},
};
pub use ingest::{
    config::TranslatorSettings,
    error::{Poison, TranslatorError},
    message::{Message, json},
    translation::Translation,
    translator::{Translator, TranslatorStatus},
};
pub use operate::{DeadLetter, LagError, Letter, OperateError, Operator, Place, TopicLag, lags};
pub use publish::{CloudEvent, Publisher, PublisherSettings};
