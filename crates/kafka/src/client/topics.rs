//! Questions to the brokers about topics.

use std::time::Duration;

use rdkafka::{ClientContext, error::KafkaError};

/// Whether a topic exists, asked of the brokers; blocks for up to the timeout.
pub(crate) fn topic_exists<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<bool, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), timeout)?;
    Ok(metadata.topics().iter().any(|found| found.name() == topic && found.error().is_none() && !found.partitions().is_empty()))
}
