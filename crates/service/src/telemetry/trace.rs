//! Trace contexts in the metadata of events and the headers of messages.

use std::collections::HashMap;

use opentelemetry::{Context, global, trace::TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// Answers the W3C `traceparent` of the current span, or `None` without a span or before telemetry is set up.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove(TRACEPARENT)
}

/// Makes the span of a `traceparent` the parent of `span`. An invalid `traceparent` is ignored.
///
/// Call it before `span` is entered. It fills in the field `trace_id` if the span has it.
pub fn set_parent(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    adopt(span, context);
}

/// Makes `context` the parent of `span` and fills in its field `trace_id`.
pub(crate) fn adopt(span: &Span, context: Context) {
    if context.has_active_span() {
        // It fails if the span is disabled or was entered before. Then the trace is cut in two.
        let _ = span.set_parent(context);
    }
    if let Some(id) = trace_id(span) {
        span.record("trace_id", id);
    }
}

/// Answers the id of the current trace, 32 hexadecimal digits.
pub(crate) fn current_trace_id() -> Option<String> {
    trace_id(&Span::current())
}

fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let span_context = span.span_context();
    span_context.is_valid().then(|| span_context.trace_id().to_string())
}
