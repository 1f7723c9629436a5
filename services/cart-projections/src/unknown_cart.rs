//! The refusal of a cart that does not exist.

use actix_web::http::StatusCode;
use cart_events::CartId;
use service::{At, HttpError};

pub(crate) fn unknown_cart(cart_id: CartId, at: At) -> HttpError {
    let message = match at.at {
        Some(at) => format!("there was no cart {cart_id} at position {at}"),
        None => format!("there is no cart {cart_id}"),
    };
    HttpError::refusal(StatusCode::NOT_FOUND, "unknown_cart", message)
}
