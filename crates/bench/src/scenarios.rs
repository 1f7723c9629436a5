//! The names of the scenarios. The report and the chart look figures up by them.

use crate::measure::Load;

/// The fixed rate of Add Item: commands per second.
pub(crate) const OFFERED: u32 = 10_000;
pub(crate) fn one_item(before: u64) -> String {
    format!("a new cart each, {} events before", thousands(before))
}
/// With the bars' number of tasks or at the fixed rate; with or without VACUUM and ANALYZE.
pub(crate) fn upkeep_scenario(before: u64, load: Load, beside: bool) -> String {
    let beside = if beside { "while VACUUM and ANALYZE run" } else { "with neither VACUUM nor ANALYZE" };
    match load {
        Load::Tasks(_) => format!("{}, {beside}", one_item(before)),
        Load::Offered(rate) => format!("Add Item, {} a second, {} events before, {beside}", thousands(rate.into()), thousands(before)),
    }
}
pub(crate) const HOT_CART: &str = "one hot cart";
pub(crate) const NEW_PRODUCT: &str = "a new process, a new product";
pub(crate) const REPORTED_PRODUCT: &str = "a new process, a product with one inventory change";
pub(crate) fn popular_product(crowd: u64) -> String {
    format!("a new process, a product in {} carts", thousands(crowd))
}
pub(crate) fn counted_product(crowd: u64) -> String {
    format!("a new process, a product with {} inventory changes", thousands(crowd))
}
/// The same, but only the first command on that product counts.
pub(crate) fn first_command(scenario: &str) -> String {
    format!("{scenario}: the first command on it")
}

pub(crate) const HTTP: &str = "Add Item over HTTP";
pub(crate) const COMMANDS_IDLE: &str = "cart-commands, idle";
pub(crate) fn commands_after(carts: u64) -> String {
    format!("cart-commands, after {} carts", thousands(carts))
}
pub(crate) const KAFKA_IN: &str = "inventory messages in from Kafka";

pub(crate) const CAUGHT_UP: &str = "Cart Items, caught up";
pub(crate) fn caught_up_with(events: u64) -> String {
    format!("Cart Items, caught up with {} events", thousands(events))
}
/// Add Item alone, and while read models are built from the same log.
pub(crate) const ALONE: &str = "Add Item on a log that nobody projects";
pub(crate) const BESIDE: &str = "Add Item while the read models catch up with the log";
/// The same while read models follow the log.
pub(crate) const FOLLOWING: &str = "Add Item while the read models follow the log";
/// Add Item at the fixed rate.
pub(crate) const OFFERED_ALONE: &str = "Add Item, 10,000 a second, on a log that nobody projects";
pub(crate) const OFFERED_BESIDE: &str = "Add Item, 10,000 a second, while the read models catch up with the log";

pub(crate) const VISIBLE: &str = "from a commit to the read model, at 1,000 events a second";
/// The fixed rate of Submit Cart: commands per second.
pub(crate) const SUBMITS: u32 = 20;
pub(crate) const PUBLISHED: &str = "from Submit Cart's answer to the message, at 20 a second";
pub(crate) const SHOPPER: &str = "whole shoppers";
pub(crate) const PUBLICATIONS: &str = "publications, caught up";
pub(crate) const ONE_INSERT: &str = "the INSERT beside the publications";
pub(crate) const READ: &str = "reads of a cart of 3 items";
pub(crate) const LONG_READ: &str = "reads of a cart of 100 changes";
pub(crate) fn read_with(before: u64) -> String {
    format!("{READ}, {} events before", thousands(before))
}
pub(crate) const REFUSAL: &str = "refusals of a full cart";
pub(crate) const ARCHIVED: &str = "from a change of price to the last item archived";
pub(crate) const SERVICES_IDLE: &str = "the four services, idle";

/// Writes a number with separated thousands.
pub(crate) fn thousands(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1_000), number % 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1_000, 10_050_000].map(thousands), ["0", "999", "1,000", "10,050,000"]);
    }
}
