//! The OpenAPI document: committed, and the table that tells an unknown route from a wrong method.

use std::path::Path;

use actix_web::{dev::ResourceDef, http::header::HeaderValue};
use utoipa::openapi::{OpenApi, PathItem};

use super::{error::HttpError, error_code::ErrorCode};

/// The environment variable that makes [`assert_committed`] write the file.
const UPDATE_VARIABLE: &str = "UPDATE_OPENAPI";

/// Compares the committed document with the generated one. With `UPDATE_OPENAPI=1` in the environment, it writes the file instead.
///
/// # Panics
/// If the two differ, or the file cannot be read or written: it is for tests.
#[allow(clippy::panic, reason = "an assertion")]
pub fn assert_committed(document: &OpenApi, path: impl AsRef<Path>) {
    let path = path.as_ref();
    let mut generated = match document.to_pretty_json() {
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
        "{} differs from the routes; run this test with {UPDATE_VARIABLE}=1 and commit the file",
        path.display()
    );
}

/// The methods of each documented route.
#[derive(Clone)]
pub(crate) struct RouteTable(Vec<(ResourceDef, String)>);

impl RouteTable {
    pub(crate) fn of(document: &OpenApi) -> Self {
        let routes = document.paths.paths.iter().map(|(path, item)| (ResourceDef::new(path.as_str()), methods(item)));
        Self(routes.collect())
    }

    /// Refuses a request that no route took: 405 with the methods that the path takes, or 404.
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
