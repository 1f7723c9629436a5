//! Bytes from outside, made up by proptest: whatever arrives is answered or refused in words, and nothing panics.

use std::{sync::LazyLock, time::Duration};

use actix_web::{Responder, post, web};
use proptest::{collection::vec, prelude::*, sample::select, strategy::Union};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    time::timeout,
};

use super::{DEFAULTS, Running, serve, service, settings};
use crate::{
    IgnoredBody, JsonBody, MinPosition, PathValue,
    settings::{Common, Kafka, Layers, environment_variable},
};

#[derive(Debug, Deserialize)]
struct Body {
    #[allow(dead_code, reason = "only read")]
    name: String,
    #[allow(dead_code, reason = "only read")]
    #[serde(default)]
    count: u32,
    #[serde(default)]
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[allow(dead_code, reason = "only read")]
    quantity: i64,
}

#[utoipa::path(post, path = "/things/{number}")]
#[post("/things/{number}")]
async fn add(_: PathValue<u8>, _: MinPosition, JsonBody(body): JsonBody<Body>) -> impl Responder {
    web::Json(body.lines.len())
}

#[utoipa::path(post, path = "/clear")]
#[post("/clear")]
async fn clear(_: IgnoredBody) -> impl Responder {
    "cleared"
}

/// A server that every case asks, on a runtime that outlives the cases.
static SERVER: LazyLock<(Runtime, Running)> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let running = runtime.block_on(async {
        serve(service(settings(&[])), |app| {
            app.service(add).service(clear);
        })
    });
    (runtime, running)
});

fn one_of<T: Clone + std::fmt::Debug + 'static>(
    common: &'static [T],
    other: impl Strategy<Value = T> + 'static,
) -> Union<BoxedStrategy<T>> {
    Union::new_weighted(vec![(4, select(common).boxed()), (1, other.boxed())])
}

