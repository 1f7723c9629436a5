//! Pages of a list.

use std::future::{Ready, ready};

use actix_web::{
    FromRequest, HttpRequest, HttpResponse,
    dev::Payload,
    http::{Uri, header},
};
use event_store::Position;
use serde::Serialize;
use url::form_urlencoded;
use utoipa::IntoParams;

use super::{error::HttpError, query::number};

/// The entries of a page unless the query says otherwise.
const DEFAULT_LIMIT: i64 = 1_000;
/// The most entries of a page.
const MAX_LIMIT: i64 = 10_000;

/// The query parameters `limit` and `after`: one page of a list that is ordered by positions of the log.
///
/// A value that cannot be read is refused with 400 `invalid_query`.
#[derive(Debug, Clone, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// The most entries of the answer.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 10_000, default = 1_000)]
    limit: i64,
    /// Answers the entries that were added after this position of the log. The header `Link` of an answer names the next page.
    #[param(value_type = Option<i64>, minimum = 0)]
    after: Position,
    #[param(ignore)]
    uri: Uri,
}

impl Page {
    /// Returns the position after which the page begins.
    #[must_use]
    pub fn after(&self) -> Position {
        self.after
    }

    /// Returns the number of entries to read: one more than the page has, which tells whether there is a next page.
    #[must_use]
    pub fn read(&self) -> i64 {
        self.limit + 1
    }

    /// Answers the page: the entries that were read, each with its position. If there are more, the header `Link` names the next page.
    #[must_use]
    pub fn answer<T: Serialize>(&self, read: Vec<(Position, T)>) -> HttpResponse {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let last = read.get(limit.saturating_sub(1)).map(|(position, _)| *position);
        let next = last.filter(|_| read.len() > limit).map(|last| self.next(last));
        let entries: Vec<T> = read.into_iter().take(limit).map(|(_, entry)| entry).collect();
        let mut response = HttpResponse::Ok();
        if let Some(next) = next {
            response.insert_header((header::LINK, format!("<{next}>; rel=\"next\"")));
        }
        response.json(entries)
    }

    /// The same path and query, after another position.
    fn next(&self, after: Position) -> String {
        let others = form_urlencoded::parse(self.uri.query().unwrap_or_default().as_bytes()).filter(|(key, _)| key != "after");
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(others).append_pair("after", &after.to_string());
        format!("{}?{}", self.uri.path(), query.finish())
    }
}

impl FromRequest for Page {
    type Error = HttpError;
    type Future = Ready<Result<Self, HttpError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let read = || {
            let limit = number(request, "limit", 1, MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT);
            let after = number(request, "after", 0, i64::MAX)?.map(Position).unwrap_or_default();
            Ok(Self { limit, after, uri: request.uri().clone() })
        };
        ready(read())
    }
}
