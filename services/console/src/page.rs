//! What every page has: its frame, its headers, and errors as a page.

use actix_web::{
    Error, HttpRequest, HttpResponse, Responder, ResponseError,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
};
use askama::Template;
use service::HttpError;

/// The frame of a page.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    /// The title.
    pub(crate) title: String,
    /// The entry of the navigation that it belongs to.
    pub(crate) tab: &'static str,
    /// Whether its parts are read again whenever something changes.
    pub(crate) is_live: bool,
}

impl Frame {
    pub(crate) fn live(tab: &'static str, title: impl Into<String>) -> Self {
        Self { title: title.into(), tab, is_live: true }
    }

    pub(crate) fn still(tab: &'static str, title: impl Into<String>) -> Self {
        Self { title: title.into(), tab, is_live: false }
    }
}

/// A template as an answer.
pub(crate) struct Page<T>(pub(crate) T);

impl<T: Template> Responder for Page<T> {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        match self.0.render() {
            Ok(html) => HttpResponse::Ok().content_type("text/html; charset=utf-8").body(html),
            Err(error) => HttpError::fault(error).error_response(),
        }
    }
}

/// Answers that the browser shall go to another page, after a change.
pub(crate) fn see(path: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, path)).finish()
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage {
    frame: Frame,
    text: String,
}

/// Only what the console itself serves: no inline scripts or styles, no other site, and no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// Wraps each route: refuses changes that another site asks for, shows errors as pages, and sets the headers.
pub(crate) async fn framed<B: MessageBody + 'static>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<BoxBody>, Error> {
    let mut response = if request.method() == Method::POST && is_of_another_site(request.headers()) {
        let message = "another site asked for this change, so nothing was done";
        request.error_response(HttpError::refusal(StatusCode::FORBIDDEN, "cross_site", message))
    } else {
        next.call(request).await?.map_into_boxed_body()
    };
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let text = response.response().error().map_or_else(|| status.to_string(), ToString::to_string);
        let frame = Frame::still("", status.canonical_reason().unwrap_or("Error"));
        if let Ok(html) = (ErrorPage { frame, text: operations::text::clean(&text).into_owned() }).render() {
            response = response.map_body(|head, _| {
                head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
                BoxBody::new(html)
            });
        }
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    Ok(response)
}

/// Whether a browser sent the request for a page of another site. Browsers say so in `Sec-Fetch-Site`, older ones in `Origin`. Other clients
/// send neither, and no site can make them send requests.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site")) {
        return !matches!(site, "same-origin" | "none");
    }
    text(header::ORIGIN).is_some_and(|origin| origin.split_once("://").map(|(_, host)| host) != text(header::HOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_taken_from_the_console_itself() {
        let another = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_of_another_site(&pairs.collect())
        };
        assert!(!another(&[("host", "shop:8085"), ("sec-fetch-site", "same-origin"), ("origin", "http://shop:8085")]));
        assert!(!another(&[("host", "shop:8085"), ("origin", "http://shop:8085")]));
        assert!(!another(&[("host", "shop:8085")]));
        for site in ["cross-site", "same-site", ""] {
            assert!(another(&[("host", "shop:8085"), ("sec-fetch-site", site), ("origin", "http://shop:8085")]), "{site}");
        }
        for origin in ["null", "http://shop", "http://shop:8086", "https://evil.example"] {
            assert!(another(&[("host", "shop:8085"), ("origin", origin)]), "{origin}");
        }
    }
}
