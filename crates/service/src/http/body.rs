//! Request bodies: read within bounds, then as JSON.

use std::{borrow::Cow, collections::HashMap, future::Future, pin::Pin, time::Duration};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload, http::header, web::BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{error::Category, value::RawValue};
use serde_path_to_error::Segment;
use tokio::time::timeout;

use super::{error::HttpError, error_code::ErrorCode};

/// The largest body that is accepted, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// A client reads the answer only after it has sent its body, so a body that is too large is read this far and dropped. In bytes.
const MAX_READ_BYTES: usize = 16 * 1024 * 1024;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON object, read into `T`.
///
/// A body that cannot be read is refused with 400 and a message that names the field. Another content type than
/// `application/json` is refused with 415, like a compressed body. A body of more than [`MAX_BODY_BYTES`] is refused with 413.
#[derive(Debug, Clone, Copy)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for JsonBody<T> {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, HttpError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let is_json = request.content_type().eq_ignore_ascii_case("application/json");
        let is_encoded = is_encoded(request);
        let reading = read(request, payload.take());
        Box::pin(async move {
            let body = reading.await?;
            let refused = |message| Err(HttpError::new(ErrorCode::UnsupportedMediaType, message));
            match (is_json, is_encoded) {
                (false, _) => refused("the Content-Type must be application/json"),
                (true, true) => refused("the body must not be compressed: leave the Content-Encoding out"),
                (true, false) => parse(&body).map(Self),
            }
        })
    }
}

/// A body that the route does not use. It is read, so that the connection can be used again, and dropped.
///
/// A body of more than [`MAX_BODY_BYTES`] is refused with 413.
#[derive(Debug, Clone, Copy)]
pub struct IgnoredBody;

impl FromRequest for IgnoredBody {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, HttpError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reading = read(request, payload.take());
        Box::pin(async move { reading.await.map(|_| Self) })
    }
}

/// Tells whether a Content-Encoding names an encoding. `identity` is none.
fn is_encoded(request: &HttpRequest) -> bool {
    let values = request.headers().get_all(header::CONTENT_ENCODING);
    let mut encodings = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    encodings.any(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case(b"identity"))
}

/// The length of a body in bytes. A body in chunks says itself where it ends.
fn length(request: &HttpRequest) -> usize {
    if request.headers().contains_key(header::TRANSFER_ENCODING) {
        return usize::MAX;
    }
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse().ok());
    length.unwrap_or(0)
}

fn read(request: &HttpRequest, mut payload: Payload) -> impl Future<Output = Result<BytesMut, HttpError>> + use<> {
    // With `Upgrade: websocket`, actix-web's payload goes on until the connection ends.
    let end = length(request);
    let reading = async move {
        let (mut body, mut length) = (BytesMut::new(), 0);
        while length < end.min(MAX_READ_BYTES)
            && let Some(chunk) = payload.next().await
        {
            let mut chunk =
                chunk.map_err(|error| HttpError::new(ErrorCode::MalformedRequest, format!("the body cannot be read: {error}")))?;
            chunk.truncate(end - length);
            length += chunk.len();
            if length <= MAX_BODY_BYTES {
                body.extend_from_slice(&chunk);
            }
        }
        if length > MAX_BODY_BYTES {
            let message = format!("the body must have at most {MAX_BODY_BYTES} bytes");
            return Err(HttpError::new(ErrorCode::BodyTooLarge, message));
        }
        Ok(body)
    };
    async {
        timeout(BODY_TIMEOUT, reading).await.unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {} seconds", BODY_TIMEOUT.as_secs());
            Err(HttpError::new(ErrorCode::RequestTimeout, message))
        })
    }
}

/// Reads a JSON object.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, HttpError> {
    // serde reads a struct from a list of its fields, too.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(HttpError::new(ErrorCode::InvalidJson, "the body must be a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| unreadable(&error.path().to_string(), given(body, error.path()), error.inner()))?;
    deserializer.end().map_err(|error| unreadable(".", None, &error))?;
    Ok(value)
}

/// The JSON text at a path of a body, shortened.
fn given(body: &[u8], path: &serde_path_to_error::Path) -> Option<String> {
    const LONGEST: usize = 40;
    let mut value: &RawValue = serde_json::from_slice(body).ok()?;
    for segment in path {
        value = match segment {
            Segment::Map { key } => serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(value.get()).ok()?.get(key.as_str())?,
            Segment::Seq { index } => serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(*index)?,
            Segment::Enum { .. } | Segment::Unknown => return None,
        };
    }
    let text = value.get();
    Some(if text.chars().count() <= LONGEST { text.to_owned() } else { text.chars().take(LONGEST).chain(['…']).collect() })
}

/// Answers 400 with the path of the value that cannot be read, the value, and what is allowed.
fn unreadable(path: &str, given: Option<String>, error: &serde_json::Error) -> HttpError {
    let message = error.to_string();
    let code = match error.classify() {
        Category::Data if message.starts_with("missing field") => ErrorCode::MissingField,
        Category::Data if message.starts_with("duplicate field") => ErrorCode::DuplicateField,
        Category::Data => ErrorCode::InvalidField,
        _ if message.starts_with("number out of range") => ErrorCode::InvalidField,
        _ => ErrorCode::InvalidJson,
    };
    // The path says where it is.
    let reason = message.rsplit_once(" at line ").map_or(&*message, |(reason, _)| reason);
    let message = match (code, given) {
        (ErrorCode::InvalidField, Some(given)) => {
            // serde quotes the whole value before it.
            let allowed =
                reason.rsplit_once(", expected ").map_or_else(|| reason.to_owned(), |(_, expected)| format!("must be {expected}"));
            format!("{allowed}, but it is {given}")
        }
        _ => message,
    };
    HttpError::new(code, if matches!(path, "." | "?") { message } else { format!("{path}: {message}") })
}
