//! Requests without end: each is answered, and the answer can be read by a client that is still sending.

use actix_web::{Responder, post};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use utoipa::OpenApi;

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

#[derive(OpenApi)]
#[openapi(paths(add, clear))]
struct Api;

fn start() -> Running {
    serve::<Api>(service(settings(&[])), |app| {
        app.service(add).service(clear);
    })
}

const MEBIBYTE: usize = 1024 * 1024;

/// Sends a head and then a body of that many bytes, all of it before it reads.
async fn send_all(running: &Running, path: &str, content_type: &str, length: usize) -> TcpStream {
    let mut stream = running.connect().await;
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; length]).await.expect("the server takes it");
    stream
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_for_a_client_that_reads_when_it_has_sent_all() {
    let running = start();
    for length in [MAX_BODY_BYTES + 1, 10 * MEBIBYTE] {
        for path in ["/things", "/clear"] {
            let mut stream = send_all(&running, path, "application/json", length).await;
            let (status, code, message) = read_answer(&mut stream).await.error();
            assert_eq!((status, code.as_str()), (413, "body_too_large"), "{message}");
            // The body was taken to its end, so the connection serves on.
            stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            assert_eq!(read_answer(&mut stream).await.body, "Ok");
        }
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_chunked_body_without_end_is_413_while_the_client_goes_on_sending() {
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
async fn a_large_body_nobody_reads_does_not_hide_the_answer() {
    let running = start();
    for (path, content_type, status) in [("/nothing", "application/json", 404), ("/things", "text/plain", 415)] {
        let mut stream = send_all(&running, path, content_type, 2 * MEBIBYTE).await;
        assert_eq!(read_answer(&mut stream).await.error().0, status);
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_body_of_the_largest_size_is_read() {
    let running = start();
    let body = format!(r#"{{"a":"{}"}}"#, "a".repeat(MAX_BODY_BYTES - 8));
    assert_eq!(body.len(), MAX_BODY_BYTES);
    assert_eq!(running.post("/things", "application/json", body).await.body, "added");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn nesting_without_end_is_refused() {
    let running = start();
    let answer = running.post("/things", "application/json", format!(r#"{{"a":{}"#, "[".repeat(60_000))).await;
    let message = answer.error().2;
    assert!(message.contains("recursion limit exceeded"), "{message}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn headers_without_end_are_431_in_json() {
    let running = start();
    let endless = [
        // Too many, too large for a middleware, too large for the parser, and a single one that never ends.
        (0..200).map(|n| format!("X-{n}: a\r\n")).collect::<String>() + "\r\n",
        format!("X-Large: {}\r\n\r\n", "a".repeat(40 * 1024)),
        (0..50).map(|n| format!("X-{n}: {}\r\n", "a".repeat(8 * 1024))).collect::<String>() + "\r\n",
        "X-Endless: ".to_owned() + &"a".repeat(8 * MEBIBYTE),
    ];
    for headers in endless {
        let answer = running.exchange(format!("GET /healthcheck HTTP/1.1\r\nHost: x\r\n{headers}")).await;
        let (status, code, message) = answer.error();
        assert_eq!((status, code.as_str()), (431, "headers_too_large"), "{message}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_path_without_end_is_414() {
    let running = start();
    for length in [10_000, 65_000, 66_000, 100_000, 8 * MEBIBYTE] {
        let (status, code, message) = running.get(&format!("/{}", "a".repeat(length))).await.error();
        assert_eq!((status, code.as_str()), (414, "uri_too_long"), "{length}: {message}");
    }
    // Behind a good request as well.
    let mut stream = running.connect().await;
    stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut stream).await.body, "Ok");
    stream.write_all(format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)).as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.error().0, 414);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_not_http_is_400_in_json() {
    let running = start();
    for request in [
        "GARBAGE\r\n\r\n",
        "\u{1}\u{2}\r\n\r\n",
        "GET /healthcheck HTTP/1.1\r\n\r\n",
        "GET /healthcheck HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        "POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET /heal\u{e9}th\u{0} HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let (status, code, _) = running.exchange(request).await.error();
        assert_eq!((status, code.as_str()), (400, "malformed_request"), "{request:?}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn http_1_1_is_spoken_and_no_http_2() {
    let running = start();
    let (status, code, _) = running.exchange("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.error();
    assert_eq!((status, code.as_str()), (400, "malformed_request"));
    let upgrade = "GET /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    let answer = running.exchange(upgrade).await;
    assert!(answer.status == 200 && answer.head.starts_with("HTTP/1.1 "), "{answer:?}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_good_request_before_a_broken_one_is_answered_too() {
    let running = start();
    let mut stream = running.connect().await;
    stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\nGARBAGE\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut stream).await.body, "Ok");
    assert_eq!(read_answer(&mut stream).await.error().1, "malformed_request");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the connection is closed");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_body_that_ends_early_or_is_broken_is_refused() {
    let running = start();
    let head = "POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let broken = running.exchange(format!("{head}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")).await;
    assert_eq!(broken.error().0, 400);
    let mut stream = running.connect().await;
    stream.write_all(format!("{head}Content-Length: 10\r\n\r\n{{}}").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_answer(&mut stream).await.error().1, "invalid_body");
    running.stop().await.unwrap();
}

/// Sends what comes, a little at a time, until the server closes the connection; answers what it said.
async fn trickle(mut stream: TcpStream, endless: &'static str) -> String {
    let (mut answer, mut buffer) = (vec![], [0; 4096]);
    let mut bytes = endless.bytes().chain(std::iter::repeat(b'a'));
    let mut often = tokio::time::interval(std::time::Duration::from_millis(50));
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return String::from_utf8(answer).unwrap(),
                Ok(read) => answer.extend_from_slice(&buffer[..read]),
            },
            _ = often.tick() => if stream.write_all(&[bytes.next().unwrap_or_default()]).await.is_err() {
                // What it said before it closed may still be there.
                let _ = stream.read_to_end(&mut answer).await;
                return String::from_utf8(answer).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_hold_nobody_else_up() {
    let connections = 6;
    let environment = [("CARTLOG_HTTP_WORKERS", "1"), ("CARTLOG_HTTP_MAX_CONNECTIONS", "6")];
    let running = serve::<Api>(service(settings(&environment)), |app| {
        app.service(add).service(clear);
    });
    let head = "GET /healthcheck HTTP/1.1\r\nHost: x\r\nX: ";
    let body = "POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n";
    let mut slow = vec![];
    for n in 0..connections {
        let mut stream = running.connect().await;
        if n % 3 == 1 {
            // After a request that was answered.
            stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            assert_eq!(read_answer(&mut stream).await.body, "Ok");
        }
        if n % 3 == 2 {
            stream.write_all(body.as_bytes()).await.unwrap();
            slow.push(tokio::spawn(trickle(stream, "{")));
        } else {
            slow.push(tokio::spawn(trickle(stream, head)));
        }
    }
    // They have every place there is; when they are cut off, the next is served.
    assert_eq!(running.get("/healthcheck").await.body, "Ok");
    for (n, slow) in slow.into_iter().enumerate() {
        let said = tokio::time::timeout(std::time::Duration::from_secs(20), slow).await.expect("it is cut off").unwrap();
        // A later head is not answered any more: nothing of a request is there.
        assert!(said.is_empty() == (n % 3 == 1) && (n % 3 == 1 || said.contains(r#""code":"request_timeout""#)), "{n}: {said}");
    }
    running.stop().await.unwrap();
}
