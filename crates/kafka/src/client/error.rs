//! Errors of clients.

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

/// librdkafka does not accept the settings.
#[derive(Debug, thiserror::Error)]
#[error("the Kafka client cannot be created from these settings")]
pub struct StartError(#[from] KafkaError);

/// A message was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A retry may help: the broker is away, the topic is missing, or the send timed out. The message may have been written.
    #[error("the message for the topic {topic} was not acknowledged: {cause}")]
    Transient {
        /// The topic.
        topic: String,
        /// Why.
        cause: KafkaError,
    },
    /// A retry does not help: the message is too large, or refused by the topic's rules.
    #[error("the topic {topic} does not accept this message: {cause}")]
    Permanent {
        /// The topic.
        topic: String,
        /// Why.
        cause: KafkaError,
    },
}

impl SendError {
    pub(crate) fn new(topic: &str, cause: KafkaError) -> Self {
        let topic = topic.to_owned();
        match cause.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::MessageBatchTooLarge
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTimestamp
                | RDKafkaErrorCode::PolicyViolation,
            ) => Self::Permanent { topic, cause },
            _ => Self::Transient { topic, cause },
        }
    }

    /// Returns whether sending this message again is useless.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Permanent { .. })
    }
}

/// Writes an error and its causes in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
