//! Change Inventory: the number of a product in stock, from Kafka or over HTTP.

use actix_web::{post, web};
use cart_events::{DomainEvent, Inventory, ProductId};
use event_store::{Decided, Decision, EventStore};
use kafka::{InvalidMessage, Message};
use serde::Deserialize;
use service::{Answer, HttpError, JsonBody, PathValue, Refusal, ensure_path_matches_body};

/// A message of the topic `inventories`. Its key is product_uuid, so the messages of a product keep their order.
#[derive(Debug, Deserialize)]
struct InventoryMessage {
    product_uuid: ProductId,
    inventory: Inventory,
}

/// Translates a message.
pub(crate) fn translate(message: &Message<'_>) -> Result<DomainEvent, InvalidMessage> {
    let InventoryMessage { product_uuid, inventory } = kafka::json(message)?;
    Ok(DomainEvent::InventoryChanged { product_id: product_uuid, inventory })
}

/// Changes the inventory of a product. A command that is sent again after a lost reply is a second change.
#[utoipa::path(
    operation_id = "change_inventory",
    tag = "internal",
    params(("product_id" = ProductId, Path)),
    request_body = ChangeInventory,
    responses((status = 200, description = "The product's id, and the position of InventoryChanged in the log.", body = (ProductId, i64)))
)]
#[post("/changeinventory/{product_id}")]
pub(crate) async fn route(
    PathValue(product_id): PathValue<ProductId>,
    JsonBody(command): JsonBody<ChangeInventory>,
    log: web::Data<EventStore<DomainEvent>>,
) -> Result<Answer<ProductId>, HttpError> {
    ensure_path_matches_body("product_id", &product_id, &command.product_id)?;
    Ok(Answer(command.product_id, service::command("change_inventory", log.decide(&command)).await?))
}

/// The command.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
pub(crate) struct ChangeInventory {
    product_id: ProductId,
    inventory: Inventory,
}

/// Never refused: the outside world decides about its stock.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match *self {}
    }
}

impl Decision for ChangeInventory {
    type Event = DomainEvent;
    type StateQuery = ();
    type Error = Refused;

    fn state_query(&self) {}

    fn process(&self, (): &()) -> Result<Decided<DomainEvent>, Refused> {
        Ok(Decided::Events(vec![DomainEvent::InventoryChanged { product_id: self.product_id, inventory: self.inventory }]))
    }
}

#[cfg(test)]
mod specifications {
    use proptest::{collection::vec, prelude::*};
    use test_support::{TestLog, given};

    use super::*;
    use crate::topic::{Topic, each_product_keeps_its_order};

    const PRODUCT: &str = "01890a5d-ac96-774b-bcce-b302099a8059";

    fn inventory_changed(inventory: i64) -> DomainEvent {
        DomainEvent::InventoryChanged { product_id: PRODUCT.parse().unwrap(), inventory: inventory.try_into().unwrap() }
    }

    fn translated(value: &str) -> Result<DomainEvent, String> {
        let message = Message { topic: "inventories", partition: 0, offset: 0, key: None, value: value.as_bytes() };
        translate(&message).map_err(|invalid| invalid.to_string())
    }

