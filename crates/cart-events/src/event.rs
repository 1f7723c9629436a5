//! The events, and the streams that states fold.
#![allow(missing_docs, reason = "the fields and streams are the event model's; the derive makes public items without docs")]

use disintegrate::Event;
use serde::{Deserialize, Serialize};

use crate::{CartId, Description, Image, Inventory, ItemId, Price, ProductId, Total};

/// A product and the price at which it was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrderedProduct {
    /// The product.
    pub product_id: ProductId,
    /// The price of the item. Two items of one product may have different prices.
    pub price: Price,
}

/// The `device_fingerprint` of ItemAdded events of version 1, which were stored without one.
fn default_fingerprint() -> String {
    "default-fingerprint".into()
}

/// The events. A variant is an event's type. `#[id]` marks its tags, each of which is a column of the log.
#[derive(Debug, Clone, PartialEq, Eq, Event, Serialize, Deserialize)]
// The items of a cart, and whether it may still change.
#[stream(CartStream, [CartCreated, ItemAdded, ItemRemoved, CartCleared, ItemArchived, CartSubmitted])]
// The submission of a cart.
#[stream(SubmissionStream, [CartCreated, CartSubmitted])]
// The carts to publish.
#[stream(SubmittedStream, [CartSubmitted])]
#[stream(PublicationStream, [CartSubmitted, CartPublished, CartPublicationFailed])]
// The inventory of a product.
#[stream(InventoryStream, [InventoryChanged])]
// The price of a product.
#[stream(PriceStream, [PriceChanged])]
// The items in carts and the prices, for Archive Item.
#[stream(ArchivingStream, [ItemAdded, ItemRemoved, CartCleared, ItemArchived, CartSubmitted, PriceChanged])]
pub enum DomainEvent {
    CartCreated {
        #[id]
        cart_id: CartId,
    },
    ItemAdded {
        #[id]
        cart_id: CartId,
        #[id]
        item_id: ItemId,
        #[id]
        product_id: ProductId,
        description: Description,
        image: Image,
        price: Price,
        #[serde(default = "default_fingerprint")]
        device_fingerprint: String,
    },
    ItemRemoved {
        #[id]
        cart_id: CartId,
        #[id]
        item_id: ItemId,
    },
    CartCleared {
        #[id]
        cart_id: CartId,
    },
    ItemArchived {
        #[id]
        cart_id: CartId,
        #[id]
        item_id: ItemId,
        /// The position of the PriceChanged that caused it.
        price_changed_at: i64,
    },
    CartSubmitted {
        #[id]
        cart_id: CartId,
        /// In the order they were added.
        ordered_products: Vec<OrderedProduct>,
        total_price: Total,
    },
    CartPublished {
        #[id]
        cart_id: CartId,
    },
    CartPublicationFailed {
        #[id]
        cart_id: CartId,
        reason: String,
    },
    InventoryChanged {
        #[id]
        product_id: ProductId,
        inventory: Inventory,
    },
    PriceChanged {
        #[id]
        product_id: ProductId,
        old_price: Price,
        new_price: Price,
    },
}

impl CartStream {
    /// Returns the cart of the event.
    #[must_use]
    pub fn cart_id(&self) -> CartId {
        match self {
            Self::CartCreated { cart_id }
            | Self::ItemAdded { cart_id, .. }
            | Self::ItemRemoved { cart_id, .. }
            | Self::CartCleared { cart_id }
            | Self::ItemArchived { cart_id, .. }
            | Self::CartSubmitted { cart_id, .. } => *cart_id,
        }
    }
}

impl ArchivingStream {
    /// Returns the cart of the event. A change of price has none and concerns every cart.
    #[must_use]
    pub fn cart_id(&self) -> Option<CartId> {
        match self {
            Self::ItemAdded { cart_id, .. }
            | Self::ItemRemoved { cart_id, .. }
            | Self::CartCleared { cart_id }
            | Self::ItemArchived { cart_id, .. }
            | Self::CartSubmitted { cart_id, .. } => Some(*cart_id),
            Self::PriceChanged { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_without_fingerprint_reads_back_with_the_default() {
        let stored = r#"{"ItemAdded":{"cart_id":"01890a5d-ac96-774b-bcce-b302099a8057","item_id":"01890a5d-ac96-774b-bcce-b302099a8058",
            "product_id":"01890a5d-ac96-774b-bcce-b302099a8059","description":"A tea pot","image":"pot.png","price":"9.99"}}"#;
        let DomainEvent::ItemAdded { device_fingerprint, price, .. } = serde_json::from_str(stored).unwrap() else { panic!() };
        assert_eq!(device_fingerprint, "default-fingerprint");
        assert_eq!(price.to_string(), "9.99");
    }

    /// The stored shape of each event is committed, so that this test shows a change of it.
    #[test]
    fn stored_shape_of_every_event_is_committed() {
        let uuid = "01890a5d-ac96-774b-bcce-b302099a8057";
        let committed = include_str!("../events.jsonl");
        for line in committed.lines() {
            let event: DomainEvent = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&event).unwrap(), line);
            assert!(line.contains(uuid));
        }
        let types: Vec<_> = committed.lines().map(|line| serde_json::from_str::<DomainEvent>(line).unwrap().name()).collect();
        assert_eq!(types, DomainEvent::SCHEMA.events);
    }
}
