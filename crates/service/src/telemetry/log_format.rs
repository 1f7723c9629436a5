//! The log as JSON, with the ids of trace and span.

use std::fmt;

use opentelemetry::{Context, trace::TraceContextExt};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Format, Writer},
    },
    registry::LookupSpan,
};

/// tracing-subscriber's JSON, after `trace_id` and `span_id` if there is a trace.
pub(crate) struct Json(Format<format::Json>);

impl Json {
    pub(crate) fn new() -> Self {
        Self(Format::default().json().flatten_event(true).with_current_span(false))
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        // The tracing layer makes each span that is entered the current one of the thread.
        let ids = Context::map_current(|context| {
            let span = context.span();
            let ids = span.span_context();
            ids.is_valid().then(|| (ids.trace_id(), ids.span_id()))
        });
        match (ids, line.strip_prefix('{')) {
            (Some((trace, span)), Some(rest)) => write!(writer, r#"{{"trace_id":"{trace}","span_id":"{span}",{rest}"#),
            _ => writer.write_str(&line),
        }
    }
}
