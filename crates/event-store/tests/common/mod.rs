//! Decisions that these tests share.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test uses every one; a test that cannot go on fails")]

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use cart_events::{CartId, CartStream, DomainEvent, examples::Shopping};
use disintegrate::StateQuery;
use event_store::{Decided, Decision, Position, State, View};

/// Adds an item while there are fewer than three; refuses with their number.
#[derive(Clone)]
pub(crate) struct Add(pub(crate) DomainEvent);

impl Add {
    /// A new item, to this cart.
    pub(crate) fn to(cart: &Shopping) -> Self {
        Self(Shopping { cart_id: cart.cart_id, ..Shopping::new() }.added(0))
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

/// A decision during which something else happens: after it was read and before it is appended, the first time.
pub(crate) struct Meanwhile<D> {
    decision: D,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    decided: AtomicUsize,
}

impl<D> Meanwhile<D> {
    pub(crate) fn new(decision: D, happens: impl FnOnce() + Send + 'static) -> Self {
        Self { decision, happens: Mutex::new(Some(Box::new(happens))), decided: AtomicUsize::new(0) }
    }

    /// How often it decided.
    pub(crate) fn decided(&self) -> usize {
        self.decided.load(Ordering::SeqCst)
    }
}

impl<D: Decision> Decision for Meanwhile<D> {
    type Event = D::Event;
    type StateQuery = D::StateQuery;
    type Error = D::Error;

    fn state_query(&self) -> D::StateQuery {
        self.decision.state_query()
    }

    fn process(&self, state: &View<D>) -> Result<Decided<D::Event>, D::Error> {
        self.decided.fetch_add(1, Ordering::SeqCst);
        let happens = self.happens.lock().unwrap().take();
        if let Some(happens) = happens {
            happens();
        }
        self.decision.process(state)
    }
}

/// Waits within a decision, which is not asynchronous. Needs a runtime of several threads.
pub(crate) fn blocking<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}
