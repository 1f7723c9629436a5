//! Submitted carts, published to Kafka.

mod publish_cart;

use std::{process::ExitCode, sync::Arc};

use cart_events::DomainEvent;
use event_store::Position;
use kafka::{Brokers, Publisher, PublisherSettings};
use projections::{Projection, todo};
use publish_cart::{PublishCartAutomation, Publishing};
use serde::Deserialize;
use service::{
    CancellationToken, Fault, Program, Service, Slices, Validate,
    settings::{Kafka, TopicName, Whole},
};
use tokio::sync::watch;

static PROGRAM: Program<DomainEvent> =
    Program { name: env!("CARGO_PKG_NAME"), about: "Publishes submitted carts to Kafka.", defaults: include_str!("settings.toml"), slices };

fn slices(slices: &mut Slices<'_, '_, DomainEvent>) {
    slices.route(service::lag::route);
}

fn main() -> ExitCode {
    service::run_with_kafka(&PROGRAM, start)
}

#[derive(Debug, Deserialize)]
struct Settings {
    published_carts_topic: TopicName,
    publish_deadline_seconds: Whole<1, 604_800>,
    publish_concurrency: Whole<1, 1_000>,
}

impl Validate for Settings {}

fn start(settings: Settings, kafka: Kafka, service: Service) -> Result<Service, Fault> {
    let (service, log) = service.with_log::<DomainEvent>()?;
    let (service, projections) = service.with_projections(&log);
    let brokers = Brokers::new(&*kafka.kafka_bootstrap_servers, service.name()).secured(kafka.security().into_iter().collect());
    let sending = PublisherSettings::new(brokers);
    let publishing = Publishing {
        log,
        publisher: Publisher::new(&sending)?,
        topic: settings.published_carts_topic.to_string(),
        deadline: settings.publish_deadline_seconds.seconds(),
        message_timeout: sending.message_timeout,
        command_timeout: service.settings().command_timeout_milliseconds.milliseconds(),
    };
    let working = publishing.working(settings.publish_concurrency.as_usize());
    let projected = Arc::new(watch::Sender::new(Position::START));
    let asked = projected.subscribe();
    let ready = publishing.clone();
    Ok(service
        .ready_when("kafka", move || {
            let publishing = ready.clone();
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
        }))
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn committed_openapi_document_matches_the_routes() {
        service::openapi::assert_committed(&PROGRAM.document(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
