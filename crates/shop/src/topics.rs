//! The topics of the shop.

use embedded::error::Error;
use embedded::kafka::{Topic, create_topics};

/// Inventories, into the log.
pub const INVENTORIES: &str = "inventories";
/// Price changes, into the log.
pub const PRICE_CHANGES: &str = "price-changes";
/// Submitted carts, out of the log.
pub const PUBLISHED_CARTS: &str = "published-carts";

const PARTITIONS: i32 = 6;
/// A value of 64 KiB, which is the largest that the translator reads, with its key, its headers and the batch around it.
const SOURCE_BYTES: u32 = 80 * 1024;
/// A dead letter contains its source message (1 MiB at most) and the reason.
const DEAD_LETTER_BYTES: u32 = 3 * 1024 * 1024;

/// Creates the missing topics.
///
/// # Errors
/// The broker cannot be reached, or refuses a topic.
pub async fn create(bootstrap_servers: &str) -> Result<(), Error> {
    let source = |name| Topic { name, partitions: PARTITIONS, max_message_bytes: Some(SOURCE_BYTES) };
    let dead_letters = |name| Topic { name, partitions: 1, max_message_bytes: Some(DEAD_LETTER_BYTES) };
    let topics = [
        source(INVENTORIES),
        source(PRICE_CHANGES),
        Topic { name: PUBLISHED_CARTS, partitions: PARTITIONS, max_message_bytes: None },
        dead_letters("inventories.dead-letters"),
        dead_letters("price-changes.dead-letters"),
    ];
    create_topics(bootstrap_servers, &topics).await
}
