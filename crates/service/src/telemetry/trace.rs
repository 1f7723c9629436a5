//! Trace contexts carried over what is not HTTP: into an event's metadata, a message's headers, and back.

use std::collections::HashMap;

use opentelemetry::{Context, global, trace::TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// The W3C `traceparent` of the current span; `None` outside any span, or before telemetry is set up.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove(TRACEPARENT)
}

/// Makes the span of that `traceparent` the parent of `span`. One that cannot be read is ignored.
///
/// Call it before `span` is entered. Where the span has an empty field `trace_id`, that is filled in.
pub fn set_parent(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    adopt(span, context);
}

/// Makes `context` the parent of `span` and writes the trace's id into its field.
pub(crate) fn adopt(span: &Span, context: Context) {
    if context.has_active_span() {
        // It fails where the span is disabled or was entered before; the trace is then cut in two, and nothing else.
        let _ = span.set_parent(context);
    }
    if let Some(id) = trace_id(span) {
        span.record("trace_id", id);
    }
}

/// The current trace's id, 32 hexadecimal digits.
pub(crate) fn current_trace_id() -> Option<String> {
    trace_id(&Span::current())
}

fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let span_context = span.span_context();
    span_context.is_valid().then(|| span_context.trace_id().to_string())
}
