//! Change Price: the new price of a product, from Kafka or over HTTP.

use actix_web::{post, web};
use cart_events::{DomainEvent, Price, ProductId};
use event_store::{Decided, Decision, EventStore};
use kafka::{InvalidMessage, Message};
use serde::Deserialize;
use service::{Answer, HttpError, JsonBody, PathValue, Refusal, ensure_path_matches_body};

/// A message of the topic `price-changes`. Its key is product_uuid, so the messages of a product keep their order.
#[derive(Debug, Deserialize)]
struct PriceMessage {
    product_uuid: ProductId,
    old_price: Price,
    new_price: Price,
}

/// Translates a message.
pub(crate) fn translate(message: &Message<'_>) -> Result<DomainEvent, InvalidMessage> {
    let PriceMessage { product_uuid, old_price, new_price } = kafka::json(message)?;
    Ok(DomainEvent::PriceChanged { product_id: product_uuid, old_price, new_price })
}

/// Changes the price of a product. Its items in unsubmitted carts are archived. A command that is sent again after a lost reply is a
/// second change.
#[utoipa::path(
    operation_id = "change_price",
    tag = "internal",
    params(("product_id" = ProductId, Path)),
    request_body = ChangePrice,
    responses((status = 200, description = "The product's id, and the position of PriceChanged in the log.", body = (ProductId, i64)))
)]
#[post("/changeprice/{product_id}")]
pub(crate) async fn route(
    PathValue(product_id): PathValue<ProductId>,
    JsonBody(command): JsonBody<ChangePrice>,
    log: web::Data<EventStore<DomainEvent>>,
) -> Result<Answer<ProductId>, HttpError> {
    ensure_path_matches_body("product_id", &product_id, &command.product_id)?;
    Ok(Answer(command.product_id, service::command("change_price", log.decide(&command)).await?))
}

/// The command.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
pub(crate) struct ChangePrice {
    product_id: ProductId,
    old_price: Price,
    new_price: Price,
}

/// Never refused: the outside world decides about its prices.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match *self {}
    }
}

impl Decision for ChangePrice {
    type Event = DomainEvent;
    type StateQuery = ();
    type Error = Refused;

    fn state_query(&self) {}

    fn process(&self, (): &()) -> Result<Decided<DomainEvent>, Refused> {
        let Self { product_id, old_price, new_price } = *self;
        Ok(Decided::Events(vec![DomainEvent::PriceChanged { product_id, old_price, new_price }]))
    }
}

#[cfg(test)]
mod specifications {
    use proptest::{collection::vec, prelude::*};
    use test_support::{TestLog, given};

    use super::*;
    use crate::topic::{Topic, each_product_keeps_its_order};

    const PRODUCT: &str = "01890a5d-ac96-774b-bcce-b302099a8059";

    fn price_changed(old_price: &str, new_price: &str) -> DomainEvent {
        let product_id = PRODUCT.parse().unwrap();
        DomainEvent::PriceChanged { product_id, old_price: old_price.parse().unwrap(), new_price: new_price.parse().unwrap() }
    }

    fn translated(value: &str) -> Result<DomainEvent, String> {
        let message = Message { topic: "price-changes", partition: 0, offset: 0, key: None, value: value.as_bytes() };
        translate(&message).map_err(|invalid| invalid.to_string())
    }

    proptest! {
        #[test]
        fn any_value_is_translated_or_refused(bytes in vec(any::<u8>(), 0..200), id in ".{0,40}", number in "-?[0-9.eE+_]{1,30}") {
            for id in [serde_json::json!(id), serde_json::json!(PRODUCT)] {
                let value = format!(r#"{{"product_uuid": {id}, "old_price": {number}, "new_price": "{number}"}}"#);
                for value in [value.as_bytes(), &bytes] {
                    if let Ok(event) = translate(&Message { topic: "price-changes", partition: 0, offset: 0, key: None, value }) {
                        let stored = serde_json::to_vec(&event).unwrap();
                        prop_assert_eq!(serde_json::from_slice::<DomainEvent>(&stored).unwrap(), event);
                    }
                }
            }
        }
    }

    #[test]
    fn translates_a_message() {
        let value = |old, new| format!(r#"{{"product_uuid": "{PRODUCT}", "old_price": {old}, "new_price": {new}}}"#);
        assert_eq!(translated(&value("\"9.99\"", "\"19.99\"")), Ok(price_changed("9.99", "19.99")));
        assert_eq!(translated(&value("9.9", "9999999999.99")), Ok(price_changed("9.90", "9999999999.99")), "numbers are read exactly");
    }

    #[test]
    fn ignores_unknown_fields() {
        let value = format!(r#"{{"product_uuid": "{PRODUCT}", "old_price": "0", "new_price": 1, "currency": "EUR"}}"#);
        assert_eq!(translated(&value), Ok(price_changed("0.00", "1.00")));
    }

    #[test]
    fn refuses_an_unreadable_message_naming_the_field() {
        let price = r#"must be a decimal from 0 to 9999999999.99 with at most 2 decimal places, such as "9.99""#;
        for (fields, reason) in [
            (r#""old_price": "1""#, "missing field `new_price` at".to_owned()),
            (r#""old_price": -1, "new_price": 1"#, format!("old_price: {price}")),
            (r#""old_price": 1, "new_price": 1.999"#, format!("new_price: {price}")),
            (r#""old_price": 1, "new_price": 10000000000"#, format!("new_price: {price}")),
            (r#""old_price": 1, "new_price": null"#, format!("new_price: {price}")),
        ] {
            let refused = translated(&format!(r#"{{"product_uuid": "{PRODUCT}", {fields}}}"#)).unwrap_err();
            assert!(refused.starts_with(&reason), "{fields}: {refused}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL and Kafka: cargo dev test"]
    async fn keeps_order_and_translates_each_message_once() {
        let topic = Topic::create(translate).await;
        let message = |product_id: ProductId, (old, new): (&str, &str)| {
            format!(r#"{{"product_uuid": "{product_id}", "old_price": "{old}", "new_price": {new}}}"#)
        };
        let changed = |product_id, (old, new): (&str, &str)| DomainEvent::PriceChanged {
            product_id,
            old_price: old.parse().unwrap(),
            new_price: new.parse().unwrap(),
        };
        each_product_keeps_its_order(&topic, &[("1.00", "2.00"), ("2.00", "1.50"), ("1.50", "9.00")], message, changed).await;

        let (log, topic, product) = (TestLog::create().await, Topic::create(translate).await, ProductId::new());
        let (first, second) = (("1.00", "2.00"), ("2.00", "3.00"));
        topic.send(product, &message(product, first)).await;
        topic.translated(&log, 1).await;
        topic.forget_the_group().await;
        topic.send(product, &message(product, second)).await;
        assert_eq!(topic.translated(&log, 2).await, [changed(product, first), changed(product, second)]);
    }

    #[test]
    fn changes_the_price() {
        let change =
            ChangePrice { product_id: PRODUCT.parse().unwrap(), old_price: "9.99".parse().unwrap(), new_price: "19.99".parse().unwrap() };
        given([]).when(&change).then([price_changed("9.99", "19.99")]);
        // The same command again is a second change.
        given([price_changed("9.99", "19.99")]).when(&change).then([price_changed("9.99", "19.99")]);
    }
}
