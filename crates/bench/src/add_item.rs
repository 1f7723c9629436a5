//! Add Item for Cartlog and for disintegrate-postgres.
//!
//! Services are programs, so this file mirrors `services/cart-commands/src/add_item.rs`: the same states, checks and events. Only
//! `making_room` is added: without it, a cart that all tasks add to would be full after three items.

use std::collections::BTreeSet;

use cart_events::{CartId, CartStream, Description, DomainEvent, Image, Inventory, InventoryStream, ItemId, Price, ProductId};
use disintegrate::{StateMutate, StateQuery};
use event_store::{Decided, Decision, Position, State};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The default of the setting `max_cart_changes`.
const MAX_CHANGES: u32 = 1_000;

/// The command.
#[derive(Debug, Clone)]
pub(crate) struct AddItem {
    pub(crate) cart_id: CartId,
    pub(crate) item_id: ItemId,
    pub(crate) product_id: ProductId,
    description: Description,
    image: Image,
    price: Price,
    device_fingerprint: String,
    /// Removes the oldest item if the cart is full.
    making_room: bool,
}

impl AddItem {
    /// Makes a new item of this product. Fails only if the texts here break the event model's rules.
    pub(crate) fn new(cart_id: CartId, product_id: ProductId, making_room: bool) -> anyhow::Result<Self> {
        Ok(Self {
            cart_id,
            item_id: ItemId::new(),
            product_id,
            description: "A tea pot".to_owned().try_into()?,
            image: "tea-pot.png".to_owned().try_into()?,
            price: "9.99".parse()?,
            device_fingerprint: Uuid::new_v4().to_string(),
            making_room,
        })
    }

    /// Returns the events if the cart is new.
    pub(crate) fn events(&self) -> [DomainEvent; 2] {
        [DomainEvent::CartCreated { cart_id: self.cart_id }, self.added()]
    }

    /// Returns the body of the request.
    pub(crate) fn json(&self) -> String {
        let Self { cart_id, item_id, product_id, description, image, price, .. } = self;
        let body = serde_json::json!({"cart_id": cart_id, "item_id": item_id, "product_id": product_id,
            "description": description, "image": image, "price": price});
        body.to_string()
    }

    fn added(&self) -> DomainEvent {
        DomainEvent::ItemAdded {
            cart_id: self.cart_id,
            item_id: self.item_id,
            product_id: self.product_id,
            description: self.description.clone(),
            image: self.image.clone(),
            price: self.price,
            device_fingerprint: self.device_fingerprint.clone(),
        }
    }

    fn content(&self) -> Content {
        (self.product_id, self.description.clone(), self.image.clone(), self.price)
    }

    fn states(&self) -> (Cart, Stock) {
        let cart = Cart { cart_id: self.cart_id, exists: false, submitted: false, changes: 0, items: vec![], gone: BTreeSet::new() };
        (cart, Stock { product_id: self.product_id, inventory: None })
    }
}

/// Why an item is not added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the cart is full")]
    CartFull,
    #[error("the product is out of stock")]
    OutOfStock,
    #[error("the cart has been submitted")]
    CartSubmitted,
    #[error("the cart has taken all its changes")]
    CartExhausted,
    #[error("the item is in the cart already, with other content")]
    ItemDiffers,
    #[error("the item has left the cart")]
    ItemGone,
}

impl Decision for AddItem {
    type Event = DomainEvent;
    type StateQuery = (Cart, Stock);
    type Error = Refused;

    fn state_query(&self) -> (Cart, Stock) {
        self.states()
    }

    fn process(&self, (cart, stock): &(Cart, Stock)) -> Result<Decided<DomainEvent>, Refused> {
        if let Some(item) = cart.items.iter().find(|item| item.item_id == self.item_id) {
            let is_same = item.content == self.content();
            return if is_same { Ok(Decided::AlreadyDone(item.added_at)) } else { Err(Refused::ItemDiffers) };
        }
        if cart.gone.contains(&self.item_id) {
            return Err(Refused::ItemGone);
        }
        if cart.submitted {
            return Err(Refused::CartSubmitted);
        }
        if cart.changes >= MAX_CHANGES {
            return Err(Refused::CartExhausted);
        }
        let oldest = cart.items.first().filter(|_| cart.items.len() >= 3);
        if oldest.is_some() && !self.making_room {
            return Err(Refused::CartFull);
        }
        if stock.inventory == Some(Inventory::OUT_OF_STOCK) {
            return Err(Refused::OutOfStock);
        }
        let created = (!cart.exists).then_some(DomainEvent::CartCreated { cart_id: self.cart_id });
        let removed = oldest.map(|item| DomainEvent::ItemRemoved { cart_id: self.cart_id, item_id: item.item_id });
        Ok(Decided::Events(created.into_iter().chain(removed).chain([self.added()]).collect()))
    }
}

