//! Values in paths: parsed at the edge, and compared with what the body repeats.

use std::{fmt::Display, str::FromStr};

use crate::HttpError;

/// Parses a path parameter.
///
/// # Errors
/// 400 `invalid_path`, naming the parameter and what it should be, where it cannot be parsed.
pub fn path_value<T>(name: &str, text: &str) -> Result<T, HttpError>
where
    T: FromStr<Err: Display>,
{
    text.parse().map_err(|error| HttpError::bad_request("invalid_path", format!("{name} in the path: {error}")))
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
