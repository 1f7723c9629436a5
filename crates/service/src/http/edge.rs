//! The middleware of every request: a span, a measurement, a log line, and errors as JSON.

use std::{sync::LazyLock, time::Instant};

use actix_web::{
    Error, ResponseError,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::Next,
    web,
};
use event_store::correlation;
use opentelemetry::{KeyValue, global, metrics::Histogram, propagation::Extractor};
use tracing::{Span, field::Empty};
use tracing_actix_web::RootSpanBuilder;

use super::{error::HttpError, error_code::ErrorCode, openapi::RouteTable};
use crate::telemetry::trace;

/// In seconds. The conventional bounds start at 5 ms, and most of our requests take less.
const DURATION_BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Created at the first request, after the meter provider is set.
static DURATION: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    global::meter("http")
        .f64_histogram("http.server.request.duration")
        .with_unit("s")
        .with_description("Time from the head of a request to its answer, by method, route and status.")
        .with_boundaries(DURATION_BOUNDS.to_vec())
        .build()
});

/// Opens a request's span as a child of its `traceparent`.
pub(crate) struct RequestSpan;

impl RootSpanBuilder for RequestSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        if is_operational(request.path()) {
            return Span::none();
        }
        let method = method_label(request.method());
        let route = route_label(request);
        let span = tracing::info_span!(
            "request",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            otel.status_code = Empty,
            http.request.method = method,
            http.route = route,
            url.path = request.path(),
            http.response.status_code = Empty,
            trace_id = Empty,
        );
        let context = global::get_text_map_propagator(|propagator| propagator.extract(&Headers(request)));
        trace::adopt(&span, context);
        span
    }

    fn on_request_end<B: MessageBody>(span: Span, outcome: &Result<ServiceResponse<B>, Error>) {
        let status = match outcome {
            Ok(response) => response.status(),
            Err(error) => error.as_response_error().status_code(),
        };
        span.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
    }
}

struct Headers<'a>(&'a ServiceRequest);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.headers().get(key)?.to_str().ok()
    }
    fn keys(&self) -> Vec<&str> {
        self.0.headers().keys().map(header::HeaderName::as_str).collect()
    }
}

/// Takes the request's correlation id, or makes one. Events that the request leads to carry it, and so does the answer.
pub(crate) async fn correlate(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<BoxBody>, Error> {
    let given = request.headers().get(correlation::HEADER).map(|value| correlation::valid(value.as_bytes()));
    let id = match given {
        Some(None) => {
            let message = "the header x-correlation-id must have 1 to 128 visible characters of ASCII";
            return Ok(request.error_response(HttpError::new(ErrorCode::MalformedRequest, message)));
        }
        Some(Some(id)) => id.to_owned(),
        None => in_baggage(request.headers()).map_or_else(correlation::new, str::to_owned),
    };
    let value = header::HeaderValue::from_str(&id);
    let mut response = correlation::scope(Some(id), next.call(request)).await?;
    if let Ok(value) = value {
        response.headers_mut().insert(header::HeaderName::from_static(correlation::HEADER), value);
    }
    Ok(response)
}

/// The member `correlation-id` of the W3C baggage.
fn in_baggage(headers: &header::HeaderMap) -> Option<&str> {
    let members = headers.get_all("baggage").filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut members = members.filter_map(|member| member.split(';').next()?.split_once('='));
    let (_, id) = members.find(|(key, _)| key.trim() == "correlation-id")?;
    correlation::valid(id.trim().as_bytes())
}

/// Measures and logs a request. Faults are logged here and nowhere else.
pub(crate) async fn observe(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<BoxBody>, Error> {
    let start = Instant::now();
    let method = method_label(request.method());
    let route = route_label(&request);
    let operational = is_operational(request.path());

    let response = next.call(request).await?;

    let seconds = start.elapsed().as_secs_f64();
    let status = response.status();
    DURATION.record(
        seconds,
        &[
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ],
    );
    let error = response.response().error();
    let expected = error.and_then(|error| error.as_error::<HttpError>()).is_some_and(HttpError::is_expected);
    let causes = || match error.and_then(|error| error.as_error::<HttpError>()) {
        Some(error) => error.causes(),
        None => error.map_or_else(|| "unknown cause".to_owned(), ToString::to_string),
    };
    let status = status.as_u16();
    match status {
        503 if operational => tracing::debug!(status, reason = causes(), "not ready"),
        503 if !expected => tracing::warn!(status, seconds, error = causes(), "request answered 503"),
        500.. if !expected => tracing::error!(status, seconds, error = causes(), "request failed"),
        // A line for each would cost as much as the answer. The metrics count it, and the trace has it.
        _ => tracing::debug!(status, seconds, operational, "request answered"),
    }
    Ok(response)
}

/// Turns every other error into JSON: those of the router, of extractors and of other middleware. A page stays a page.
pub(crate) async fn answer_errors_in_json(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let response = next.call(request).await?.map_into_boxed_body();
    let status = response.status();
    let media_type = response.headers().get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes).unwrap_or_default();
    let is_ours = media_type.starts_with(b"application/json") || media_type.starts_with(b"text/html");
    if !(status.is_client_error() || status.is_server_error()) || is_ours {
        return Ok(response);
    }
    let (http_request, response) = response.into_parts();
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
        let refusal = no_route(&http_request);
        return Ok(ServiceResponse::new(http_request, refusal));
    }
    let text = response.error().map_or_else(|| status.to_string(), ToString::to_string);
    let error = if status.is_server_error() {
        HttpError::fault(anyhow::anyhow!("{text}"))
    } else {
        HttpError::new(ErrorCode::MalformedRequest, text)
    };
    Ok(ServiceResponse::new(http_request, error.error_response()))
}

/// Answers a request that no route took.
pub(crate) fn no_route(request: &actix_web::HttpRequest) -> actix_web::HttpResponse {
    let Some(routes) = request.app_data::<web::Data<RouteTable>>() else {
        return HttpError::new(ErrorCode::UnknownRoute, "there is no such route").error_response();
    };
    let (refusal, allow) = routes.refusal(request.path());
    let mut response = refusal.error_response();
    if let Some(methods) = allow {
        response.headers_mut().insert(header::ALLOW, methods);
    }
    response
}

/// Handles HEAD like GET. The connection omits the body.
pub(crate) async fn answer_head_as_get(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if request.method() == Method::HEAD {
        request.head_mut().method = Method::GET;
        // A stream has no end to wait for.
        request.headers_mut().remove(header::ACCEPT);
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}

/// Answers whether machines request the route every few seconds.
fn is_operational(path: &str) -> bool {
    matches!(path, "/healthcheck" | "/ready" | "/metrics")
}

/// Answers the method as a label. All unknown methods share one.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

/// Answers the route's template as a label. All unknown paths share one.
fn route_label(request: &ServiceRequest) -> String {
    request.match_pattern().unwrap_or_else(|| "unknown".to_owned())
}