impl disintegrate::Decision for AddItem {
    type Event = DomainEvent;
    type StateQuery = (Cart, Stock);
    type Error = Refused;

    fn state_query(&self) -> (Cart, Stock) {
        self.states()
    }

    fn process(&self, states: &(Cart, Stock)) -> Result<Vec<DomainEvent>, Refused> {
        Ok(match Decision::process(self, states)? {
            Decided::Events(events) => events,
            Decided::AlreadyDone(_) | Decided::Nothing => vec![],
        })
    }
}

type Content = (ProductId, Description, Image, Price);

/// The part of a cart that Add Item depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery, Serialize, Deserialize)]
#[state_query(CartStream)]
pub(crate) struct Cart {
    #[id]
    cart_id: CartId,
    exists: bool,
    submitted: bool,
    changes: u32,
    items: Vec<Item>,
    /// Removed, cleared or archived.
    gone: BTreeSet<ItemId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Item {
    item_id: ItemId,
    content: Content,
    added_at: Position,
}

impl State for Cart {
    fn mutate(&mut self, event: CartStream, at: Position) {
        self.changes += 1;
        match event {
            CartStream::CartCreated { .. } => self.exists = true,
            CartStream::ItemAdded { item_id, product_id, description, image, price, .. } => {
                self.items.push(Item { item_id, content: (product_id, description, image, price), added_at: at });
            }
            CartStream::ItemRemoved { item_id, .. } | CartStream::ItemArchived { item_id, .. } => {
                self.items.retain(|item| item.item_id != item_id);
                self.gone.insert(item_id);
            }
            CartStream::CartCleared { .. } => self.gone.extend(self.items.drain(..).map(|item| item.item_id)),
            CartStream::CartSubmitted { .. } => self.submitted = true,
        }
    }
}

impl StateMutate for Cart {
    fn mutate(&mut self, event: CartStream) {
        // disintegrate passes no positions to a state. Only the answer to a repeated command needs them.
        State::mutate(self, event, Position::START);
    }
}

/// A product's newest reported inventory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery, Serialize, Deserialize)]
#[state_query(InventoryStream)]
pub(crate) struct Stock {
    #[id]
    product_id: ProductId,
    inventory: Option<Inventory>,
}

impl State for Stock {
    const NEWEST_SUFFICES: bool = true;

    fn mutate(&mut self, event: InventoryStream, _: Position) {
        let InventoryStream::InventoryChanged { inventory, .. } = event;
        self.inventory = Some(inventory);
    }
}

impl StateMutate for Stock {
    fn mutate(&mut self, event: InventoryStream) {
        State::mutate(self, event, Position::START);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(commands: &[AddItem]) -> (Cart, Stock) {
        let (mut cart, stock) = commands[0].states();
        for (at, command) in (1..).map(Position).zip(commands) {
            let Ok(Decided::Events(events)) = Decision::process(command, &(cart.clone(), stock.clone())) else { panic!() };
            for event in events {
                State::mutate(&mut cart, event.try_into().unwrap(), at);
            }
        }
        (cart, stock)
    }

    #[test]
    fn fourth_item_is_refused_or_replaces_the_first() {
        let cart_id = CartId::new();
        let commands: Vec<_> = (0..4).map(|_| AddItem::new(cart_id, ProductId::new(), false).unwrap()).collect();
        let full = after(&commands[..3]);
        assert_eq!(Decision::process(&commands[3], &full), Err(Refused::CartFull));
        let making_room = AddItem { making_room: true, ..commands[3].clone() };
        let removed = DomainEvent::ItemRemoved { cart_id, item_id: commands[0].item_id };
        assert_eq!(Decision::process(&making_room, &full), Ok(Decided::Events(vec![removed, making_room.added()])));
        assert_eq!(Decision::process(&commands[0], &full), Ok(Decided::AlreadyDone(Position(1))));
    }
}