fn text(pattern: &'static str) -> impl Strategy<Value = &'static str> {
    // Each case is short, and the process ends with the tests.
    pattern.prop_map(|text| &*text.leak())
}

const NAMES: &[&str] = &[
    "Content-Type",
    "content-length",
    "Transfer-Encoding",
    "Content-Encoding",
    "Connection",
    "Upgrade",
    "Expect",
    "Host",
    "Origin",
    "traceparent",
    "tracestate",
    "Accept-Encoding",
    "Range",
    "Cookie",
    "x-correlation-id",
    "baggage",
    "Accept",
    "Last-Event-ID",
];
const VALUES: &[&str] = &[
    "",
    " ",
    "application/json",
    "APPLICATION/JSON; charset=utf-8",
    "application/json, text/plain",
    "0",
    "2",
    "17",
    "-1",
    "+2",
    "2, 2",
    "99999999999999999999",
    "chunked",
    "Chunked",
    "gzip, chunked",
    "identity",
    "Identity, gzip",
    "close",
    "keep-alive, Upgrade",
    "websocket",
    "h2c",
    "100-continue",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-00000000000000000000000000000000-0000000000000000-00",
    "\u{e9}, \"\\",
    "text/event-stream;q=0, */*",
    "9223372036854775807",
    "correlation-id=a;b, correlation-id=%",
    "=,;=,correlation-id",
];
const BODIES: &[&str] = &[
    "",
    "{}",
    "[]",
    "null",
    r#"{"name":"a"}"#,
    r#"{"name":"a","lines":[{"quantity":1}]}"#,
    r#"{"name":"a","count":1e999}"#,
    r#"{"name":"\ud800"}"#,
    r#"{"name":"a","name":"b"}"#,
    r#"{"name":{"name":{"name":{}}}}"#,
    "2\r\n{}\r\n0\r\n\r\n",
    "ffffffffffffffffff\r\n{}",
    "0\r\nX: y\r\n\r\n",
];

/// A request, more or less as HTTP has them.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = one_of(&["POST", "GET", "HEAD", "OPTIONS", "CONNECT", "TRACE"], text("[!-~]{1,12}"));
    let path = one_of(
        &[
            "/things/1",
            "/things/%ff",
            "/things/1?min_position=1&timeout=0",
            "/things/1?timeout=%",
            "/clear",
            "/ready",
            "/metrics",
            "*",
            "/",
        ],
        text("/[ -~]{0,40}"),
    );
    let version = one_of(&["HTTP/1.1", "HTTP/1.0", "HTTP/2.0"], text("[A-Z/0-9.]{0,9}"));
    let header = (one_of(NAMES, text("[!-9;-~]{1,20}")), one_of(VALUES, text("[ -~\u{80}-\u{ff}]{0,40}")));
    let body = prop_oneof![4 => select(BODIES).prop_map(|body| body.as_bytes().to_vec()), 1 => vec(any::<u8>(), 0..200)];
    (method, path, version, vec(header, 0..8), any::<bool>(), body).prop_map(|(method, path, version, headers, is_framed, body)| {
        let mut head = format!("{method} {path} {version}\r\nHost: x\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if is_framed {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        [head.as_bytes(), b"\r\n", &body].concat()
    })
}

/// Sends bytes, says that no more will come, and reads until the server closes.
async fn exchange(bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(SERVER.1.address).await.unwrap();
    // The server may have answered and closed already.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = vec![];
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("the server closes");
    answer
}

fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_request_is_answered_or_refused(request in request()) {
        let answer = SERVER.0.block_on(exchange(&request));
        for status in statuses(&answer) {
            prop_assert!(status < 500, "{}\nis answered\n{}", String::from_utf8_lossy(&request), String::from_utf8_lossy(&answer));
        }
        let alive = SERVER.0.block_on(exchange(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        prop_assert_eq!(statuses(&alive), [200]);
    }

    #[test]
    fn any_bytes_are_answered_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        let answer = SERVER.0.block_on(exchange(&bytes));
        for status in statuses(&answer) {
            prop_assert!(status < 500, "{bytes:?} is answered {status}");
        }
    }

    #[test]
    fn any_body_is_read_or_refused_in_few_words(body in body()) {
        if let Err(error) = crate::http::body::parse::<Body>(&body) {
            let text = error.to_string();
            prop_assert!(text.len() < 400, "{} bytes: {text}", text.len());
        }
    }

    #[test]
    fn any_setting_is_read_or_refused_without_its_secret(
        key in select(KEYS),
        value in one_of(SETTINGS, text("[ -~\u{80}-\u{ff}]{0,60}")),
        secret in "[a-z]{12}",
    ) {
        let value = value.replace("SECRET", &secret);
        let layers = Layers::load(&[DEFAULTS, include_str!("../kafka.toml")], None, |variable| {
            (variable == environment_variable(key)).then(|| value.clone().into())
        });
        let layers = layers.unwrap();
        let outcomes = [layers.read::<Common>().map(|read| format!("{read:?}")), layers.read::<Kafka>().map(|read| format!("{read:?}"))];
        for outcome in outcomes {
            let shown = outcome.unwrap_or_else(|error| error.to_string());
            let is_shown = shown.contains(&secret) && !SHOWN.contains(&key);
            prop_assert!(!is_shown, "{key}={value}: {shown}");
        }
    }
}

const KEYS: &[&str] = &[
    "database_url",
    "database_password_file",
    "database_max_connections",
    "bind_address",
    "log_filter",
    "log_format",
    "cors_origins",
    "otel_exporter_otlp_endpoint",
    "http_workers",
    "kafka_bootstrap_servers",
    "kafka_security_protocol",
    "kafka_sasl_password",
    "kafka_sasl_username",
    "kafka_ssl_key_location",
];
/// Keys whose values are no secrets.
const SHOWN: &[&str] = &[
    "database_password_file",
    "database_max_connections",
    "bind_address",
    "log_filter",
    "log_format",
    "cors_origins",
    "http_workers",
    "kafka_bootstrap_servers",
    "kafka_security_protocol",
    "kafka_sasl_username",
    "kafka_ssl_key_location",
];
const SETTINGS: &[&str] = &[
    "postgres://a:SECRET@host/db",
    "postgres://a:SECRET@host:port/db",
    "postgres://host/db?password=SECRET",
    "postgres://host/db?sslpassword=SECRET",
    "postgres://host/db?sslmode=nonsense",
    "postgres://host/db?sslmode=require&passwd=SECRET",
    "http://host:4318?api_key=SECRET",
    "postgres://a:SECRET@/db",
    "postgres://a:1/SECRET@host/db",
    "postgres://a:1#SECRET@host/db",
    "postgres://a:1?SECRET@host/db",
    "postgres://a:1\\SECRET@host/db",
    "http://a:1/SECRET@host:4318",
    "http://a:1#SECRET@host",
    "a:SECRET@host",
    "//a:SECRET@host/db",
    "postgres://a:SEC RET@host/db",
    "http://a:SECRET@host:4318",
    "http://a:SECRET@host:99999",
    "SECRET",
    "sasl_ssl",
    "SECRET,SECRET",
    "1_000",
    "-0",
    "99999999999999999999",
    "0x10",
    "\u{0}",
];

/// A body: a good one with a part replaced, or any bytes.
fn body() -> impl Strategy<Value = Vec<u8>> {
    const GOOD: &str = r#"{"name":"a cup","count":3,"lines":[{"quantity":1},{"quantity":-2}]}"#;
    let long = (vec(any::<char>(), 0..3_000), select(&["name", "count", "lines", "quantity", "other"][..])).prop_map(|(text, field)| {
        let text = serde_json::to_string(&text.into_iter().collect::<String>()).unwrap_or_default();
        format!(r#"{{"name":"a","{field}":{text}}}"#).into_bytes()
    });
    let replaced = (0..GOOD.len(), 0..10_usize, vec(any::<u8>(), 0..10)).prop_map(|(at, length, bytes)| {
        let end = (at + length).min(GOOD.len());
        [GOOD.get(..at).unwrap_or_default().as_bytes(), &bytes, GOOD.get(end..).unwrap_or_default().as_bytes()].concat()
    });
    prop_oneof![replaced, long, vec(any::<u8>(), 0..100)]
}
