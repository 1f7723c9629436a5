//! Lets something happen between a decision's read and its append.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use event_store::{Decided, Decision, View};

/// Wraps a decision. The first time it decides, something else happens after the read and before the append.
pub struct Meanwhile<D> {
    decision: D,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    decided: AtomicUsize,
}

impl<D> Meanwhile<D> {
    /// Wraps a decision, with what happens in between.
    pub fn new(decision: D, happens: impl FnOnce() + Send + 'static) -> Self {
        Self { decision, happens: Mutex::new(Some(Box::new(happens))), decided: AtomicUsize::new(0) }
    }

    /// Returns how often the decision was made.
    pub fn decided(&self) -> usize {
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
        let happens = self.happens.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(happens) = happens {
            happens();
        }
        self.decision.process(state)
    }
}

/// Waits for a future inside a decision, which is not asynchronous. Needs a multi-threaded runtime.
pub fn blocking<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}