    proptest! {
        #[test]
        fn any_value_is_translated_or_refused(bytes in vec(any::<u8>(), 0..200), id in ".{0,40}", number in "-?[0-9.eE+_]{1,30}") {
            for id in [serde_json::json!(id), serde_json::json!(PRODUCT)] {
                let value = format!(r#"{{"product_uuid": {id}, "inventory": {number}}}"#);
                for value in [value.as_bytes(), &bytes] {
                    if let Ok(event) = translate(&Message { topic: "inventories", partition: 0, offset: 0, key: None, value }) {
                        let stored = serde_json::to_vec(&event).unwrap();
                        prop_assert_eq!(serde_json::from_slice::<DomainEvent>(&stored).unwrap(), event);
                    }
                }
            }
        }
    }

    #[test]
    fn translates_a_message() {
        let value = |inventory| format!(r#"{{"product_uuid": "{PRODUCT}", "inventory": {inventory}}}"#);
        for inventory in [0, 7, 2_147_483_647] {
            assert_eq!(translated(&value(inventory)), Ok(inventory_changed(inventory)));
        }
    }

    #[test]
    fn ignores_unknown_fields() {
        let value = format!(r#"{{"warehouse": {{"city": "Lübeck"}}, "product_uuid": "{PRODUCT}", "inventory": 7}}"#);
        assert_eq!(translated(&value), Ok(inventory_changed(7)));
    }

    #[test]
    fn refuses_an_unreadable_message_naming_the_field() {
        let version_4 = "0d9a77ae-7f5f-4c6f-8c0c-9d0e3b3b8f5e";
        for (value, reason) in [
            ("not JSON".to_owned(), "expected ident at"),
            (format!(r#"{{"product_uuid": "{PRODUCT}"}}"#), "missing field `inventory` at"),
            (format!(r#"{{"product_id": "{PRODUCT}", "inventory": 7}}"#), "missing field `product_uuid` at"),
            (
                format!(r#"{{"product_uuid": "{version_4}", "inventory": 7}}"#),
                "product_uuid: must be a UUID of version 7, such as 01890a5d-ac96-774b-bcce-b302099a8057",
            ),
            (format!(r#"{{"product_uuid": "{PRODUCT}", "inventory": -1}}"#), "inventory: must be a whole number from 0 to 2147483647"),
            (format!(r#"{{"product_uuid": "{PRODUCT}", "inventory": 1e400}}"#), "inventory: number out of range at"),
            (
                format!(r#"{{"product_uuid": "{PRODUCT}", "inventory": 2147483648}}"#),
                "inventory: must be a whole number from 0 to 2147483647",
            ),
            (
                format!(r#"{{"product_uuid": "{PRODUCT}", "inventory": "7"}}"#),
                r#"inventory: invalid type: string "7", expected a whole number from 0 to 2147483647"#,
            ),
        ] {
            let refused = translated(&value).unwrap_err();
            assert!(refused.starts_with(reason), "{value}: {refused}");
        }
    }

    fn message(product_id: ProductId, inventory: i64) -> String {
        format!(r#"{{"product_uuid": "{product_id}", "inventory": {inventory}}}"#)
    }

    fn changed(product_id: ProductId, inventory: i64) -> DomainEvent {
        DomainEvent::InventoryChanged { product_id, inventory: inventory.try_into().unwrap() }
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
    async fn keeps_the_order_of_each_product() {
        let topic = Topic::create(translate).await;
        each_product_keeps_its_order(&topic, &[5, 3, 9, 0, 4], message, changed).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
    async fn translates_each_message_once() {
        let (log, topic, product) = (TestLog::create().await, Topic::create(translate).await, ProductId::new());
        topic.send(product, &message(product, 5)).await;
        assert_eq!(topic.translated(&log, 1).await, [changed(product, 5)]);
        topic.forget_the_group().await;
        topic.send(product, &message(product, 3)).await;
        assert_eq!(topic.translated(&log, 2).await, [changed(product, 5), changed(product, 3)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
    async fn translates_a_message_written_twice_twice() {
        let (log, topic, product) = (TestLog::create().await, Topic::create(translate).await, ProductId::new());
        for _ in 0..2 {
            topic.send(product, &message(product, 5)).await;
        }
        assert_eq!(topic.translated(&log, 2).await, [changed(product, 5), changed(product, 5)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
    async fn reads_a_new_topic_from_its_beginning() {
        let (log, topic) = (TestLog::create().await, Topic::create(translate).await);
        let products = [ProductId::new(), ProductId::new(), ProductId::new()];
        for product in products {
            topic.send(product, &message(product, 5)).await;
        }
        // No translator has read the topic so far.
        let events = topic.translated(&log, 3).await;
        assert!(products.iter().all(|product| events.contains(&changed(*product, 5))), "{events:?}");
    }

    #[test]
    fn changes_the_inventory() {
        let change = ChangeInventory { product_id: PRODUCT.parse().unwrap(), inventory: 7.try_into().unwrap() };
        given([]).when(&change).then([inventory_changed(7)]);
        // The same command again is a second change.
        given([inventory_changed(7)]).when(&change).then([inventory_changed(7)]);
    }
}
