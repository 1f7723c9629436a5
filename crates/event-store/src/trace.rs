//! W3C trace context into and out of the current span, through the globally installed propagator.

use std::collections::HashMap;

use opentelemetry::propagation::Extractor;
use tracing_opentelemetry::OpenTelemetrySpanExt;

struct Traceparent<'a>(&'a str);

impl Extractor for Traceparent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }
    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// Returns the current span's context as a `traceparent` header, if it has one.
pub fn current_traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let mut headers = HashMap::new();
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut headers));
    headers.remove("traceparent")
}

/// Makes a span the child of the span that a `traceparent` header names. Without a header the span stays as it is.
pub fn set_parent(span: &tracing::Span, traceparent: Option<&str>) {
    if let Some(traceparent) = traceparent {
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Traceparent(traceparent)));
        // It fails only for a span that no layer records.
        let _ = span.set_parent(parent);
    }
}

/// Makes a span follow its causes: the child of a single cause, or linked to several.
pub fn follow<'a>(span: &tracing::Span, traceparents: impl Iterator<Item = Option<&'a str>>) {
    /// Links show where a batch came from. More links would add nothing.
    const LINKS: usize = 32;
    let mut causes: Vec<&str> = vec![];
    for cause in traceparents.flatten() {
        if causes.last() != Some(&cause) {
            causes.push(cause);
        }
        if causes.len() > LINKS {
            break;
        }
    }
    if let [cause] = causes.as_slice() {
        return set_parent(span, Some(cause));
    }
    for cause in causes {
        let context = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Traceparent(cause)));
        span.add_link(opentelemetry::trace::TraceContextExt::span(&context).span_context().clone());
    }
}
