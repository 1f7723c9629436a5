//! Submit Cart.

use actix_web::{http::StatusCode, post, web};
use cart_events::{CartId, CartStream, DomainEvent, ItemId, OrderedProduct, ProductId};
use disintegrate::StateQuery;
use event_store::{Decided, Decision, Dependent, EventStore, Position, State};
use serde::Deserialize;
use service::{Answer, HttpError, JsonBody, PathValue, Refusal, ensure_path_matches_body};

use crate::stock::Stock;

/// Submits a cart. A submitted cart never changes again, and it is published.
#[utoipa::path(
    operation_id = "submit_cart",
    tag = "public",
    params(("cart_id" = CartId, Path)),
    request_body = SubmitCart,
    responses(
        (status = 200, description = "The cart's id, and the position of CartSubmitted in the log.", body = (CartId, i64)),
        (status = 404, description = "unknown_cart", body = service::ErrorBody),
        (status = 409, description = "cart_empty, cart_submitted or out_of_stock", body = service::ErrorBody),
    )
)]
#[post("/submitcart/{cart_id}")]
pub(crate) async fn route(
    PathValue(cart_id): PathValue<CartId>,
    JsonBody(command): JsonBody<SubmitCart>,
    log: web::Data<EventStore<DomainEvent>>,
) -> Result<Answer<CartId>, HttpError> {
    ensure_path_matches_body("cart_id", &cart_id, &command.cart_id)?;
    Ok(Answer(command.cart_id, service::command("submit_cart", log.decide(&command)).await?))
}

/// The command.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
pub(crate) struct SubmitCart {
    cart_id: CartId,
}

/// Why a cart is not submitted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("there is no cart {0}")]
    UnknownCart(CartId),
    #[error("the cart is empty")]
    CartEmpty,
    #[error("the cart has already been submitted")]
    CartSubmitted,
    #[error("the product {0} is out of stock")]
    OutOfStock(ProductId),
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownCart(_) => "unknown_cart",
            Self::CartEmpty => "cart_empty",
            Self::CartSubmitted => "cart_submitted",
            Self::OutOfStock(_) => "out_of_stock",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownCart(_) => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        }
    }
}

impl Decision for SubmitCart {
    type Event = DomainEvent;
    // One consistency boundary: the cart, then the inventories of the products in it.
    type StateQuery = Dependent<Cart, Vec<Stock>>;
    type Error = Refused;

    fn state_query(&self) -> Dependent<Cart, Vec<Stock>> {
        Dependent::new(Cart { cart_id: self.cart_id, exists: false, submitted: false, items: vec![] }, Cart::stocks)
    }

    fn process(&self, (cart, stocks): &(Cart, Vec<Stock>)) -> Result<Decided<DomainEvent>, Refused> {
        if !cart.exists {
            return Err(Refused::UnknownCart(self.cart_id));
        }
        if cart.submitted {
            return Err(Refused::CartSubmitted);
        }
        if cart.items.is_empty() {
            return Err(Refused::CartEmpty);
        }
        if let Some(out) = stocks.iter().find(|stock| stock.is_out()) {
            return Err(Refused::OutOfStock(out.product_id));
        }
        let ordered_products: Vec<_> = cart.items.iter().map(|(_, ordered)| ordered.clone()).collect();
        let total_price = ordered_products.iter().map(|ordered| &ordered.price).sum();
        Ok(Decided::Events(vec![DomainEvent::CartSubmitted { cart_id: self.cart_id, ordered_products, total_price }]))
    }
}

/// The cart with the items to order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
pub(crate) struct Cart {
    #[id]
    cart_id: CartId,
    exists: bool,
    submitted: bool,
    items: Vec<(ItemId, OrderedProduct)>,
}

impl Cart {
    fn stocks(&self) -> Vec<Stock> {
        let mut products: Vec<_> = self.items.iter().map(|(_, ordered)| ordered.product_id).collect();
        products.sort_unstable();
        products.dedup();
        products.into_iter().map(Stock::of).collect()
    }
}

impl State for Cart {
    fn mutate(&mut self, event: CartStream, _: Position) {
        match event {
            CartStream::CartCreated { .. } => self.exists = true,
            CartStream::ItemAdded { item_id, product_id, price, .. } => {
                self.items.push((item_id, OrderedProduct { product_id, price }));
            }
            CartStream::ItemRemoved { item_id, .. } | CartStream::ItemArchived { item_id, .. } => {
                self.items.retain(|(in_cart, _)| *in_cart != item_id);
            }
            CartStream::CartCleared { .. } => self.items.clear(),
            CartStream::CartSubmitted { .. } => self.submitted = true,
        }
    }
}

