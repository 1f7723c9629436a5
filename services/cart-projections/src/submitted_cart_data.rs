//! Submitted Cart Data: the ordered products and the total, folded from the log when they are requested.

use actix_web::{get, middleware::from_fn, web};
use cart_events::{CartId, DomainEvent, OrderedProduct, SubmissionStream, Total};
use disintegrate::StateQuery;
use event_store::{EventStore, Position, State};
use serde::Serialize;
use service::{At, ErrorBody, HttpError, MinPosition, PathValue};

use crate::unknown_cart::unknown_cart;

/// Answers the ordered products and the total of a submitted cart, or null before it is submitted.
#[utoipa::path(
    operation_id = "submitted_cart_data",
    tag = "public",
    params(("cart_id" = CartId, Path), At, MinPosition),
    responses(
        (status = 200, content((Option<SubmittedCart> = "application/json"), (Option<SubmittedCart> = "text/event-stream"))),
        (status = 404, description = "unknown_cart", body = ErrorBody),
        (status = 503, description = "behind", body = ErrorBody)
    )
)]
#[get("/{cart_id}/submittedcart", wrap = "from_fn(service::live)")]
pub(crate) async fn route(
    PathValue(cart_id): PathValue<CartId>,
    at: At,
    min: MinPosition,
    log: web::Data<EventStore<DomainEvent>>,
) -> Result<web::Json<Option<SubmittedCart>>, HttpError> {
    let submission = min.live(&log, "submitted_cart_data", Submission { cart_id, exists: false, submitted: None }, at).await?;
    submission.exists.then_some(web::Json(submission.submitted)).ok_or_else(|| unknown_cart(cart_id, at))
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
pub(crate) struct SubmittedCart {
    cart_id: CartId,
    /// In the order they were added.
    ordered_product: Vec<OrderedProduct>,
    total_price: Total,
}

/// A cart's submission.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(SubmissionStream)]
pub(crate) struct Submission {
    #[id]
    cart_id: CartId,
    exists: bool,
    submitted: Option<SubmittedCart>,
}

impl State for Submission {
    fn mutate(&mut self, event: SubmissionStream, _: Position) {
        match event {
            SubmissionStream::CartCreated { .. } => self.exists = true,
            SubmissionStream::CartSubmitted { cart_id, ordered_products, total_price } => {
                self.submitted = Some(SubmittedCart { cart_id, ordered_product: ordered_products, total_price });
            }
        }
    }
}

#[cfg(test)]
mod specifications {
    use event_store::fold_history;

    use super::*;
    use cart_events::examples::Shopping;

    fn folded(cart: &Shopping, history: impl IntoIterator<Item = DomainEvent>) -> Submission {
        let history: Vec<_> = (1..).map(Position).zip(history).collect();
        fold_history(Submission { cart_id: cart.cart_id, exists: false, submitted: None }, &history).unwrap()
    }

    #[test]
    fn shows_ordered_products_and_total() {
        let cart = Shopping::new();
        let shown = folded(&cart, cart.with_items(2).chain([cart.submitted(2)])).submitted;
        assert_eq!(
            serde_json::json!(shown),
            serde_json::json!({
                "cart_id": cart.cart_id,
                "ordered_product": [
                    {"product_id": cart.product(0), "price": "10.10"},
                    {"product_id": cart.product(1), "price": "11.10"},
                ],
                "total_price": "21.20",
            })
        );
    }

    #[test]
    fn shows_null_before_submission() {
        let cart = Shopping::new();
        let shown = folded(&cart, cart.with_items(2));
        assert!(shown.exists && shown.submitted.is_none());
    }

    #[test]
    fn refuses_an_unknown_cart() {
        let cart = Shopping::new();
        assert!(!folded(&cart, Shopping::new().with_items(1)).exists);
    }
}
