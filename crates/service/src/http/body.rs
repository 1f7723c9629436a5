//! Bodies of requests: read within bounds, and refused in words that say what to change.

use std::{future::Future, pin::Pin, time::Duration};

use actix_web::{
    FromRequest, HttpRequest,
    dev::Payload,
    error::PayloadError,
    http::{StatusCode, header},
    web::BytesMut,
};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::HttpError;
use crate::settings::expectation;

/// The largest body that is read, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// A client that is still sending reads no answer before it is done: this much of a refused body is taken and dropped,
/// in bytes, and for this long.
pub(crate) const MAX_DISCARDED_BYTES: usize = 16 * 1024 * 1024;
pub(crate) const DISCARD_DEADLINE: Duration = Duration::from_secs(5);
/// The time a client has for sending a body. Tests wait for it.
const BODY_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

/// A JSON object, read into `T`.
///
/// What cannot be read is refused with 400 and a message that names the field and what it should be; another content
/// type than `application/json` with 415; more than [`MAX_BODY_BYTES`] with 413.
#[derive(Debug, Clone, Copy)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for JsonBody<T> {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, HttpError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let media_type = json_only(request);
        let mut payload = payload.take();
        Box::pin(async move {
            if let Err(refusal) = media_type {
                discard(&mut payload, 0).await;
                return Err(refusal);
            }
            let body = read(&mut payload).await?;
            parse(&body).map(Self)
        })
    }
}

/// A body that means nothing to the route: read, so that the connection can be used again, and dropped.
///
/// More than [`MAX_BODY_BYTES`] is refused with 413.
#[derive(Debug, Clone, Copy)]
pub struct IgnoredBody;

impl FromRequest for IgnoredBody {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, HttpError>>>>;

    fn from_request(_: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let mut payload = payload.take();
        Box::pin(async move { read(&mut payload).await.map(|_| Self) })
    }
}

fn json_only(request: &HttpRequest) -> Result<(), HttpError> {
    let refusal = |message: &str| HttpError::refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message);
    const JSON: &str = "Content-Type: must be application/json";
    let headers = request.headers();
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(refusal("Content-Encoding: must be identity, or absent"));
    }
    let media_type = headers.get(header::CONTENT_TYPE).ok_or_else(|| refusal(JSON))?;
    let mut parts = media_type.to_str().map_err(|_| refusal(JSON))?.split(';').map(str::trim);
    if !parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Err(refusal(JSON));
    }
    let is_utf8 = |charset: &str| ["utf-8", "utf8", "us-ascii"].iter().any(|name| charset.eq_ignore_ascii_case(name));
    for parameter in parts {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("charset")
            && !is_utf8(value.trim().trim_matches('"'))
        {
            return Err(refusal("Content-Type: charset must be utf-8"));
        }
    }
    Ok(())
}

/// What became of a body.
enum Read {
    All(BytesMut),
    /// It is over the limit; this many bytes were taken so far.
    TooLarge(usize),
}

async fn read(payload: &mut Payload) -> Result<BytesMut, HttpError> {
    let too_slow = |_| {
        let message = format!("the body did not arrive within {} seconds", BODY_DEADLINE.as_secs());
        HttpError::refusal(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    };
    match timeout(BODY_DEADLINE, read_within_limit(payload)).await.map_err(too_slow)?? {
        Read::All(body) => Ok(body),
        Read::TooLarge(already_read) => {
            discard(payload, already_read).await;
            let message = format!("the body must have at most {MAX_BODY_BYTES} bytes");
            Err(HttpError::refusal(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
    }
}

async fn read_within_limit(payload: &mut Payload) -> Result<Read, HttpError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| unreadable(&error))?;
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Ok(Read::TooLarge(body.len() + chunk.len()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Read::All(body))
}

/// Takes what the client is still sending, within bounds, so that it gets to reading the answer.
async fn discard(payload: &mut Payload, already_read: usize) {
    let discarding = async {
        let mut discarded = already_read;
        while discarded < MAX_DISCARDED_BYTES
            && let Some(Ok(chunk)) = payload.next().await
        {
            discarded += chunk.len();
        }
    };
    // Past the deadline the answer is sent all the same.
    let _ = timeout(DISCARD_DEADLINE, discarding).await;
}

fn unreadable(error: &PayloadError) -> HttpError {
    let message = match error {
        PayloadError::Incomplete(_) => "the body ends before the length that was announced",
        PayloadError::EncodingCorrupted => "the body's transfer encoding is broken",
        _ => "the body cannot be read",
    };
    HttpError::bad_request("invalid_body", message)
}

pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, HttpError> {
    let text = std::str::from_utf8(body).map_err(|_| HttpError::bad_request("invalid_json", "the body must be JSON in UTF-8"))?;
    // Else a list of values would pass for an object: serde's derive reads structs from both.
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Ok(_) => HttpError::bad_request("invalid_json", "the body must be a JSON object"),
            Err(error) => refused(".", &error),
        });
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| refused(&error.path().to_string(), error.inner()))?;
    deserializer.end().map_err(|error| refused(".", &error))?;
    Ok(value)
}

/// A refusal out of the deserialiser's error; `path` is where it stopped, `.` for the object itself.
fn refused(path: &str, error: &serde_json::Error) -> HttpError {
    let text = error.to_string();
    let message = expectation::without_position(&text);
    let quoted = |prefix: &str| message.strip_prefix(prefix).map(|rest| rest.trim_matches('`'));
    let nested = |field: &str| if path == "." { field.to_owned() } else { format!("{path}.{field}") };
    if let Some(field) = quoted("missing field ") {
        HttpError::bad_request("missing_field", format!("missing field: {}", nested(field)))
    } else if let Some(field) = quoted("duplicate field ") {
        HttpError::bad_request("duplicate_field", format!("duplicate field: {}", nested(field)))
    } else {
        // A number too large for the parser is a wrong value all the same, and not broken JSON.
        let out_of_range = message == "number out of range";
        let is_value = error.is_data() || out_of_range;
        let code = if is_value { "invalid_field" } else { "invalid_json" };
        let message = match message {
            _ if error.is_data() => expectation::must(&expectation::of(message)),
            _ if out_of_range => "must be a number within its range".to_owned(),
            _ => message.to_owned(),
        };
        match path {
            "." | "?" if is_value => HttpError::bad_request(code, message),
            "." | "?" => HttpError::bad_request(code, format!("the body is not valid JSON: {message}")),
            field if is_value => HttpError::bad_request(code, format!("{field}: {message}")),
            field => HttpError::bad_request(code, format!("the body is not valid JSON, at {field}: {message}")),
        }
    }
}
