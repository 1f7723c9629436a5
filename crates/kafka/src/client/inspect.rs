//! Questions to the brokers about topics, by a consumer that joins no group.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
};

use super::{brokers::Brokers, connected::LastConnected, context::ClientLog, error::StartError};

/// How long the brokers may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the brokers. The clones share one client.
#[derive(Clone)]
pub struct Inspector {
    brokers: Brokers,
    config: ClientConfig,
    consumer: Arc<Mutex<Arc<BaseConsumer<ClientLog>>>>,
    answered: LastConnected,
    /// Held while a question is asked: two would take each other's answers from the consumer.
    asking: Arc<Mutex<()>>,
}

/// A question to the brokers failed.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The brokers did not answer, or not as expected.
    #[error("the broker at {servers} did not answer as expected")]
    Broker {
        /// The brokers.
        servers: String,
        /// The cause.
        #[source]
        cause: KafkaError,
    },
    /// The task that asked died.
    #[error("the task that asked the broker died")]
    Died(#[from] tokio::task::JoinError),
}

impl Inspector {
    /// Creates an inspector. It connects at the first question.
    ///
    /// # Errors
    /// If librdkafka does not accept the settings.
    pub fn new(brokers: &Brokers) -> Result<Self, StartError> {
        Self::with(brokers, brokers.inspecting())
    }

    /// Creates an inspector that reads many messages.
    ///
    /// # Errors
    /// If librdkafka does not accept the settings.
    pub fn reading(brokers: &Brokers) -> Result<Self, StartError> {
        Self::with(brokers, brokers.reading())
    }

    fn with(brokers: &Brokers, config: ClientConfig) -> Result<Self, StartError> {
        let consumer = Arc::new(Mutex::new(Arc::new(create(&config, brokers)?)));
        Ok(Self { brokers: brokers.clone(), config, consumer, answered: LastConnected::default(), asking: Arc::default() })
    }

    /// Runs a question, after those that are being asked. It may block, so it gets a thread of its own.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<ClientLog>) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, InspectError> {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let asking = self.asking.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let _alone = asking.lock().unwrap_or_else(PoisonError::into_inner);
            // Errors since the last question would queue up for ever.
            while consumer.poll(Duration::ZERO).is_some() {}
            question(&consumer)
        });
        let servers = || format!("{}{}", self.brokers.bootstrap_servers, self.brokers.authentication);
        let answer = answer.await?.map_err(|cause| InspectError::Broker { servers: servers(), cause });
        match &answer {
            Ok(_) => self.answered.now(),
            // The next question asks with a new client.
            Err(_) if self.answered.lost_for() >= self.brokers.replace_after => self.replace(),
            Err(_) => {}
        }
        answer
    }

    /// Asks with a new client from now on.
    pub(crate) fn replace(&self) {
        match create(&self.config, &self.brokers) {
            Ok(new) => {
                self.answered.now();
                let old = std::mem::replace(&mut *self.consumer.lock().unwrap_or_else(PoisonError::into_inner), Arc::new(new));
                // The last clone waits for librdkafka to end, which blocks.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => tracing::error!(%error, "client that asks the brokers not replaced"),
        }
    }

    /// Returns the first offset of each partition of a topic and the offset after its last. A topic that does not exist has none.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn ends(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, InspectError> {
        let topic = topic.to_owned();
        self.ask(move |consumer| ends(consumer, &topic)).await
    }
}

fn create(config: &ClientConfig, brokers: &Brokers) -> Result<BaseConsumer<ClientLog>, KafkaError> {
    BaseConsumer::from_config_and_context(config, ClientLog::new(brokers))
}

/// Returns the first offset of each partition of a topic and the offset after its last; blocks.
///
/// # Errors
/// If the brokers do not answer.
pub fn ends(consumer: &BaseConsumer<ClientLog>, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    let partitions = found.map(|topic| topic.partitions().iter().map(|partition| partition.id()).collect::<Vec<_>>()).unwrap_or_default();
    partitions.into_iter().map(|partition| Ok((partition, consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?))).collect()
}

/// Returns whether a topic exists; blocks.
pub(crate) fn topic_exists<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<bool, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), timeout)?;
    Ok(metadata.topics().iter().any(|found| found.name() == topic && found.error().is_none() && !found.partitions().is_empty()))
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::*;

    #[tokio::test]
    async fn questions_of_all_clones_share_one_client() {
        let inspector = Inspector::new(&Brokers::new("127.0.0.1:9", "test")).unwrap();
        let client = async |inspector: &Inspector| inspector.ask(|consumer| Ok(consumer.client().native_ptr() as usize)).await.unwrap();
        let first = client(&inspector).await;
        assert_eq!(client(&inspector.clone()).await, first);
    }

    #[tokio::test]
    async fn client_without_answers_is_replaced() {
        let brokers = Brokers { replace_after: Duration::from_millis(300), ..Brokers::new("127.0.0.1:9", "test") };
        let inspector = Inspector::new(&brokers).unwrap();
        let client = async || {
            let (send, asked) = std::sync::mpsc::channel();
            let question = move |consumer: &BaseConsumer<ClientLog>| {
                let _ = send.send(consumer.client().native_ptr() as usize);
                Err::<(), _>(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure))
            };
            inspector.ask(question).await.unwrap_err();
            asked.recv().unwrap()
        };
        let first = client().await;
        assert_eq!(client().await, first, "an error is no reason");
        test_support::eventually("it is replaced", || async { (client().await != first).then_some(()) }).await;
    }
}
