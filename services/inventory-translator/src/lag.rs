//! `/lag`: the messages that are not translated yet, of all translators together.

use std::collections::BTreeMap;

use actix_web::{get, web};
use cart_events::DomainEvent;
use event_store::EventStore;
use kafka::{LagError, client::Inspector};
use serde::Serialize;
use service::{ErrorBody, ErrorCode, HttpError, lag::Cached};

/// How far all translators together are behind.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(crate) struct Lag {
    /// Messages that are not translated yet.
    lag: i64,
    /// The lag of each topic.
    topics: BTreeMap<String, TopicLag>,
}

/// How far all translators together are behind on a topic.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(crate) struct TopicLag {
    /// Messages of the topic that are not translated yet.
    lag: i64,
    /// Its partitions, which is the largest number of translators that can share it.
    partitions: usize,
}

/// Reads the lag; [`route`] answers from it.
pub(crate) fn of(log: &EventStore<DomainEvent>, inspector: Inspector, group: &str, topics: Vec<String>) -> Cached<Lag> {
    let (log, group) = (log.clone(), group.to_owned());
    Cached::new(move || {
        let (log, inspector, group, topics) = (log.clone(), inspector.clone(), group.clone(), topics.clone());
        async move {
            let lags = kafka::lags(&inspector, &log, &group, topics).await.map_err(|error| match error {
                LagError::Store(error) => error.into(),
                LagError::Brokers(error) => HttpError::new(ErrorCode::Unavailable, "the brokers do not answer; try again").caused_by(error),
            })?;
            let topics: BTreeMap<_, _> =
                lags.into_iter().map(|(topic, kafka::TopicLag { lag, partitions })| (topic, TopicLag { lag, partitions })).collect();
            Ok::<_, HttpError>(Lag { lag: topics.values().map(|topic| topic.lag).sum(), topics })
        }
    })
}

/// Answers how far all processes of the service together are behind. The answer is at most a second old.
#[utoipa::path(
    operation_id = "lag",
    tag = "internal",
    responses(
        (status = 200, body = Lag),
        (status = 503, description = "unavailable, busy", body = ErrorBody)
    )
)]
#[get("/lag")]
pub(crate) async fn route(lag: web::Data<Cached<Lag>>) -> Result<web::Json<Lag>, HttpError> {
    Ok(web::Json(Lag::clone(&*lag.get().await?)))
}
