//! W3C trace context, in and out of the current span, by the globally installed propagator.

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

/// The current span's context as a `traceparent` header, where there is one.
pub fn current_traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let mut headers = HashMap::new();
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut headers));
    headers.remove("traceparent")
}

/// Makes a span the child of what a `traceparent` header names; leaves it as it is where there is none.
pub fn set_parent(span: &tracing::Span, traceparent: Option<&str>) {
    if let Some(traceparent) = traceparent {
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Traceparent(traceparent)));
        // Refused only where the span was already started without a parent, as a span that no layer records is.
        let _ = span.set_parent(parent);
    }
}

/// Makes a span follow from what its work came from: the child of it where it is one, linked to each where they are several.
pub fn follow<'a>(span: &tracing::Span, traceparents: impl Iterator<Item = Option<&'a str>>) {
    /// Links say where a batch came from; more of them than this say nothing more.
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
