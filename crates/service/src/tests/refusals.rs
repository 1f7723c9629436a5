//! The answers to bad requests.

use std::{fmt, str::FromStr};

use actix_web::{Responder, get, http::StatusCode, post, web};
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Running, serve, service, settings};
use crate::{At, ErrorCode, HttpError, IgnoredBody, JsonBody, MinPosition, PathValue, ensure_path_matches_body};

/// A number from 0 to 99, by a rule of the domain.
#[derive(Debug, PartialEq)]
struct Small(u8);

impl FromStr for Small {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().filter(|number| *number < 100).map(Self).ok_or("must be a number from 0 to 99")
    }
}

impl fmt::Display for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Small {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A number that is read from its digits, like exact decimals.
#[derive(Debug)]
struct Exact(String);

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let digits = raw.get().trim_matches('"');
        if digits.chars().all(|c| c.is_ascii_digit() || c == '.') && !digits.is_empty() {
            Ok(Self(digits.to_owned()))
        } else {
            Err(de::Error::custom("a decimal from 0 to 9.99"))
        }
    }
}

#[derive(Debug, Deserialize)]
struct Body {
    number: Small,
    text: String,
    count: u32,
    #[serde(default)]
    price: Option<Exact>,
    #[serde(default)]
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    quantity: i64,
}

#[utoipa::path(post, path = "/things/{number}")]
#[post("/things/{number}")]
async fn add(PathValue(number): PathValue<Small>, body: JsonBody<Body>) -> Result<impl Responder, HttpError> {
    let JsonBody(body) = body;
    ensure_path_matches_body("number", &number, &body.number)?;
    let quantities: i64 = body.lines.iter().map(|line| line.quantity).sum();
    let price = body.price.map(|price| price.0);
    Ok(web::Json(serde_json::json!({ "text": body.text, "count": body.count, "sum": quantities, "price": price })))
}

#[utoipa::path(post, path = "/clear/{number}")]
#[post("/clear/{number}")]
async fn clear(_: IgnoredBody) -> impl Responder {
    "cleared"
}

#[utoipa::path(get, path = "/{number}/text")]
#[get("/{number}/text")]
async fn show(PathValue(number): PathValue<Small>) -> impl Responder {
    number.to_string()
}

#[utoipa::path(get, path = "/{number}/query", params(At, MinPosition))]
#[get("/{number}/query")]
async fn ask(PathValue(number): PathValue<Small>, at: At, min: MinPosition) -> impl Responder {
    format!("{number} {at:?} {min:?}")
}

#[utoipa::path(get, path = "/fail/{how}")]
#[get("/fail/{how}")]
async fn fail(how: web::Path<String>) -> Result<String, HttpError> {
    Err(match how.as_str() {
        "fault" => HttpError::fault(anyhow::anyhow!("the secret cause")),
        "away" => HttpError::new(ErrorCode::Unavailable, "the log is away"),
        _ => HttpError::refusal(StatusCode::CONFLICT, "full", "the cart is full"),
    })
}

fn start() -> Running {
    serve(service(settings(&[])), |app| {
        app.service(add).service(clear).service(show).service(ask).service(fail);
    })
}

const JSON: &str = "application/json";

