//! Values of forms and queries. A browser sends an empty field as empty text.

use std::{fmt::Display, str::FromStr};

use actix_web::HttpRequest;
use service::{ErrorCode, HttpError};
use url::form_urlencoded;

/// The query of a request.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(request: &HttpRequest) -> Self {
        Self(form_urlencoded::parse(request.query_string().as_bytes()).into_owned().collect())
    }

    /// The value of a parameter, without spaces around it; empty if it is missing.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim()).unwrap_or_default()
    }

    /// Every value of a parameter that is given several times.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    /// The value of a parameter, or `None` if it is missing or empty.
    ///
    /// # Errors
    /// 400 if it cannot be read.
    pub(crate) fn read<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, HttpError> {
        self.read_with(name, str::parse)
    }

    /// As [`read`](Self::read), with a function that reads the value.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn read_with<T, E: Display>(&self, name: &str, read: impl Fn(&str) -> Result<T, E>) -> Result<Option<T>, HttpError> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        read(text).map(Some).map_err(|error| HttpError::new(ErrorCode::InvalidQuery, format!("{name} in the query: {error}")))
    }

    /// The same query with another value of a parameter.
    pub(crate) fn with(&self, name: &str, value: impl Display) -> String {
        let others = self.0.iter().filter(|(key, value)| key != name && !value.is_empty());
        form_urlencoded::Serializer::new(String::new()).extend_pairs(others).append_pair(name, &value.to_string()).finish()
    }
}
