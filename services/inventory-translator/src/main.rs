//! Inventories and prices from the outside world, from Kafka and over HTTP.

mod change_inventory;
mod change_price;
mod lag;
mod settings;
#[cfg(test)]
mod topic;

use std::process::ExitCode;

use cart_events::DomainEvent;
use kafka::{Brokers, Translation, Translator, TranslatorSettings, client::Inspector};
use service::{CancellationToken, Fault, Program, Service, Slices, settings::Kafka};
use settings::Settings;

static PROGRAM: Program<DomainEvent> = Program {
    name: env!("CARGO_PKG_NAME"),
    about: "Inventories and prices of products, from Kafka and over HTTP.",
    defaults: include_str!("settings.toml"),
    slices,
};

fn slices(slices: &mut Slices<'_, '_, DomainEvent>) {
    slices.route(change_inventory::route);
    slices.route(change_price::route);
    slices.route(lag::route);
}

fn main() -> ExitCode {
    service::run_with_kafka(&PROGRAM, start)
}

fn start(settings: Settings, kafka: Kafka, service: Service) -> Result<Service, Fault> {
    let (service, log) = service.with_log::<DomainEvent>()?;
    let brokers = Brokers::new(&*kafka.kafka_bootstrap_servers, service.name())
        .secured(kafka.security().into_iter().collect())
        .replaced_after(kafka.kafka_replace_client_seconds.seconds());
    let topics = [&settings.inventories_topic, &settings.price_changes_topic].map(|topic| topic.to_string()).into();
    let lag = lag::of(&log, Inspector::new(&brokers)?, &settings.consumer_group, topics);
    let translating = TranslatorSettings {
        session_timeout: settings.session_timeout_seconds.seconds(),
        ..TranslatorSettings::new(brokers, &*settings.consumer_group)
    };
    let translations = [
        Translation::new(&*settings.inventories_topic, change_inventory::translate),
        Translation::new(&*settings.price_changes_topic, change_price::translate),
    ];
    let translator = Translator::new(translating, log, translations)?;
    let (status, partitions) = (translator.status(), translator.status());
    Ok(service
        .data(lag)
        .ready_when("kafka", move || std::future::ready(status.ready()))
        .warn_when("partitions", move || {
            let waiting = partitions.waiting();
            std::future::ready(if waiting.is_empty() { Ok(()) } else { Err(waiting.join("; ")) })
        })
        .background("translator", move |shutdown: CancellationToken| async move { Ok(translator.run(shutdown).await?) }))
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn committed_openapi_document_matches_the_routes() {
        service::openapi::assert_committed(&PROGRAM.document(), concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));
    }
}
