//! The processes that a campaign disturbs.

use std::fmt::{self, Display, Formatter};

use shop::services::{COMMANDS, Kind, PROJECTIONS, PUBLISHER, TRANSLATOR};

/// Tables that cart-projections writes. A victim is caught in a transaction on one of them.
const OF_PROJECTIONS: &[&str] =
    &["cart_items_item", "carts_with_products", "changed_prices", "inventories", "archive_item_open_item", "todo"];
const OF_PUBLISHER: &[&str] = &["todo"];

/// A replica of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) kind: Kind,
    /// From 1.
    number: usize,
}

impl Victim {
    /// Every replica of every service.
    pub(super) fn all(replicas: usize) -> Vec<Self> {
        let kinds = [PROJECTIONS, PUBLISHER, COMMANDS, TRANSLATOR];
        kinds.into_iter().flat_map(|kind| (1..=replicas).map(move |number| Self { kind, number })).collect()
    }

    /// The tables that it writes itself; none if functions of the log write for it.
    pub(super) fn tables(self) -> &'static [&'static str] {
        match self.kind {
            PROJECTIONS => OF_PROJECTIONS,
            PUBLISHER => OF_PUBLISHER,
            _ => &[],
        }
    }
}

/// Its name in the journal and in `pg_stat_activity`.
impl Display for Victim {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind.name, self.number)
    }
}
