//! The correlation id: one id for everything that one request or message leads to.
//!
//! The edge of a system takes or makes it, and runs its work in its [`scope`]. Events that are written there carry it in their metadata.

use std::future::Future;

use uuid::Uuid;

/// The header that carries it, over HTTP and in Kafka.
pub const HEADER: &str = "x-correlation-id";

/// The most characters of a correlation id.
const MAX_LENGTH: usize = 128;

tokio::task_local! {
    static CURRENT: Option<String>;
}

/// Returns the text if it may be a correlation id: 1 to 128 visible ASCII characters.
pub fn valid(text: &[u8]) -> Option<&str> {
    let fits = (1..=MAX_LENGTH).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
    fits.then(|| std::str::from_utf8(text).ok()).flatten()
}

/// Makes a correlation id.
pub fn new() -> String {
    Uuid::now_v7().to_string()
}

/// Runs a future with this correlation id. Tasks that it spawns do not have it.
pub async fn scope<F: Future>(id: Option<String>, future: F) -> F::Output {
    CURRENT.scope(id, future).await
}

/// Returns the correlation id of the scope.
pub fn current() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_characters_are_valid() {
        for good in ["a", "order-7/2024", &*new(), &*"x".repeat(128)] {
            assert_eq!(valid(good.as_bytes()), Some(good));
        }
        for wrong in ["", "two words", "a\u{7f}", "\u{e9}", "a\nb", &*"x".repeat(129)] {
            assert_eq!(valid(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn scope_ends_with_its_future() {
        assert_eq!(current(), None);
        let inside = scope(Some("a".into()), async { (current(), scope(None, async { current() }).await) });
        assert_eq!(inside.await, (Some("a".into()), None));
        assert_eq!(current(), None);
    }
}
