//! The routes of every service.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, get, http::header::ContentType, web::Data};
use serde::Serialize;

use super::{
    error::{ErrorBody, HttpError},
    position::Draining,
};
use crate::{
    health::{Readiness, Reasons},
    telemetry::Metrics,
};

/// Registers routes; each is served, and it is in the OpenAPI document.
pub type Routes<'config> = utoipa_actix_web::service_config::ServiceConfig<'config>;

/// State from which the routes of every service answer.
#[derive(Clone)]
pub(crate) struct Operations {
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) draining: Draining,
}

/// The OpenAPI document as JSON.
#[derive(Clone)]
pub(crate) struct Document(pub(crate) String);

pub(crate) fn routes(app: &mut Routes<'_>) {
    app.service(healthcheck).service(ready).service(metrics).service(openapi);
}

/// Answers while the process is alive.
#[utoipa::path(
    operation_id = "healthcheck",
    tag = "operations",
    responses((status = 200, description = "The process is alive.", body = String, content_type = "text/plain", example = "Ok"))
)]
#[get("/healthcheck")]
async fn healthcheck() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body("Ok")
}

/// Answers whether the service is ready for requests.
#[utoipa::path(
    operation_id = "ready",
    tag = "operations",
    responses(
        (status = 200, description = "The service is ready. `warnings` says what an operator should look at, by name.", body = Ready),
        (status = 503, description = "The service is starting or stopping. The message says what it waits for.", body = ErrorBody,
            example = json!({"code": "not_ready", "message": "waiting for: log: the database is away"}))
    )
)]
#[get("/ready")]
async fn ready(operations: Data<Operations>) -> Result<HttpResponse, HttpError> {
    let warnings = operations.readiness.check().await?;
    Ok(HttpResponse::Ok().json(Ready { ready: true, warnings }))
}

/// A service that is ready.
#[derive(Serialize, utoipa::ToSchema)]
struct Ready {
    #[schema(example = true)]
    ready: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>, required = false)]
    warnings: Reasons,
}

/// Answers the metrics in Prometheus's text format.
#[utoipa::path(
    operation_id = "metrics",
    tag = "operations",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain"))
)]
#[get("/metrics")]
async fn metrics(operations: Data<Operations>) -> Result<HttpResponse, HttpError> {
    let text = operations.metrics.text().map_err(HttpError::fault)?;
    Ok(HttpResponse::Ok().content_type(prometheus::TEXT_FORMAT).body(text))
}

/// Answers this document.
#[utoipa::path(
    operation_id = "openapi",
    tag = "internal",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = serde_json::Value))
)]
#[get("/openapi.json")]
async fn openapi(document: Data<Document>) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(document.0.clone())
}
