//! The HTTP server: a service's routes and the common ones, within limits.

use std::{io, net::TcpListener, time::Duration};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::Server,
    http::header::ContentType,
    middleware::from_fn,
    web::{self, Data, PathConfig, QueryConfig, ServiceConfig},
};
use tracing_actix_web::TracingLogger;
use utoipa::openapi::OpenApi;

use super::{
    cors,
    edge::{self, RequestSpan},
    error::HttpError,
    error_code::ErrorCode,
    openapi::{self, Routes},
    position::Draining,
};
use crate::{health::Readiness, settings::Common, telemetry::Metrics};

/// How long a client may take to send the head of its first request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stay idle. Load balancers commonly keep connections for a minute: they must close first, because a request
/// that is on its way to a closed connection is lost.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client may go on sending after it was answered.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the common routes answer from.
#[derive(Clone)]
pub(crate) struct Operations {
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
}

/// Starts serving on `listener`.
///
/// # Errors
/// Where the listener cannot be used.
pub(crate) fn start<F>(
    listener: TcpListener,
    settings: &Common,
    drain_deadline: Duration,
    draining: Draining,
    operations: Operations,
    document: OpenApi,
    routes: F,
) -> Result<Server, StartError>
where
    F: Fn(&mut ServiceConfig) + Clone + Send + 'static,
{
    let document = openapi::with_common_routes(document);
    let table = Data::new(Routes::of(&document));
    let document = Document(document.to_json().map_err(StartError::Document)?);
    let origins = settings.cors_origins.clone();

    let app = move || {
        App::new()
            .app_data(table.clone())
            .app_data(Data::new(operations.clone()))
            .app_data(Data::new(document.clone()))
            .app_data(Data::new(draining.clone()))
            .app_data(
                PathConfig::default()
                    .error_handler(|error, _| HttpError::new(ErrorCode::InvalidPath, format!("the path cannot be read: {error}")).into()),
            )
            .app_data(
                QueryConfig::default()
                    .error_handler(|error, _| HttpError::new(ErrorCode::InvalidQuery, format!("the query cannot be read: {error}")).into()),
            )
            .configure(common_routes)
            .configure(routes.clone())
            .default_service(web::to(|request: HttpRequest| async move { edge::no_route(&request) }))
            .wrap(from_fn(edge::answer_head_as_get))
            .wrap(cors::allow(&origins))
            .wrap(from_fn(edge::answer_errors_in_json))
            .wrap(from_fn(edge::observe))
            .wrap(TracingLogger::<RequestSpan>::new())
    };
    let mut server = HttpServer::new(app)
        .disable_signals()
        // In whole seconds, rounded up: the caller ends the wait to the moment.
        .shutdown_timeout(drain_deadline.as_secs() + 1)
        .max_connections(settings.http_max_connections.as_usize())
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(DISCONNECT_TIMEOUT)
        // Answers are small and written at once, so waiting for more to send only delays them.
        .tcp_nodelay(true);
    if settings.http_workers.get() > 0 {
        server = server.workers(settings.http_workers.as_usize());
    }
    Ok(server.listen(listener).map_err(StartError::Listen)?.run())
}

/// A server that cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the OpenAPI document cannot be written as JSON")]
    Document(#[source] serde_json::Error),
    #[error("the listener cannot be used")]
    Listen(#[source] io::Error),
}

#[derive(Clone)]
struct Document(String);

fn common_routes(app: &mut ServiceConfig) {
    app.route("/healthcheck", web::get().to(healthcheck))
        .route("/ready", web::get().to(ready))
        .route("/metrics", web::get().to(metrics))
        .route("/openapi.json", web::get().to(document));
}

async fn healthcheck() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body("Ok")
}

async fn ready(operations: Data<Operations>) -> Result<HttpResponse, HttpError> {
    operations.readiness.check().await?;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "ready": true })))
}

async fn metrics(operations: Data<Operations>) -> Result<HttpResponse, HttpError> {
    let text = operations.metrics.text().map_err(HttpError::fault)?;
    Ok(HttpResponse::Ok().content_type(prometheus::TEXT_FORMAT).body(text))
}

async fn document(document: Data<Document>) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(document.0.clone())
}
