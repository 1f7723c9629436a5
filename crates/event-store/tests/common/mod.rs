//! Decisions that these tests share.
#![allow(dead_code, unused_imports, reason = "each test program uses some of them")]

use cart_events::{CartId, CartStream, DomainEvent, examples::Shopping};
use disintegrate::StateQuery;
use event_store::{Decided, Decision, Position, State};
pub(crate) use test_support::{Meanwhile, blocking};

/// Adds an item if the cart has fewer than three. Refuses with their number.
#[derive(Clone)]
pub(crate) struct Add(pub(crate) DomainEvent);

impl Add {
    /// Adds a new item to this cart.
    pub(crate) fn to(cart: &Shopping) -> Self {
        Self(Shopping { cart_id: cart.cart_id, ..Shopping::new() }.added(0))
    }
}

/// Appends an event whatever the log holds.
pub(crate) struct Appends(pub(crate) DomainEvent);

impl Decision for Appends {
    type Event = DomainEvent;
    type StateQuery = ();
    type Error = std::convert::Infallible;

    fn state_query(&self) {}

    fn process(&self, (): &()) -> Result<Decided<DomainEvent>, Self::Error> {
        Ok(Decided::Events(vec![self.0.clone()]))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
pub(crate) struct Items {
    #[id]
    pub(crate) cart_id: CartId,
    pub(crate) items: usize,
}

impl State for Items {
    fn mutate(&mut self, event: CartStream, _: Position) {
        self.items += usize::from(matches!(event, CartStream::ItemAdded { .. }));
    }
}

impl Decision for Add {
    type Event = DomainEvent;
    type StateQuery = Items;
    type Error = usize;

    fn state_query(&self) -> Items {
        let DomainEvent::ItemAdded { cart_id, .. } = &self.0 else { unreachable!("only items are added") };
        Items { cart_id: *cart_id, items: 0 }
    }

    fn process(&self, state: &Items) -> Result<Decided<DomainEvent>, usize> {
        if state.items < 3 { Ok(Decided::Events(vec![self.0.clone()])) } else { Err(state.items) }
    }
}
