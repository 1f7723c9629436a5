//! Remove Item.

use actix_web::{http::StatusCode, post, web};
use cart_events::{CartId, CartStream, DomainEvent, ItemId};
use disintegrate::StateQuery;
use event_store::{Decided, Decision, EventStore, Position, State};
use serde::Deserialize;
use service::{Answer, HttpError, JsonBody, PathValue, Refusal, ensure_path_matches_body};

use crate::changes::MaxChanges;

/// Removes an item from a cart.
#[utoipa::path(
    operation_id = "remove_item",
    tag = "public",
    params(("cart_id" = CartId, Path)),
    request_body = RemoveItem,
    responses(
        (status = 200, description = "The cart's id, and the position of ItemRemoved in the log.", body = (CartId, i64)),
        (status = 404, description = "unknown_cart", body = service::ErrorBody),
        (status = 409, description = "item_not_in_cart, cart_submitted or cart_exhausted", body = service::ErrorBody),
    )
)]
#[post("/removeitem/{cart_id}")]
pub(crate) async fn route(
    PathValue(cart_id): PathValue<CartId>,
    JsonBody(command): JsonBody<RemoveItem>,
    log: web::Data<EventStore<DomainEvent>>,
    max_changes: web::Data<MaxChanges>,
) -> Result<Answer<CartId>, HttpError> {
    ensure_path_matches_body("cart_id", &cart_id, &command.cart_id)?;
    let command = RemoveItem { max_changes: **max_changes, ..command };
    Ok(Answer(command.cart_id, service::command("remove_item", log.decide(&command)).await?))
}

/// The command.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
pub(crate) struct RemoveItem {
    cart_id: CartId,
    item_id: ItemId,
    /// A setting.
    #[serde(skip)]
    max_changes: MaxChanges,
}

/// Why an item is not removed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("there is no cart {0}")]
    UnknownCart(CartId),
    #[error("the cart has been submitted; a submitted cart never changes")]
    CartSubmitted,
    #[error("the cart has taken all its changes; submit it, or use a new cart")]
    CartExhausted,
    #[error("the item {0} is not in the cart")]
    ItemNotInCart(ItemId),
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownCart(_) => "unknown_cart",
            Self::CartSubmitted => "cart_submitted",
            Self::CartExhausted => "cart_exhausted",
            Self::ItemNotInCart(_) => "item_not_in_cart",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownCart(_) => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        }
    }
}

impl Decision for RemoveItem {
    type Event = DomainEvent;
    type StateQuery = ItemInCart;
    type Error = Refused;

    fn state_query(&self) -> ItemInCart {
        ItemInCart { cart_id: self.cart_id, item_id: self.item_id, exists: false, submitted: false, changes: 0, in_cart: false }
    }

    fn process(&self, state: &ItemInCart) -> Result<Decided<DomainEvent>, Refused> {
        if !state.exists {
            return Err(Refused::UnknownCart(self.cart_id));
        }
        if state.submitted {
            return Err(Refused::CartSubmitted);
        }
        if self.max_changes.are_reached(state.changes) {
            return Err(Refused::CartExhausted);
        }
        if !state.in_cart {
            return Err(Refused::ItemNotInCart(self.item_id));
        }
        Ok(Decided::Events(vec![DomainEvent::ItemRemoved { cart_id: self.cart_id, item_id: self.item_id }]))
    }
}

/// One item of a cart. The other items matter only to the number of the cart's changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
pub(crate) struct ItemInCart {
    #[id]
    cart_id: CartId,
    item_id: ItemId,
    exists: bool,
    submitted: bool,
    changes: u32,
    in_cart: bool,
}

impl State for ItemInCart {
    fn mutate(&mut self, event: CartStream, _: Position) {
        self.changes += 1;
        match event {
            CartStream::CartCreated { .. } => self.exists = true,
            CartStream::ItemAdded { item_id, .. } if item_id == self.item_id => self.in_cart = true,
            CartStream::ItemRemoved { item_id, .. } | CartStream::ItemArchived { item_id, .. } if item_id == self.item_id => {
                self.in_cart = false;
            }
            CartStream::ItemAdded { .. } | CartStream::ItemRemoved { .. } | CartStream::ItemArchived { .. } => {}
            CartStream::CartCleared { .. } => self.in_cart = false,
            CartStream::CartSubmitted { .. } => self.submitted = true,
        }
    }
}

#[cfg(test)]
mod specifications {
    use test_support::given;

    use super::*;
    use cart_events::examples::Shopping;

    fn remove_item(cart: &Shopping, item: usize) -> RemoveItem {
        RemoveItem { cart_id: cart.cart_id, item_id: cart.item(item), max_changes: MaxChanges::default() }
    }

    #[test]
    fn removes_an_item_in_the_cart() {
        let cart = Shopping::new();
        given(cart.with_items(2)).when(&remove_item(&cart, 1)).then([cart.removed(1)]);
    }

    #[test]
    fn refuses_an_item_never_added() {
        let cart = Shopping::new();
        given(cart.with_items(1)).when(&remove_item(&cart, 1)).then_refused(Refused::ItemNotInCart(cart.item(1)));
    }

    #[test]
    fn refuses_an_item_that_left() {
        let cart = Shopping::new();
        for gone in [cart.removed(0), cart.cleared(), cart.archived(0)] {
            given(cart.with_items(2).chain([gone])).when(&remove_item(&cart, 0)).then_refused(Refused::ItemNotInCart(cart.item(0)));
        }
    }

    #[test]
    fn refuses_an_unknown_cart() {
        let cart = Shopping::new();
        given(Shopping::new().with_items(1)).when(&remove_item(&cart, 0)).then_refused(Refused::UnknownCart(cart.cart_id));
    }

    #[test]
    fn refuses_a_submitted_cart() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1)])).when(&remove_item(&cart, 0)).then_refused(Refused::CartSubmitted);
    }
    #[test]
    fn refuses_a_cart_with_all_its_changes() {
        let cart = Shopping::new();
        let remove = RemoveItem { max_changes: MaxChanges(4), ..remove_item(&cart, 0) };
        given(cart.with_items(2)).when(&remove).then([cart.removed(0)]);
        given(cart.with_items(3)).when(&remove).then_refused(Refused::CartExhausted);
    }
}
