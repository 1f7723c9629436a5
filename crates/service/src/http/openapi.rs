//! The OpenAPI document: served, committed, and the table by which an unknown route is told from a wrong method.

use std::path::Path;

use actix_web::{dev::ResourceDef, http::header::HeaderValue};
use utoipa::{
    OpenApi,
    openapi::{OpenApi as Document, PathItem},
};

use super::{
    error::{ErrorBody, HttpError},
    error_code::ErrorCode,
};

/// The environment variable that makes [`assert_committed`] write the file instead.
const UPDATE_VARIABLE: &str = "UPDATE_OPENAPI";

/// The routes every service has.
#[derive(OpenApi)]
#[openapi(paths(common::healthcheck, common::ready, common::metrics, common::openapi), components(schemas(ErrorBody)))]
struct CommonRoutes;

/// Declarations for the document alone: the routes themselves are in `server.rs`.
#[allow(dead_code, reason = "read by the derive of CommonRoutes")]
mod common {
    use crate::http::error::ErrorBody;

    /// Whether the process is alive
    #[utoipa::path(get, path = "/healthcheck", tag = "operations",
        responses((status = 200, description = "It is", body = String, content_type = "text/plain", example = "Ok")))]
    pub(super) fn healthcheck() {}

    /// Whether the service can do its work
    #[utoipa::path(get, path = "/ready", tag = "operations", responses(
        (status = 200, description = "It can", body = serde_json::Value, example = json!({"ready": true})),
        (status = 503, description = "It cannot yet, or no longer: the message says what it waits for", body = ErrorBody,
            example = json!({"code": "not_ready", "message": "waiting for: log: the database is away"}))))]
    pub(super) fn ready() {}

    /// Metrics in Prometheus's text format
    #[utoipa::path(get, path = "/metrics", tag = "operations",
        responses((status = 200, description = "The metrics", body = String, content_type = "text/plain")))]
    pub(super) fn metrics() {}

    /// This document
    #[utoipa::path(get, path = "/openapi.json", tag = "operations",
        responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value)))]
    pub(super) fn openapi() {}
}

/// The service's document with the routes that every service has.
#[must_use]
pub fn with_common_routes(mut document: Document) -> Document {
    document.merge(CommonRoutes::openapi());
    document
}

/// Holds the committed document against the generated one; with `UPDATE_OPENAPI=1` in the environment, writes it.
///
/// Add the common routes nowhere: both have them.
///
/// # Panics
/// Where the two differ or the file cannot be read or written: it is for tests.
#[allow(clippy::panic, reason = "an assertion")]
pub fn assert_committed(document: &Document, path: impl AsRef<Path>) {
    let path = path.as_ref();
    let mut generated = match with_common_routes(document.clone()).to_pretty_json() {
        Ok(json) => json,
        Err(error) => panic!("the OpenAPI document cannot be written as JSON: {error}"),
    };
    generated.push('\n');
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        if let Err(error) = std::fs::write(path, generated) {
            panic!("{} cannot be written: {error}", path.display());
        }
        return;
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == generated,
        "{} is not what the routes say. Run this test with {UPDATE_VARIABLE}=1, and commit the file.",
        path.display()
    );
}

/// Which methods each documented route takes.
#[derive(Clone)]
pub(crate) struct Routes(Vec<(ResourceDef, String)>);

impl Routes {
    pub(crate) fn of(document: &Document) -> Self {
        let routes = document.paths.paths.iter().map(|(path, item)| (ResourceDef::new(path.as_str()), methods(item)));
        Self(routes.collect())
    }

    /// What to answer where no route took the request: 405 with the methods it would take, or 404.
    pub(crate) fn refusal(&self, path: &str) -> (HttpError, Option<HeaderValue>) {
        let allowed: Vec<&str> = self.0.iter().filter(|(route, _)| route.is_match(path)).map(|(_, methods)| methods.as_str()).collect();
        if allowed.is_empty() {
            return (HttpError::new(ErrorCode::UnknownRoute, "there is no such route; /openapi.json lists them"), None);
        }
        let allowed = allowed.join(", ");
        let refusal = HttpError::new(ErrorCode::MethodNotAllowed, format!("this route takes {allowed}"));
        (refusal, HeaderValue::from_str(&allowed).ok())
    }
}

fn methods(item: &PathItem) -> String {
    let methods = [
        ("GET", item.get.is_some()),
        ("HEAD", item.head.is_some()),
        ("POST", item.post.is_some()),
        ("PUT", item.put.is_some()),
        ("PATCH", item.patch.is_some()),
        ("DELETE", item.delete.is_some()),
        ("OPTIONS", item.options.is_some()),
    ];
    methods.iter().filter(|(_, taken)| *taken).map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
