//! Submitted carts, out to Kafka.

mod publish_cart;

use std::{process::ExitCode, sync::Arc};

use actix_web::web;
use cart_events::DomainEvent;
use event_store::Position;
use kafka::{Brokers, Publisher, PublisherSettings};
use projections::{Projection, Projections, todo};
use publish_cart::{PublishCartAutomation, Publishing};
use serde::Deserialize;
use service::{
    Arguments, CancellationToken, Fault, Service, Validate, open_log,
    settings::{Kafka, TopicName, Whole},
};
use tokio::sync::watch;
use utoipa::OpenApi;

fn main() -> ExitCode {
    let arguments = Arguments::parse("publisher", "Submitted carts, published to Kafka");
    service::run_with_kafka("publisher", &arguments, include_str!("settings.toml"), start)
}

#[derive(Debug, Deserialize)]
struct Settings {
    published_carts_topic: TopicName,
    publish_deadline_seconds: Whole<1, 604_800>,
    publish_concurrency: Whole<1, 1_000>,
}

impl Validate for Settings {}

async fn start(settings: Settings, kafka: Kafka, service: Service) -> Result<(), Fault> {
    let log = open_log::<DomainEvent>(service.settings())?;
    let brokers = Brokers::new(&*kafka.kafka_bootstrap_servers, service.name()).secured(kafka.security().into_iter().collect());
    let sending = PublisherSettings::new(brokers);
    let publishing = Publishing {
        log: log.clone(),
        publisher: Publisher::new(&sending)?,
        topic: settings.published_carts_topic.to_string(),
        deadline: settings.publish_deadline_seconds.seconds(),
        message_timeout: sending.message_timeout,
        command_timeout: service.settings().command_timeout_milliseconds.milliseconds(),
    };
    let working = publishing.working(settings.publish_concurrency.as_usize());
    let projected = Arc::new(watch::Sender::new(Position::START));
    let asked = projected.subscribe();
    let projections = Projections::new(log.clone());
    let lag = service::lag::of(&projections);
    let (log_ready, broker_ready) = (log, publishing.clone());
    service
        .ready_when("log", move || {
            let log = log_ready.clone();
            async move { log.ready().await }
        })
        .ready_when("kafka", move || {
            let publishing = broker_ready.clone();
            async move { publishing.publisher.ready(&publishing.topic).await }
        })
        .background(PublishCartAutomation::NAME, move |shutdown: CancellationToken| async move {
            Ok(projections.run(PublishCartAutomation, projections::Settings::default(), projected, shutdown).await?)
        })
        .background("publish_cart to-dos", move |shutdown: CancellationToken| async move {
            let pool = publishing.log.pool().clone();
            let attempt = |todo| publishing.clone().attempt(todo);
            todo::work(pool, PublishCartAutomation::NAME, working, asked, shutdown, attempt).await;
            Ok(())
        })
        .serve(Api::openapi(), move |app: &mut web::ServiceConfig| {
            app.app_data(lag.clone()).service(service::lag::route);
        })
        .await
}

/// Publishes Cartlog's submitted carts.
#[derive(OpenApi)]
#[openapi(info(title = "publisher"), paths(service::lag::route))]
struct Api;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_openapi_document_is_the_served_one() {
        service::openapi::assert_committed(&Api::openapi(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
