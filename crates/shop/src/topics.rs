//! The topics of the cart system.

use embedded::error::Error;
use embedded::kafka::{Topic, create_topics};

/// Stock levels, in.
pub const INVENTORIES: &str = "inventories";
/// Price changes, in.
pub const PRICE_CHANGES: &str = "price-changes";
/// Submitted carts, out.
pub const PUBLISHED_CARTS: &str = "published-carts";

const PARTITIONS: i32 = 6;
/// A dead letter holds its source's largest message (1 MiB) and the reason beside it.
const DEAD_LETTER_BYTES: u32 = 3 * 1024 * 1024;

/// Makes the topics that are not there yet.
///
/// # Errors
/// The broker is away or refuses one.
pub async fn create(bootstrap_servers: &str) -> Result<(), Error> {
    let source = |name| Topic { name, partitions: PARTITIONS, max_message_bytes: None };
    let dead_letters = |name| Topic { name, partitions: 1, max_message_bytes: Some(DEAD_LETTER_BYTES) };
    let topics = [
        source(INVENTORIES),
        source(PRICE_CHANGES),
        source(PUBLISHED_CARTS),
        dead_letters("inventories.dead-letters"),
        dead_letters("price-changes.dead-letters"),
    ];
    create_topics(bootstrap_servers, &topics).await
}
