//! The style, the script and the icon, which are built into the binary, and the stream that makes pages live.

use std::{sync::LazyLock, time::Duration};

use actix_web::{
    Error, HttpResponse, get,
    http::header,
    middleware::from_fn,
    web::{Bytes, Data},
};
use futures::stream::unfold;
use service::CancellationToken;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{page::framed, watched::Watched};

/// The least time between two messages of a stream.
const TICK: Duration = Duration::from_millis(250);
/// The most time between two messages. What no event tells of, such as a parked key, shows after this time.
const AWAKE: Duration = Duration::from_secs(5);

/// With the board's own style, for the board only.
static STYLE: LazyLock<String> = LazyLock::new(|| format!("{}\nsvg.board {{{}}}\n", include_str!("style.css"), event_model::STYLE));

/// Answers the style of all pages.
#[utoipa::path(operation_id = "style", tag = "internal", responses((status = 200, body = String, content_type = "text/css")))]
#[get("/console/style.css", wrap = "from_fn(framed)")]
pub(crate) async fn style() -> HttpResponse {
    file("text/css; charset=utf-8", &STYLE)
}

/// Answers the script that makes pages live.
#[utoipa::path(operation_id = "script", tag = "internal", responses((status = 200, body = String, content_type = "text/javascript")))]
#[get("/console/live.js", wrap = "from_fn(framed)")]
pub(crate) async fn script() -> HttpResponse {
    file("text/javascript; charset=utf-8", include_str!("live.js"))
}

/// Answers the icon.
#[utoipa::path(operation_id = "icon", tag = "internal", responses((status = 200, body = String, content_type = "image/svg+xml")))]
#[get("/console/icon.svg", wrap = "from_fn(framed)")]
pub(crate) async fn icon() -> HttpResponse {
    file("image/svg+xml", include_str!("icon.svg"))
}

/// A browser asks again each time, and so never has those of another release.
fn file(media_type: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().content_type(media_type).insert_header((header::CACHE_CONTROL, "no-cache")).body(text)
}

/// Answers a stream that has a message whenever a page may show something new.
#[utoipa::path(operation_id = "live", tag = "internal", responses((status = 200, body = String, content_type = "text/event-stream")))]
#[get("/console/live", wrap = "from_fn(framed)")]
pub(crate) async fn stream(watched: Data<Watched>, stopping: Data<CancellationToken>) -> HttpResponse {
    let state = (watched.changes(), stopping, None::<Instant>);
    let messages = unfold(state, |(mut changes, stopping, sent)| async move {
        if let Some(sent) = sent {
            let next = async {
                sleep(TICK).await;
                tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    () = sleep_until(sent + AWAKE) => true,
                }
            };
            tokio::select! {
                goes_on = next => goes_on.then_some(())?,
                () = stopping.cancelled() => return None,
            }
        }
        let number = *changes.borrow_and_update();
        Some((Ok::<_, Error>(Bytes::from(format!("data: {number}\n\n"))), (changes, stopping, Some(Instant::now()))))
    });
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .streaming(messages)
}

#[cfg(test)]
mod tests {
    /// A policy without 'unsafe-inline' holds only if nothing inline is there.
    #[test]
    fn no_template_has_an_inline_script_or_style() {
        let mut templates = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "html") {
                let text = std::fs::read_to_string(&path).unwrap();
                for inline in ["<style", "style=", "<script>", " onclick", "javascript:", "http://", "https://"] {
                    assert!(!text.contains(inline), "{} has {inline}", path.display());
                }
                templates += 1;
            }
        }
        assert!(templates > 2);
    }
}
