//! Bodies that are too large or broken: a client that is still sending can read the answer.

use std::time::{Duration, Instant};

use actix_web::{Responder, post};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Running, read_answer, serve, service, settings};
use crate::{IgnoredBody, JsonBody, MAX_BODY_BYTES};

#[utoipa::path(post, path = "/things")]
#[post("/things")]
async fn add(_: JsonBody<serde_json::Value>) -> impl Responder {
    "added"
}

#[utoipa::path(post, path = "/clear")]
#[post("/clear")]
async fn clear(_: IgnoredBody) -> impl Responder {
    "cleared"
}

fn start() -> Running {
    serve(service(settings(&[])), |app| {
        app.service(add).service(clear);
    })
}

const MEBIBYTE: usize = 1024 * 1024;

/// Sends a head and a body of `length` bytes before it reads.
async fn send_all(running: &Running, path: &str, length: usize) -> TcpStream {
    let mut stream = running.connect().await;
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; length]).await.expect("the server takes it");
    stream
}

#[tokio::test]
async fn body_over_the_limit_is_413_and_the_connection_stays() {
    let running = start();
    for length in [MAX_BODY_BYTES + 1, 10 * MEBIBYTE] {
        for path in ["/things", "/clear"] {
            let mut stream = send_all(&running, path, length).await;
            let (status, code, message) = read_answer(&mut stream).await.error();
            assert_eq!((status, code.as_str()), (413, "body_too_large"), "{message}");
            // The body was read to its end, so the connection can be used again.
            stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            assert_eq!(read_answer(&mut stream).await.body, "Ok");
        }
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn endless_chunked_body_is_413() {
    let running = start();
    let (mut reader, mut writer) = running.connect().await.into_split();
    let sending = tokio::spawn(async move {
        writer
            .write_all(b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await?;
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        loop {
            writer.write_all(&chunk).await?;
        }
        #[expect(unreachable_code, reason = "names the type of the error")]
        std::io::Result::Ok(())
    });
    let mut start = [0; 12];
    reader.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    sending.abort();
    running.stop().await.unwrap();
}

#[tokio::test]
async fn unread_body_does_not_hide_the_answer() {
    let running = start();
    let mut stream = send_all(&running, "/nothing", 2 * MEBIBYTE).await;
    assert_eq!(read_answer(&mut stream).await.error().0, 404);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn body_of_the_largest_size_is_read() {
    let running = start();
    let body = format!(r#"{{"a":"{}"}}"#, "a".repeat(MAX_BODY_BYTES - 8));
    assert_eq!(body.len(), MAX_BODY_BYTES);
    assert_eq!(running.post("/things", "application/json", body).await.body, "added");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn deep_nesting_is_refused() {
    let running = start();
    let answer = running.post("/things", "application/json", format!(r#"{{"a":{}"#, "[".repeat(60_000))).await;
    let message = answer.error().2;
    assert!(message.contains("recursion limit exceeded"), "{message}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn upgrade_is_ignored_and_the_body_ends_at_its_length() {
    let running = start();
    let next = "GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n";
    for upgrade in ["websocket", "WebSocket", "websocket, h2c", "h2c", ""] {
        for (path, length, body, answered) in
            [("/things", "2", "{}", "added"), ("/clear", "2", "{}", "cleared"), ("/clear", "0", "", "cleared")]
        {
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n");
            let head = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
            let mut stream = running.connect().await;
            let start = Instant::now();
            stream.write_all(format!("{head}{body}{next}").as_bytes()).await.unwrap();
            let answer = read_answer(&mut stream).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, answered), "{upgrade}: {path} {body}");
            assert!(start.elapsed() < Duration::from_secs(10), "{upgrade}: {path} {body} took {:?}", start.elapsed());
            // actix-web took the next request for a part of the body if it says so; otherwise the next request is answered.
            if answer.header("connection") != Some("close") {
                assert_eq!(read_answer(&mut stream).await.body, "Ok", "{upgrade}: {path} {body}");
            }
        }
    }
    let answer = running.exchange("GET /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("Ok", Some("close")));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn compressed_body_is_415_and_identity_is_no_compression() {
    let running = start();
    let ask = async |encodings: &str| {
        let head =
            format!("POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{encodings}Content-Length: 2\r\n\r\n{{}}");
        running.exchange(head).await
    };
    for none in ["identity", "Identity", "IDENTITY", "", " ", "identity, identity", ",", "identity\r\nContent-Encoding: Identity"] {
        assert_eq!(ask(&format!("Content-Encoding: {none}\r\n")).await.body, "added", "{none:?}");
    }
    for some in ["gzip", "GZIP", "br", "identity, gzip", "identity\r\nContent-Encoding: gzip", "nonsense"] {
        let (status, code, message) = ask(&format!("Content-Encoding: {some}\r\n")).await.error();
        assert_eq!((status, code.as_str()), (415, "unsupported_media_type"), "{some:?}: {message}");
        assert!(message.contains("Content-Encoding"), "{message}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn broken_body_is_malformed_request() {
    let running = start();
    let head = "POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let broken = running.exchange(format!("{head}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")).await;
    assert_eq!(broken.error().0, 400);
    let mut stream = running.connect().await;
    stream.write_all(format!("{head}Content-Length: 10\r\n\r\n{{}}").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_answer(&mut stream).await.error().1, "malformed_request");
    running.stop().await.unwrap();
}
