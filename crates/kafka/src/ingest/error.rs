//! What can go wrong between a topic and the log.

use rdkafka::error::KafkaError;

/// Why a message can never be translated. It becomes a dead letter, and the partition goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Poison(pub String);

/// The translator cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TranslatorError {
    /// The consumer failed for good.
    #[error("the consumer failed for good")]
    Consumer(#[source] KafkaError),
    /// A part of it died.
    #[error("a part of the translator died")]
    Died(#[from] tokio::task::JoinError),
}
