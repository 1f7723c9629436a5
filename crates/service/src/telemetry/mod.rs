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

/// Targets that log a client's mistakes as errors, or what we log ourselves. `log_filter` may override them.
const QUIET: &str = "actix_http::h1=off,tracing_actix_web=off,actix_server=warn";

/// The telemetry of the process. It must be flushed at the end.
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

/// The telemetry could not be set up.
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
    /// Sets up logs, traces and metrics, once per process.
    ///
    /// # Errors
    /// If an exporter cannot be built, or logging is already set up.
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
        // A line has the fields of its spans, however narrow the filter is.
        let filter = filter.or(filter_fn(|metadata| metadata.is_span() && *metadata.level() <= Level::INFO));
        // Spans are traced independently of the log filter, which would interrupt traces. Spans of single steps are traced only if there is
        // a collector.
        let most = if settings.otel_exporter_otlp_endpoint.url().is_some() { Level::DEBUG } else { Level::INFO };
        let spans = tracing_opentelemetry::layer()
            .with_tracer(traces.tracer("cartlog"))
            // Dynamic, so that it is evaluated for each span. A library may ask whether an event is enabled and then not log it. Then
            // tracing-subscriber would apply the cached answer to the next span, and lose that span.
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

    /// Sends the remaining traces. Blocks for at most `deadline`.
    pub(crate) fn flush(&self, deadline: Duration) {
        if let Err(error) = self.traces.shutdown_with_timeout(deadline) {
            warn!(%error, "last traces not sent");
        }
    }
}

/// Answers whether a span is traced. Spans of libraries at `debug` are not. Neither is the span of a background task, which lasts as long
/// as the process.
fn is_traced(metadata: &Metadata<'_>, most: Level) -> bool {
    let level = *metadata.level();
    let ours = || metadata.target().starts_with("event_store");
    metadata.is_span() && metadata.name() != supervise::SPAN && (level <= Level::INFO || (level <= most && ours()))
}

fn traces(resource: Resource, settings: &Common) -> Result<SdkTracerProvider, TelemetryError> {
    let provider = SdkTracerProvider::builder().with_resource(resource);
    let Some(collector) = settings.otel_exporter_otlp_endpoint.url() else {
        // Nothing is recorded, but trace ids are created and propagated.
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

/// Logs panics as log lines, so that the log stays JSON.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let reason = panic.payload_as_str().unwrap_or("(no message)");
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, reason, "panicked");
    }));
}

impl Metrics {
    fn install(resource: Resource) -> Result<Self, OTelSdkError> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter().with_registry(registry.clone()).without_scope_info().build()?;
        global::set_meter_provider(SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build());
        Ok(Self { registry })
    }

    /// Creates metrics that nothing writes to.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self { registry: Registry::new() }
    }

    /// Writes the metrics in Prometheus's text format.
    ///
    /// # Errors
    /// If a metric cannot be written in it.
    pub(crate) fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
