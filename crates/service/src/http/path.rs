//! Values in paths: parsed at the edge, and compared with what the body repeats.

use std::{fmt::Display, future::Ready, str::FromStr};

use actix_web::{Error, FromRequest, HttpRequest, dev::Payload, web::Path};

use super::{error::HttpError, error_code::ErrorCode};

/// The one parameter of a route's path, read into `T`. List it before the body, so that the path's error comes first.
///
/// A value that cannot be read is refused with 400 `invalid_path`; the message names the parameter.
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
            text.parse().map(Self).map_err(|error| HttpError::new(ErrorCode::InvalidPath, format!("{name} in the path: {error}")).into())
        }))
    }
}

/// Checks that a body repeats the id in the path.
///
/// # Errors
/// 400 `path_body_mismatch` if the two differ.
pub fn ensure_path_matches_body<T: PartialEq + Display>(name: &str, path: &T, body: &T) -> Result<(), HttpError> {
    if path == body {
        return Ok(());
    }
    let message = format!("{name} is {path} in the path and {body} in the body; they must be equal");
    Err(HttpError::new(ErrorCode::PathBodyMismatch, message))
}
