//! Submitted carts, published to Kafka.

mod publish_cart;

use std::process::ExitCode;

use cart_events::DomainEvent;
use kafka::{Brokers, Publisher, PublisherSettings};
use publish_cart::PublishCartAutomation;
use serde::Deserialize;
use service::{
    Fault, Program, Service, Slices, Validate,
    settings::{Kafka, TopicName, Whole},
};

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
    todo_retention_days: Whole<1, 3_650>,
}

impl Validate for Settings {}

fn start(settings: Settings, kafka: Kafka, service: Service) -> Result<Service, Fault> {
    let (service, log) = service.with_log::<DomainEvent>()?;
    let (service, projections) = service.with_projections(&log);
    let brokers = Brokers::new(&*kafka.kafka_bootstrap_servers, service.name())
        .secured(kafka.security().into_iter().collect())
        .replaced_after(kafka.kafka_replace_client_seconds.seconds());
    let sending = PublisherSettings::new(brokers);
    let automation = PublishCartAutomation {
        log,
        publisher: Publisher::new(&sending)?,
        topic: settings.published_carts_topic.to_string(),
        deadline: settings.publish_deadline_seconds.seconds(),
        message_timeout: sending.message_timeout,
        concurrency: settings.publish_concurrency.as_usize(),
    };
    let settings = projections::Settings { todo_retention: settings.todo_retention_days.days(), ..projections::Settings::default() };
    let ready = automation.clone();
    Ok(service
        .ready_when("kafka", move || {
            let automation = ready.clone();
            async move { automation.publisher.ready(&automation.topic).await }
        })
        .automation(&projections, &settings, automation))
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn committed_openapi_document_matches_the_routes() {
        service::openapi::assert_committed(&PROGRAM.document(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
