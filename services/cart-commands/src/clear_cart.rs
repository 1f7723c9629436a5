//! Clear Cart.

use actix_web::{http::StatusCode, post, web};
use cart_events::{CartId, CartStream, DomainEvent};
use disintegrate::StateQuery;
use event_store::{Decided, Decision, EventStore, Position, State};
use service::{Answer, HttpError, IgnoredBody, PathValue, Refusal};

use crate::changes::MaxChanges;

/// Removes every item from a cart. A body is ignored.
#[utoipa::path(
    operation_id = "clear_cart",
    tag = "public",
    params(("cart_id" = CartId, Path)),
    responses(
        (status = 200, description = "The cart's id, and the position of CartCleared in the log.", body = (CartId, i64)),
        (status = 404, description = "unknown_cart", body = service::ErrorBody),
        (status = 409, description = "cart_submitted or cart_exhausted", body = service::ErrorBody),
    )
)]
#[post("/clearcart/{cart_id}")]
pub(crate) async fn route(
    PathValue(cart_id): PathValue<CartId>,
    _: IgnoredBody,
    log: web::Data<EventStore<DomainEvent>>,
    max_changes: web::Data<MaxChanges>,
) -> Result<Answer<CartId>, HttpError> {
    let command = ClearCart { cart_id, max_changes: **max_changes };
    Ok(Answer(command.cart_id, service::command("clear_cart", log.decide(&command)).await?))
}

/// The command.
#[derive(Debug, Clone)]
pub(crate) struct ClearCart {
    cart_id: CartId,
    max_changes: MaxChanges,
}

/// Why a cart is not cleared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("there is no cart {0}")]
    UnknownCart(CartId),
    #[error("the cart has been submitted; a submitted cart never changes")]
    CartSubmitted,
    #[error("the cart has taken all its changes; submit it, or use a new cart")]
    CartExhausted,
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownCart(_) => "unknown_cart",
            Self::CartSubmitted => "cart_submitted",
            Self::CartExhausted => "cart_exhausted",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownCart(_) => StatusCode::NOT_FOUND,
            Self::CartSubmitted | Self::CartExhausted => StatusCode::CONFLICT,
        }
    }
}

impl Decision for ClearCart {
    type Event = DomainEvent;
    type StateQuery = Open;
    type Error = Refused;

    fn state_query(&self) -> Open {
        Open { cart_id: self.cart_id, exists: false, submitted: false, changes: 0 }
    }

    fn process(&self, state: &Open) -> Result<Decided<DomainEvent>, Refused> {
        if !state.exists {
            return Err(Refused::UnknownCart(self.cart_id));
        }
        if state.submitted {
            return Err(Refused::CartSubmitted);
        }
        if self.max_changes.are_reached(state.changes) {
            return Err(Refused::CartExhausted);
        }
        Ok(Decided::Events(vec![DomainEvent::CartCleared { cart_id: self.cart_id }]))
    }
}

/// Whether a cart exists and may still change. Clearing does not depend on which items it has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
pub(crate) struct Open {
    #[id]
    cart_id: CartId,
    exists: bool,
    submitted: bool,
    changes: u32,
}

impl State for Open {
    fn mutate(&mut self, event: CartStream, _: Position) {
        self.changes += 1;
        match event {
            CartStream::CartCreated { .. } => self.exists = true,
            CartStream::CartSubmitted { .. } => self.submitted = true,
            CartStream::ItemAdded { .. }
            | CartStream::ItemRemoved { .. }
            | CartStream::ItemArchived { .. }
            | CartStream::CartCleared { .. } => {}
        }
    }
}

#[cfg(test)]
mod specifications {
    use test_support::given;

    use super::*;
    use cart_events::examples::Shopping;

    fn clear(cart: &Shopping) -> ClearCart {
        ClearCart { cart_id: cart.cart_id, max_changes: MaxChanges::default() }
    }

    #[test]
    fn clears_an_existing_cart() {
        let cart = Shopping::new();
        given(cart.with_items(2)).when(&clear(&cart)).then([cart.cleared()]);
        given(cart.with_items(2).chain([cart.cleared()])).when(&clear(&cart)).then([cart.cleared()]);
    }

    #[test]
    fn refuses_an_unknown_cart() {
        let cart = Shopping::new();
        given([]).when(&clear(&cart)).then_refused(Refused::UnknownCart(cart.cart_id));
    }

    #[test]
    fn refuses_a_submitted_cart() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1)])).when(&clear(&cart)).then_refused(Refused::CartSubmitted);
    }
    #[test]
    fn refuses_a_cart_with_all_its_changes() {
        let cart = Shopping::new();
        let clear = ClearCart { max_changes: MaxChanges(4), ..clear(&cart) };
        given(cart.with_items(2)).when(&clear).then([cart.cleared()]);
        given(cart.with_items(2).chain([cart.cleared()])).when(&clear).then_refused(Refused::CartExhausted);
    }
}
