//! Between Kafka and the log. Knows no cart.
//!
//! [`Translator`] turns the messages of topics into events, each once, however often Kafka delivers it: a batch of a partition's events
//! and the partition's next offset go into the log in one step. What cannot be read becomes a dead letter. [`Publisher`] sends
//! messages, and answers only when the broker has them. [`Operator`] shows dead letters and sends them back.

mod config;
mod dead_letter;
mod error;
mod input;
mod message;
mod metrics;
mod operate;
mod output;
mod producer;
mod refusal;
mod traceparent;

pub use config::{Brokers, PublisherSettings, Security, TranslatorSettings};
pub use error::{Poison, SendError, StartError, TranslatorError};
pub use input::{Translation, Translator, TranslatorStatus};
pub use message::{Message, json};
pub use operate::{DeadLetter, LagError, Letter, OperateError, Operator, Place, TopicLag, lags};
pub use output::{CloudEvent, Publisher};
