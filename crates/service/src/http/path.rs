//! Values in paths: parsed at the edge, and compared with what the body repeats.

use std::{fmt::Display, future::Ready, str::FromStr};

use actix_web::{Error, FromRequest, HttpRequest, dev::Payload, web::Path};

use super::error::HttpError;
use crate::settings::expectation;

/// The one parameter of a route's path, read into `T`. It goes before the body: what is wrong in both is the path's fault.
///
/// What cannot be read is refused with 400 `invalid_path` and a message that names the parameter and what it should be.
#[derive(Debug, Clone, Copy)]
pub struct PathValue<T>(pub T);

impl<T> FromRequest for PathValue<T>
where
    T: FromStr<Err: Display>,
{
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let text = Path::<String>::from_request(request, payload).into_inner();
        std::future::ready(text.and_then(|text| {
            let name = request.match_info().iter().next().map_or("the value", |(name, _)| name);
            let refused =
                |error| HttpError::bad_request("invalid_path", format!("{name} in the path: {}", expectation::must(&format!("{error}"))));
            text.parse().map(Self).map_err(|error| refused(error).into())
        }))
    }
}

/// Holds a body against the path it was sent to.
///
/// # Errors
/// 400 `path_body_mismatch` where the two differ.
pub fn agree<T: PartialEq + Display>(name: &str, path: &T, body: &T) -> Result<(), HttpError> {
    if path == body {
        return Ok(());
    }
    let message = format!("{name}: the path says {path}, the body says {body}; they must agree");
    Err(HttpError::bad_request("path_body_mismatch", message))
}
