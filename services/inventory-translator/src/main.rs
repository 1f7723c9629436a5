//! Inventories and prices, as the outside world tells them: from Kafka, and over HTTP.

mod change_inventory;
mod change_price;
mod lag;
mod settings;
#[cfg(test)]
mod topic;

use std::process::ExitCode;

use actix_web::web;
use cart_events::DomainEvent;
use kafka::{Brokers, Translation, Translator, TranslatorSettings};
use service::{Arguments, CancellationToken, Fault, Service, open_log, settings::Kafka};
use settings::Settings;
use utoipa::OpenApi;

fn main() -> ExitCode {
    let arguments = Arguments::parse("inventory-translator", "Inventories and price changes, from Kafka and over HTTP, into the log");
    service::run_with_kafka("inventory-translator", &arguments, include_str!("settings.toml"), start)
}

async fn start(settings: Settings, kafka: Kafka, service: Service) -> Result<(), Fault> {
    let log = open_log::<DomainEvent>(service.settings())?;
    let brokers = Brokers::new(&*kafka.kafka_bootstrap_servers, service.name()).secured(kafka.security().into_iter().collect());
    let topics = [&settings.inventories_topic, &settings.price_changes_topic].map(|topic| topic.to_string()).into();
    let lag = lag::of(&log, &brokers, &settings.consumer_group, topics);
    let translating = TranslatorSettings {
        session_timeout: settings.session_timeout_seconds.seconds(),
        ..TranslatorSettings::new(brokers, &*settings.consumer_group)
    };
    let translations = [
        Translation::new(&*settings.inventories_topic, change_inventory::translate),
        Translation::new(&*settings.price_changes_topic, change_price::translate),
    ];
    let translator = Translator::new(translating, log.clone(), translations)?;
    let (log_ready, translator_status) = (log.clone(), translator.status());
    service
        .ready_when("log", move || {
            let log = log_ready.clone();
            async move { log.ready().await }
        })
        .ready_when("kafka", move || {
            let status = translator_status.clone();
            async move { status.ready() }
        })
        .background("translator", move |shutdown: CancellationToken| async move { Ok(translator.run(shutdown).await?) })
        .serve(Api::openapi(), move |app: &mut web::ServiceConfig| {
            app.app_data(web::Data::new(log.clone()))
                .app_data(lag.clone())
                .service(lag::route)
                .service(change_inventory::route)
                .service(change_price::route);
        })
        .await
}

/// Inventories and prices of Cartlog's products. They come over Kafka, mostly; these are the same commands over HTTP.
#[derive(OpenApi)]
#[openapi(info(title = "inventory-translator"), paths(change_inventory::route, change_price::route, lag::route))]
struct Api;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_openapi_document_is_the_served_one() {
        service::openapi::assert_committed(&Api::openapi(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
