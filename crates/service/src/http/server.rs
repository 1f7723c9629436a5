//! The HTTP server: a service's routes and the common ones, within limits.

use std::{io, net::TcpListener, time::Duration};

use actix_web::{
    App, HttpRequest, HttpServer,
    dev::Server,
    middleware::from_fn,
    web::{self, Data, PathConfig},
};
use tracing_actix_web::TracingLogger;
use utoipa::openapi::OpenApi;
use utoipa_actix_web::AppExt;

use super::{
    common::{self, Document, Operations, Routes},
    cors,
    edge::{self, RequestSpan},
    error::HttpError,
    error_code::ErrorCode,
    openapi::RouteTable,
};
use crate::settings::Common;

/// How long a connection may stay idle, before its first request too. Load balancers and clients commonly keep a connection for a minute:
/// they must close it first, because a request that is on its way to a closed connection is lost.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client may continue to send after it was answered.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may leave data unread before it is dropped.
const STUCK: Duration = Duration::from_secs(30);

/// Starts serving on `listener`.
///
/// # Errors
/// If the listener cannot be used.
pub(crate) fn start<F>(
    listener: TcpListener,
    settings: &Common,
    drain_deadline: Duration,
    operations: Operations,
    document: &OpenApi,
    routes: F,
) -> Result<Server, StartError>
where
    F: Fn(&mut Routes<'_>) + Clone + Send + 'static,
{
    let table = Data::new(RouteTable::of(document));
    let document = Document(document.to_json().map_err(StartError::Document)?);
    let origins = settings.cors_origins.clone();

    let app = move || {
        App::new()
            .app_data(table.clone())
            .app_data(Data::new(operations.clone()))
            .app_data(Data::new(document.clone()))
            .app_data(Data::new(operations.draining.clone()))
            .app_data(
                PathConfig::default()
                    .error_handler(|error, _| HttpError::new(ErrorCode::InvalidPath, format!("the path cannot be read: {error}")).into()),
            )
            .into_utoipa_app()
            .configure(common::routes)
            .configure(routes.clone())
            .into_app()
            .default_service(web::to(|request: HttpRequest| async move { edge::no_route(&request) }))
            .wrap(from_fn(edge::answer_head_as_get))
            .wrap(cors::allow(&origins))
            .wrap(from_fn(edge::answer_errors_in_json))
            .wrap(from_fn(edge::observe))
            .wrap(from_fn(edge::correlate))
            .wrap(TracingLogger::<RequestSpan>::new())
    };
    let mut server = HttpServer::new(app)
        .disable_signals()
        // In whole seconds, rounded up: the caller ends the wait to the moment.
        .shutdown_timeout(drain_deadline.as_secs() + 1)
        .max_connections(settings.http_max_connections.as_usize())
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(KEEP_ALIVE)
        .client_disconnect_timeout(DISCONNECT_TIMEOUT)
        // A client that does not read its stream is dropped. Otherwise the kernel would wait for it for ever.
        .on_connect(|connection, _| {
            #[cfg(target_os = "linux")] // macOS has no such option.
            if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>() {
                // It fails only for a connection that has ended.
                let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(STUCK));
            }
        })
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