#[cfg(test)]
mod specifications {
    use std::sync::Arc;

    use event_store::DecideError;
    use test_support::{Meanwhile, TestLog, blocking, given};

    use super::*;
    use cart_events::examples::Shopping;

    fn submit(cart: &Shopping) -> SubmitCart {
        SubmitCart { cart_id: cart.cart_id }
    }

    #[test]
    fn submits_every_item_at_its_own_price() {
        let cart = Shopping::new();
        given(cart.with_items(3)).when(&submit(&cart)).then([cart.submitted(3)]);
        let DomainEvent::CartSubmitted { total_price, .. } = cart.submitted(3) else { unreachable!() };
        assert_eq!(total_price.to_string(), "33.30");
    }

    #[test]
    fn orders_one_product_at_two_prices_as_two_lines() {
        let cart = Shopping::new();
        let line = |price: &str| OrderedProduct { product_id: cart.product(0), price: price.parse().unwrap() };
        let lines = vec![line("10.10"), line("11.10")];
        let total_price = lines.iter().map(|line| &line.price).sum();
        given([cart.created(), cart.added(0), cart.added_again(1, 0)]).when(&submit(&cart)).then([DomainEvent::CartSubmitted {
            cart_id: cart.cart_id,
            ordered_products: lines,
            total_price,
        }]);
    }

    #[test]
    fn submits_a_cart_with_all_its_changes() {
        let cart = Shopping::new();
        given([cart.created()].into_iter().chain((1..1_000).map(|_| cart.cleared())).chain([cart.added(0)]))
            .when(&submit(&cart))
            .then([cart.submitted(1)]);
    }

    #[test]
    fn ignores_items_that_left() {
        let cart = Shopping::new();
        given(cart.with_items(3).chain([cart.removed(1), cart.archived(2)])).when(&submit(&cart)).then([cart.submitted(1)]);
    }

    #[test]
    fn refuses_an_unknown_cart() {
        let cart = Shopping::new();
        given([]).when(&submit(&cart)).then_refused(Refused::UnknownCart(cart.cart_id));
    }

    #[test]
    fn refuses_an_empty_cart() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.removed(0)])).when(&submit(&cart)).then_refused(Refused::CartEmpty);
        given(cart.with_items(1).chain([cart.cleared()])).when(&submit(&cart)).then_refused(Refused::CartEmpty);
    }

    #[test]
    fn refuses_a_second_submission() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1)])).when(&submit(&cart)).then_refused(Refused::CartSubmitted);
    }

    #[test]
    fn refuses_a_product_out_of_stock() {
        let cart = Shopping::new();
        let refused = Refused::OutOfStock(cart.product(1));
        assert!(refused.to_string().contains(&cart.product(1).to_string()));
        given(cart.with_items(2).chain([cart.inventory(1, 3), cart.inventory(1, 0)])).when(&submit(&cart)).then_refused(refused);
        given(cart.with_items(2).chain([cart.inventory(1, 0), cart.inventory(1, 1)])).when(&submit(&cart)).then([cart.submitted(2)]);
    }

    #[test]
    fn ignores_inventories_of_products_not_in_the_cart() {
        let cart = Shopping::new();
        // Item 1 has left the cart, and product 2 was never in it.
        given(cart.with_items(2).chain([cart.removed(1), cart.inventory(1, 0), cart.inventory(2, 0)]))
            .when(&submit(&cart))
            .then([cart.submitted(1)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn decides_again_when_stock_runs_out_meanwhile() {
        let log = Arc::new(TestLog::<DomainEvent>::create().await);
        let cart = Shopping::new();
        log.append(cart.with_items(2)).await;
        let (meanwhile, out) = (log.clone(), cart.inventory(1, 0));
        let submit = Meanwhile::new(submit(&cart), move || {
            blocking(meanwhile.append([out]));
        });
        let Err(DecideError::Refused(refused)) = log.store.decide(&submit).await else { panic!("it is submitted") };
        assert_eq!(refused, Refused::OutOfStock(cart.product(1)));
        assert!(submit.decided() > 1);
        assert_eq!(log.store.head().await.unwrap(), Position(4), "the change of inventory is the last event");
    }
}
