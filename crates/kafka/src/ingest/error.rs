//! Errors between a topic and the log.

use rdkafka::error::KafkaError;

/// The reason why a message cannot be translated. The message becomes a dead letter, and the partition continues.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidMessage(pub String);

/// The translator cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum TranslatorError {
    /// The consumer failed for good.
    #[error("the consumer failed for good")]
    Consumer(#[source] KafkaError),
    /// A task of the translator died.
    #[error("a task of the translator died")]
    Died(#[from] tokio::task::JoinError),
}