#[tokio::test]
async fn unreadable_body_names_the_field() {
    let running = start();
    for (body, code, message) in [
        (r#"{"text":"a","count":1}"#, "missing_field", "missing field `number` at line 1 column 22"),
        (r#"{"number":"1","text":"a","count":1,"lines":[{}]}"#, "missing_field", "lines[0]: missing field `quantity` at line 1 column 46"),
        (r#"{"number":"1","number":"2"}"#, "duplicate_field", "duplicate field `number` at line 1 column 22"),
        (r#"{"number":"100","text":"a","count":1}"#, "invalid_field", r#"number: must be a number from 0 to 99, but it is "100""#),
        (r#"{"number":"1","text":"a","count":-1}"#, "invalid_field", "count: must be u32, but it is -1"),
        (r#"{"number":"1","text":7}"#, "invalid_field", "text: must be a string, but it is 7"),
        (r#"{"number":"1","text":"a","count":1e999}"#, "invalid_field", "count: number out of range, but it is 1e999"),
        (
            r#"{"number":"1","text":"a","count":1,"lines":[{"quantity":1},{"quantity":[2, 3]}]}"#,
            "invalid_field",
            "lines[1].quantity: must be i64, but it is [2, 3]",
        ),
        (
            r#"{"number":"1","text":"a","count":"ääääääääääääääääääääääääääääääääääääääääääääää, expected"}"#,
            "invalid_field",
            "count: must be u32, but it is \"äääääääääääääääääääääääääääääääääääääää…",
        ),
        (r#"["1","a",1]"#, "invalid_json", "the body must be a JSON object"),
        ("", "invalid_json", "EOF while parsing a value at line 1 column 0"),
        ("{", "invalid_json", "EOF while parsing an object at line 1 column 1"),
        (r#"{"number":"1","text":"a","count":1} x"#, "invalid_json", "trailing characters at line 1 column 37"),
    ] {
        let answer = running.post("/things/1", JSON, body).await;
        assert_eq!(answer.error(), (400, code.to_owned(), message.to_owned()), "{body:.60}");
    }
    let not_utf8 = running.post("/things/1", JSON, b"{\"text\":\"\xff\"}").await;
    assert_eq!(not_utf8.error().1, "invalid_json");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn good_body_is_read_and_unknown_fields_are_ignored() {
    let running = start();
    let body = r#" {"number":"1","text":"ä\u0000","count":2,"price":1.10,"lines":[{"quantity":3}],"more":[{}]} "#;
    for content_type in ["application/json", "Application/JSON; charset=\"UTF-8\""] {
        let answer = running.post("/things/1", content_type, body).await;
        assert_eq!(answer.json(), serde_json::json!({"text":"ä\0","count":2,"sum":3,"price":"1.10"}));
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn unreadable_or_differing_path_is_refused() {
    let running = start();
    let body = r#"{"number":"1","text":"a","count":1}"#;
    let disagreeing = running.post("/things/2", JSON, body).await.error();
    assert_eq!(disagreeing.1, "path_body_mismatch");
    assert_eq!(disagreeing.2, "number is 2 in the path and 1 in the body; they must be equal");
    for path in ["/x/text", "/%ff/text", "/%/text", "/%00/text", "/%zz%fe/text", "/%25ff/text"] {
        let (status, code, message) = running.get(path).await.error();
        assert_eq!((status, code.as_str()), (400, "invalid_path"), "{path}: {message}");
    }
    assert_eq!(running.get("/x/text").await.error().2, "number in the path: must be a number from 0 to 99");
    // The error of the path comes first, also if the body cannot be read.
    for body in [r#"{"number":"100","text":"a","count":1}"#, "{"] {
        let (_, code, message) = running.post("/things/100", JSON, body).await.error();
        assert_eq!((code.as_str(), message.as_str()), ("invalid_path", "number in the path: must be a number from 0 to 99"));
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn unreadable_query_names_the_parameter() {
    let running = start();
    let whole = |most: u64| format!("must be a whole number from 0 to {most}");
    let (position, seconds) = (whole(i64::MAX.unsigned_abs()), whole(30));
    for (query, parameter, message) in [
        ("min_position=-1", "min_position", &position),
        ("min_position=x", "min_position", &position),
        ("min_position=", "min_position", &position),
        ("min_position=1.0", "min_position", &position),
        ("min_position=%2B1", "min_position", &position),
        ("min_position=9223372036854775808", "min_position", &position),
        ("min_position=%ff", "min_position", &position),
        ("at=-1&min_position=1", "at", &position),
        ("at=null", "at", &position),
        ("timeout=31", "timeout", &seconds),
        ("timeout=0.5", "timeout", &seconds),
        ("timeout=5s", "timeout", &seconds),
        ("timeout=99999999999999999999", "timeout", &seconds),
        ("timeout=1&timeout=2", "timeout", &"must be given once".to_owned()),
    ] {
        let answer = running.get(&format!("/1/query?{query}")).await.error();
        assert_eq!(answer, (400, "invalid_query".to_owned(), format!("{parameter} in the query: {message}")), "{query}");
    }
    assert_eq!(running.get("/x/query?at=x").await.error().1, "invalid_path");
    for (query, read) in [
        ("", "1 At { at: None } MinPosition { min_position: Position(0), timeout: 5s, .. }"),
        ("?", "1 At { at: None } MinPosition { min_position: Position(0), timeout: 5s, .. }"),
        ("?other=x&other=y&timeout=0", "1 At { at: None } MinPosition { min_position: Position(0), timeout: 0ns, .. }"),
        (
            "?at=0&timeout=30&min_position=9223372036854775807",
            "1 At { at: Some(Position(0)) } MinPosition { min_position: Position(9223372036854775807), timeout: 30s, .. }",
        ),
    ] {
        assert_eq!(running.get(&format!("/1/query{query}")).await.body, read, "{query}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn other_content_type_is_415() {
    let running = start();
    for content_type in ["text/plain", "application/jsonp", "", "\u{e9}"] {
        let answer = running.post("/things/1", content_type, "{}").await;
        let (status, code, message) = answer.error();
        assert_eq!((status, code.as_str()), (415, "unsupported_media_type"), "{content_type}: {message}");
    }
    let missing = running.exchange("POST /things/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await;
    assert_eq!(missing.error().0, 415);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn ignored_body_may_be_anything() {
    let running = start();
    for body in ["", "{", "\u{0}"] {
        assert_eq!(running.post("/clear/1", "text/plain", body).await.body, "cleared");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn unknown_route_is_404_and_wrong_method_405() {
    let running = start();
    for path in ["/", "/nothing", "/things", "/things/1/2", "/%ff", "//", "/../etc"] {
        let (status, code, _) = running.get(path).await.error();
        assert_eq!((status, code.as_str()), (404, "unknown_route"), "{path}");
    }
    for (method, path, allowed) in
        [("GET", "/things/1", "POST"), ("DELETE", "/1/text", "GET"), ("BREW", "/ready", "GET"), ("POST", "/metrics", "GET")]
    {
        let answer = running.exchange(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(answer.error(), (405, "method_not_allowed".to_owned(), format!("this route takes {allowed}")));
        assert_eq!(answer.header("allow"), Some(allowed));
    }
    for path in ["/things/1/", "/healthcheck/"] {
        assert_eq!(running.get(path).await.error().0, 404, "a slash at the end is another route: {path}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let running = start();
    for (path, status, length) in [("/healthcheck", "200 OK", 2), ("/ready", "200 OK", 14), ("/7/text", "200 OK", 1)] {
        let mut stream = running.connect().await;
        let requests = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\nGET /7/text HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        let (head, next) = answers.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answers}");
        assert!(head.contains(&format!("content-length: {length}\r\n")), "{answers}");
        assert!(next.starts_with("HTTP/1.1 200 OK\r\n") && next.ends_with("\r\n\r\n7"), "{answers}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn faults_hide_their_causes_and_503_has_retry_after() {
    let running = start();
    let fault = running.get("/fail/fault").await;
    assert_eq!(fault.error().0, 500);
    assert!(!fault.body.contains("secret"), "{fault:?}");
    let away = running.get("/fail/away").await;
    assert_eq!(away.error(), (503, "unavailable".to_owned(), "the log is away".to_owned()));
    assert_eq!(away.header("retry-after"), Some("1"));
    assert_eq!(running.get("/fail/full").await.error(), (409, "full".to_owned(), "the cart is full".to_owned()));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn cors_is_off_unless_settings_name_origins() {
    let preflight = "OPTIONS /things/1 HTTP/1.1\r\nHost: x\r\nOrigin: https://shop.example\r\n\
                     Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n\r\n";
    let off = start();
    let answer = off.exchange(preflight).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, None));
    off.stop().await.unwrap();

    let on = service(settings(&[("CARTLOG_CORS_ORIGINS", "https://other.example, https://shop.example")]));
    let on = serve(on, |app| {
        app.service(add).service(fail);
    });
    let answer = on.exchange(preflight).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("https://shop.example")));
    let refused = on.exchange("GET /fail/full HTTP/1.1\r\nHost: x\r\nOrigin: https://shop.example\r\n\r\n").await;
    assert_eq!((refused.error().0, refused.header("access-control-allow-origin")), (409, Some("https://shop.example")));
    let foreign = on.exchange(preflight.replace("https://shop", "https://evil")).await;
    assert_eq!(foreign.header("access-control-allow-origin"), None);
    on.stop().await.unwrap();
}

#[utoipa::path(get, path = "/correlation")]
#[get("/correlation")]
async fn correlation() -> String {
    event_store::Metadata::current().correlation_id.unwrap_or_default()
}

#[tokio::test]
async fn answers_carry_the_correlation_id() {
    let running = serve(service(settings(&[])), |app| {
        app.service(correlation);
    });
    let send = async |headers: &str| running.exchange(format!("GET /correlation HTTP/1.1\r\nHost: x\r\n{headers}\r\n")).await;
    for (headers, id) in [
        ("X-Correlation-Id: order-7\r\n", "order-7"),
        ("Baggage: a=b, correlation-id=order-8;secret, c=d\r\n", "order-8"),
        ("X-Correlation-Id: order-7\r\nBaggage: correlation-id=order-8\r\n", "order-7"),
    ] {
        let answer = send(headers).await;
        assert_eq!((answer.body.as_str(), answer.header("x-correlation-id")), (id, Some(id)), "{headers}");
    }
    for headers in ["", "Baggage: correlation-id=two words\r\n", "Baggage: correlation-id\r\n"] {
        let (one, two) = (send(headers).await, send(headers).await);
        assert!(uuid::Uuid::parse_str(&one.body).is_ok() && one.body != two.body, "{headers}: {one:?}");
        assert_eq!(one.header("x-correlation-id"), Some(one.body.as_str()));
    }
    for wrong in ["two words", "", "\u{e9}", &*"x".repeat(129)] {
        let refused = send(&format!("X-Correlation-Id: {wrong}\r\n")).await.error();
        assert_eq!((refused.0, refused.1.as_str()), (400, "malformed_request"), "{wrong}");
    }
    let unknown = running.get("/nowhere").await;
    assert!(unknown.status == 404 && unknown.header("x-correlation-id").is_some(), "{unknown:?}");
    running.stop().await.unwrap();
}
