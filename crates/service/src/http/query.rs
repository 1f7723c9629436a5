//! Numbers in query strings.

use actix_web::HttpRequest;
use url::form_urlencoded;

use super::{error::HttpError, error_code::ErrorCode};

/// Reads a query parameter that is a whole number from `least` to `most`. `least` is not negative.
///
/// # Errors
/// 400 `invalid_query` if the value is no such number, or if it is given twice.
pub(crate) fn number(request: &HttpRequest, name: &str, least: i64, most: i64) -> Result<Option<i64>, HttpError> {
    let refused = |message: String| HttpError::new(ErrorCode::InvalidQuery, format!("{name} in the query: {message}"));
    let mut given = form_urlencoded::parse(request.query_string().as_bytes()).filter(|(key, _)| key == name);
    let Some((_, text)) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(refused("must be given once".to_owned()));
    }
    // Digits only: `parse` accepts a plus sign, too.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse().ok().filter(|number| digits && (least..=most).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(refused(format!("must be a whole number from {least} to {most}"))),
    }
}
