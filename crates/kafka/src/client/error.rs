//! What can go wrong with a client of Kafka.

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

/// A client could not be made from its settings.
#[derive(Debug, thiserror::Error)]
#[error("the Kafka client cannot be made from these settings")]
pub struct StartError(#[from] KafkaError);

/// A message was not sent, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It may go better later: the broker is away, the topic is missing, the time was up. The message may have been written.
    #[error("the message for the topic {topic} was not acknowledged: {cause}")]
    Transient {
        /// The topic.
        topic: String,
        /// Why.
        cause: KafkaError,
    },
    /// This message will never be taken, by that topic as it is: it is too large, or refused by the topic's rules.
    #[error("the topic {topic} does not take this message: {cause}")]
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

    /// Whether it is of no use to send this message again.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Permanent { .. })
    }
}

/// An error and its causes in one line.
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
