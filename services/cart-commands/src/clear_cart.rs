//! Clear Cart.

use actix_web::{http::StatusCode, post, web};
use cart_events::{CartId, DomainEvent, SubmissionStream};
use disintegrate::StateQuery;
use event_store::{Decided, Decision, EventStore, Position, State};
use service::{Answer, HttpError, IgnoredBody, PathValue, Refusal};

/// Removes every item from a cart. A body is ignored.
#[utoipa::path(
    operation_id = "clear_cart",
    params(("cart_id" = CartId, Path)),
    responses(
        (status = 200, description = "The cart's id, and the position of CartCleared in the log.", body = (CartId, i64)),
        (status = 404, description = "unknown_cart", body = service::ErrorBody),
        (status = 409, description = "cart_submitted", body = service::ErrorBody),
    )
)]
#[post("/clearcart/{cart_id}")]
pub(crate) async fn route(
    PathValue(cart_id): PathValue<CartId>,
    _: IgnoredBody,
    log: web::Data<EventStore<DomainEvent>>,
) -> Result<Answer<CartId>, HttpError> {
    let command = ClearCart { cart_id };
    Ok(web::Json((command.cart_id, service::command("clear_cart", log.decide(&command)).await?)))
}

/// The command.
#[derive(Debug, Clone)]
pub(crate) struct ClearCart {
    cart_id: CartId,
}

/// Why a cart is not cleared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("there is no cart {0}")]
    UnknownCart(CartId),
    #[error("the cart has been submitted; a submitted cart never changes")]
    CartSubmitted,
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownCart(_) => "unknown_cart",
            Self::CartSubmitted => "cart_submitted",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownCart(_) => StatusCode::NOT_FOUND,
            Self::CartSubmitted => StatusCode::CONFLICT,
        }
    }
}

impl Decision for ClearCart {
    type Event = DomainEvent;
    type StateQuery = Open;
    type Error = Refused;

    fn state_query(&self) -> Open {
        Open { cart_id: self.cart_id, exists: false, submitted: false }
    }

    fn process(&self, state: &Open) -> Result<Decided<DomainEvent>, Refused> {
        if !state.exists {
            return Err(Refused::UnknownCart(self.cart_id));
        }
        if state.submitted {
            return Err(Refused::CartSubmitted);
        }
        Ok(Decided::Events(vec![DomainEvent::CartCleared { cart_id: self.cart_id }]))
    }
}

/// Whether a cart exists and may still change. Clearing does not depend on its items.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(SubmissionStream)]
pub(crate) struct Open {
    #[id]
    cart_id: CartId,
    exists: bool,
    submitted: bool,
}

impl State for Open {
    fn mutate(&mut self, event: SubmissionStream, _: Position) {
        match event {
            SubmissionStream::CartCreated { .. } => self.exists = true,
            SubmissionStream::CartSubmitted { .. } => self.submitted = true,
        }
    }
}

#[cfg(test)]
mod specifications {
    use test_support::given;

    use super::*;
    use cart_events::examples::Shopping;

    #[test]
    fn clears_an_existing_cart() {
        let cart = Shopping::new();
        given(cart.with_items(2)).when(&ClearCart { cart_id: cart.cart_id }).then([cart.cleared()]);
        given(cart.with_items(2).chain([cart.cleared()])).when(&ClearCart { cart_id: cart.cart_id }).then([cart.cleared()]);
    }

    #[test]
    fn refuses_an_unknown_cart() {
        let cart = Shopping::new();
        given([]).when(&ClearCart { cart_id: cart.cart_id }).then_refused(Refused::UnknownCart(cart.cart_id));
    }

    #[test]
    fn refuses_a_submitted_cart() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1)]))
            .when(&ClearCart { cart_id: cart.cart_id })
            .then_refused(Refused::CartSubmitted);
    }
}
