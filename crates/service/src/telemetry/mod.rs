//! Logs, traces and metrics of the process.

mod log_format;
pub mod trace;

use std::{io::IsTerminal, time::Duration};

use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    metrics::SdkMeterProvider,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use prometheus::{Encoder, Registry, TextEncoder};
use tracing::{Level, Metadata, level_filters::LevelFilter, warn};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, dynamic_filter_fn, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    settings::{Common, LogFormat},
    supervise,
};
use log_format::Json;

/// Targets that log at `error` what is a client's doing, or what we log ourselves. `log_filter` may name them again.
const QUIET: &str = "actix_http::h1=off,tracing_actix_web=off,actix_server=warn";

/// What must be flushed at the end.
#[derive(Debug)]
pub(crate) struct Telemetry {
    traces: SdkTracerProvider,
    metrics: Metrics,
}

/// The process's metrics, for Prometheus.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
}

/// Telemetry that could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    #[error("the exporter of traces cannot be built")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("the exporter of metrics cannot be built")]
    Metrics(#[from] OTelSdkError),
    #[error("log_filter cannot be read")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging is already set up")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

impl Telemetry {
    /// Sets up the process's logs, traces and metrics. Works once.
    ///
    /// # Errors
    /// Where an exporter cannot be built, or logging is already set up.
    pub(crate) fn install(service: &'static str, settings: &Common) -> Result<Self, TelemetryError> {
        let version = KeyValue::new("service.version", version::VERSION);
        let resource = Resource::builder().with_service_name(service).with_attribute(version).build();
        let traces = traces(resource.clone(), settings)?;
        global::set_text_map_propagator(TraceContextPropagator::new());
        global::set_tracer_provider(traces.clone());

        let filter = EnvFilter::builder().parse(format!("{QUIET},{}", &*settings.log_filter))?;
        let log = match settings.log_format {
            LogFormat::Auto if std::io::stdout().is_terminal() => pretty(),
            LogFormat::Pretty => pretty(),
            LogFormat::Auto | LogFormat::Json => json(),
        };
        // A line tells what it is about however narrow the filter is.
        let filter = filter.or(filter_fn(|metadata| metadata.is_span() && *metadata.level() <= Level::INFO));
        // Spans are traced whatever is logged: the trace must not end where a log filter is narrow. Those of single steps are made only
        // where somebody gets to see them.
        let most = if settings.otel_exporter_otlp_endpoint.url().is_some() { Level::DEBUG } else { Level::INFO };
        let spans = tracing_opentelemetry::layer()
            .with_tracer(traces.tracer("cartlog"))
            // Asked anew each time. Where a library asks whether something would be logged, and then does not log it, tracing-subscriber keeps
            // the answer for the thread, and takes it for the next span's unless that is asked for too: it would be lost.
            .with_filter(
                dynamic_filter_fn(move |metadata, _| is_traced(metadata, most)).with_max_level_hint(LevelFilter::from_level(most)),
            );
        tracing_subscriber::registry().with(log.with_filter(filter)).with(spans).try_init()?;
        log_panics();

        Ok(Self { traces, metrics: Metrics::install(resource)? })
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Sends what is not yet sent. Blocks for at most `deadline`.
    pub(crate) fn flush(&self, deadline: Duration) {
        if let Err(error) = self.traces.shutdown_with_timeout(deadline) {
            warn!(%error, "the last traces were not sent");
        }
    }
}

/// Whether a span becomes one of a trace. Those that libraries open at `debug` are theirs; and the one of a background task lasts as long as
/// the process: what the task does is no part of one trace.
fn is_traced(metadata: &Metadata<'_>, most: Level) -> bool {
    let level = *metadata.level();
    let ours = || metadata.target().starts_with("event_store");
    metadata.is_span() && metadata.name() != supervise::SPAN && (level <= Level::INFO || (level <= most && ours()))
}

fn traces(resource: Resource, settings: &Common) -> Result<SdkTracerProvider, TelemetryError> {
    let provider = SdkTracerProvider::builder().with_resource(resource);
    let Some(collector) = settings.otel_exporter_otlp_endpoint.url() else {
        // Nothing is recorded, and ids are made and handed on all the same; who sends a sampled parent is told of by
        // others.
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        return Ok(provider.with_sampler(sampler).build());
    };
    let endpoint = format!("{}/v1/traces", collector.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).build()?;
    Ok(provider.with_batch_exporter(exporter).build())
}

fn pretty<S>() -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    fmt::layer().compact().with_ansi(std::io::stdout().is_terminal()).boxed()
}

fn json<S>() -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    fmt::layer().json().event_format(Json::new()).boxed()
}

/// A panic is a log line like any other, and not text between JSON objects.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("(no message)");
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, "panic: {message}");
    }));
}

impl Metrics {
    fn install(resource: Resource) -> Result<Self, OTelSdkError> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter().with_registry(registry.clone()).without_scope_info().build()?;
        global::set_meter_provider(SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build());
        Ok(Self { registry })
    }

    /// Metrics that nothing writes to.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self { registry: Registry::new() }
    }

    /// The metrics in Prometheus's text format.
    ///
    /// # Errors
    /// Where a metric cannot be written in it.
    pub(crate) fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
