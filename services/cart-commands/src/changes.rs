//! The limit of a cart's changes, which Add Item, Remove Item and Clear Cart share.
//!
//! Without a limit, a cart can grow until no command can read it in time. Each of the three counts the cart's events in its own state. So the
//! number is part of its consistency boundary, and the limit is exact. Submit Cart ignores the limit: a shopper can always order what is in
//! the cart. Archive Item ignores it too, and archives at most the items that are left.

/// How many changes a cart takes: events of the cart, CartCreated included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxChanges(pub(crate) u32);

impl MaxChanges {
    /// Whether a cart with this many events takes no further change.
    pub(crate) fn are_reached(self, changes: u32) -> bool {
        changes >= self.0
    }
}

impl Default for MaxChanges {
    fn default() -> Self {
        Self(1_000)
    }
}
