//! `/lag`: messages that are still to be translated, by all translators together.

use std::collections::BTreeMap;

use actix_web::{get, web};
use cart_events::DomainEvent;
use event_store::EventStore;
use kafka::{Brokers, LagError};
use serde::Serialize;
use service::{ErrorBody, ErrorCode, HttpError, lag::Cached};

/// How far the translators are behind, all of them together.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(crate) struct Lag {
    /// Messages that are still to be translated.
    lag: i64,
    /// Those of each topic.
    topics: BTreeMap<String, TopicLag>,
}

/// How far they are behind on a topic.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(crate) struct TopicLag {
    /// From what was translated last to the partitions' ends.
    lag: i64,
    /// Its partitions: so many processes can share it at the most.
    partitions: usize,
}

/// What [`route`] answers from.
pub(crate) fn of(log: &EventStore<DomainEvent>, brokers: &Brokers, group: &str, topics: Vec<String>) -> Cached<Lag> {
    let (log, brokers, group) = (log.clone(), brokers.clone(), group.to_owned());
    Cached::new(move || {
        let (log, brokers, group, topics) = (log.clone(), brokers.clone(), group.clone(), topics.clone());
        async move {
            let lags = kafka::lags(&brokers, &log, &group, topics).await.map_err(|error| match error {
                LagError::Store(error) => error.into(),
                LagError::Brokers(error) => HttpError::new(ErrorCode::Unavailable, "the brokers do not answer; try again").caused_by(error),
            })?;
            let topics: BTreeMap<_, _> =
                lags.into_iter().map(|(topic, kafka::TopicLag { lag, partitions })| (topic, TopicLag { lag, partitions })).collect();
            Ok::<_, HttpError>(Lag { lag: topics.values().map(|topic| topic.lag).sum(), topics })
        }
    })
}

/// Answers how far all translators together are behind. The answer is at most a second old.
#[utoipa::path(
    operation_id = "lag",
    tag = "operations",
    responses(
        (status = 200, body = Lag),
        (status = 503, description = "unavailable, busy", body = ErrorBody)
    )
)]
#[get("/lag")]
pub(crate) async fn route(lag: web::Data<Cached<Lag>>) -> Result<web::Json<Lag>, HttpError> {
    Ok(web::Json(Lag::clone(&*lag.get().await?)))
}
