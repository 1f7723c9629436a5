//! The inventory of a product: part of the consistency boundary of Add Item and of Submit Cart.

use cart_events::{Inventory, InventoryStream, ProductId};
use disintegrate::StateQuery;
use event_store::{Position, State};

/// The newest reported inventory of a product. A product that was never reported is not out of stock.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(InventoryStream)]
pub(crate) struct Stock {
    #[id]
    pub(crate) product_id: ProductId,
    inventory: Option<Inventory>,
}

impl Stock {
    pub(crate) fn of(product_id: ProductId) -> Self {
        Self { product_id, inventory: None }
    }

    pub(crate) fn is_out(&self) -> bool {
        self.inventory == Some(Inventory::OUT_OF_STOCK)
    }
}

impl State for Stock {
    const NEWEST_SUFFICES: bool = true;

    fn mutate(&mut self, event: InventoryStream, _: Position) {
        let InventoryStream::InventoryChanged { inventory, .. } = event;
        self.inventory = Some(inventory);
    }
}
