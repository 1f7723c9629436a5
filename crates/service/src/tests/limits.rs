//! Bodies that are too large or broken: a client that is still sending can read the answer.

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
