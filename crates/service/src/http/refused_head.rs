//! A connection on which even requests that cannot be parsed are answered in JSON.
//!
//! Where a request's head is malformed, too large or too slow, actix-http answers by itself, below every handler and
//! middleware: a bare 400, 431 or 408 without a body, and then closes while the client may still be sending, which
//! makes the client's kernel throw the answer away. There is no hook for it. So the connection looks at what is
//! written: an answer that ends in a bare head of one of those (ours always have a body, and no body of ours contains
//! a line feed after a carriage return) is sent with a body instead, and what the client still sends is taken and
//! dropped for a while. A connection on which nothing was asked is closed without a word.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{
    body::{DISCARD_DEADLINE, MAX_DISCARDED_BYTES},
    edge::{MAX_HEADER_BYTES, MAX_URI_BYTES},
    error::ErrorBody,
};

/// A connection; see the [module](self).
#[derive(Debug)]
pub(crate) struct Connection<Io = TcpStream> {
    io: Io,
    state: State,
    request_line: RequestLine,
}

/// The first line that came since the last answer: a request's, unless the client sends requests without waiting for answers.
#[derive(Debug, Default)]
struct RequestLine {
    length: usize,
    complete: bool,
}

impl RequestLine {
    fn take(&mut self, bytes: &[u8]) {
        if !self.complete {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            self.length += end.unwrap_or(bytes.len());
            self.complete = end.is_some();
        }
    }

    /// actix-http's parser takes no longer URI, and calls one malformed, or a part of too large a head.
    fn is_too_long(&self) -> bool {
        self.length > usize::from(u16::MAX)
    }
}

#[derive(Debug)]
enum State {
    /// Bytes go through as they are.
    Passing,
    /// `answer` is being sent for the `stands_for` bytes that were given.
    Answering { answer: Vec<u8>, sent: usize, stands_for: usize },
    /// The answer is sent, and nothing further will be; the client may still be sending.
    Discarding { stands_for: usize, discarded: usize, until: Pin<Box<Sleep>> },
    /// Nothing more goes in or out.
    Done,
}

impl<Io> Connection<Io> {
    pub(crate) fn new(io: Io) -> Self {
        Self { io, state: State::Passing, request_line: RequestLine::default() }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Connection<Io> {
    /// Sends the answer that replaces a bare head, and discards what the client sends. Ready with the number of bytes
    /// it stands for: until then the caller keeps the connection open.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            match &mut self.state {
                State::Passing | State::Done => return Poll::Ready(Ok(0)),
                State::Answering { answer, sent, stands_for } => {
                    if *sent < answer.len() {
                        *sent += match ready!(Pin::new(&mut self.io).poll_write(cx, &answer[*sent..]))? {
                            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                            written => written,
                        };
                        continue;
                    }
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                    ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                    let until = Box::pin(sleep(DISCARD_DEADLINE));
                    self.state = State::Discarding { stands_for: *stands_for, discarded: 0, until };
                }
                State::Discarding { stands_for, discarded, until } => {
                    let stands_for = *stands_for;
                    let mut buffer = [0; 8 * 1024];
                    let mut buffer = ReadBuf::new(&mut buffer);
                    let late = until.as_mut().poll(cx).is_ready();
                    if !late && *discarded < MAX_DISCARDED_BYTES {
                        let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer));
                        let length = buffer.filled().len();
                        *discarded += length;
                        if read.is_ok() && length > 0 {
                            continue;
                        }
                    }
                    self.state = State::Done;
                    return Poll::Ready(Ok(stands_for));
                }
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.state {
            State::Passing => {
                let before = buffer.filled().len();
                let read = Pin::new(&mut self.io).poll_read(cx, buffer);
                self.request_line.take(buffer.filled().get(before..).unwrap_or_default());
                read
            }
            // Not the end of the stream, yet: the answer comes first.
            State::Answering { .. } | State::Discarding { .. } => Poll::Pending,
            State::Done => Poll::Ready(Ok(())),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.state {
            State::Passing => match with_body(bytes, self.request_line.is_too_long()) {
                None => {
                    self.request_line = RequestLine::default();
                    return Pin::new(&mut self.io).poll_write(cx, bytes);
                }
                Some(answer) => {
                    // No byte of a request came: a client that opens connections in reserve would take an answer for that of its next one.
                    // On a machine that is busy, one may have come that nobody has read.
                    let asked = self.request_line.length > 0 || has_unread(&mut self.io, cx);
                    let answer = if asked { answer } else { vec![] };
                    self.state = State::Answering { answer, sent: 0, stands_for: bytes.len() };
                }
            },
            State::Done => return Poll::Ready(Ok(bytes.len())),
            State::Answering { .. } | State::Discarding { .. } => {}
        }
        self.poll_refusal(cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.state {
            State::Done => Poll::Ready(Ok(())),
            _ => Pin::new(&mut self.io).poll_shutdown(cx),
        }
    }
}

/// Whether the client has sent what was not read. What it is is dropped.
fn has_unread(io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> bool {
    let mut byte = [0];
    let mut byte = ReadBuf::new(&mut byte);
    matches!(Pin::new(io).poll_read(cx, &mut byte), Poll::Ready(Ok(()))) && !byte.filled().is_empty()
}

/// What to send instead of `bytes`, where they end in a bare head of a refusal.
fn with_body(bytes: &[u8], uri_too_long: bool) -> Option<Vec<u8>> {
    let without_end = bytes.strip_suffix(b"\r\n\r\n")?;
    let start = without_end.windows(7).rposition(|window| window == b"HTTP/1.")?;
    let head = std::str::from_utf8(&without_end[start..]).ok()?;
    let mut lines = head.split("\r\n");
    let mut status_line = lines.next()?;
    let (mut code, mut message) = refusal(status_line.split(' ').nth(1)?)?;
    if uri_too_long {
        (status_line, (code, message)) = ("HTTP/1.1 414 URI Too Long", uri_refusal());
    }
    let mut headers = lines.filter_map(|line| line.split_once(": "));
    if !headers.clone().any(|(name, value)| name.eq_ignore_ascii_case("content-length") && value == "0") {
        return None;
    }
    let date = headers.find(|(name, _)| name.eq_ignore_ascii_case("date"));
    let date = date.map(|(_, value)| format!("date: {value}\r\n")).unwrap_or_default();
    let body = serde_json::to_string(&ErrorBody { code: code.into(), message }).ok()?;
    let mut answer = bytes[..start].to_vec();
    answer.extend_from_slice(
        format!(
            "{status_line}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{date}\r\n{body}",
            body.len()
        )
        .as_bytes(),
    );
    Some(answer)
}

/// As in `edge.rs`, for those that reach it.
fn uri_refusal() -> (&'static str, String) {
    ("uri_too_long", format!("path and query must have at most {MAX_URI_BYTES} bytes"))
}

/// Code and message by the status that actix-http chose.
fn refusal(status: &str) -> Option<(&'static str, String)> {
    Some(match status {
        "400" => ("malformed_request", "the request line and headers must be HTTP/1.1, with a Host".to_owned()),
        "408" => ("request_timeout", "the request line and headers did not arrive in time".to_owned()),
        "431" => ("headers_too_large", format!("there must be at most 96 headers, with at most {MAX_HEADER_BYTES} bytes together")),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{Connection, with_body};

    #[tokio::test]
    async fn who_has_asked_nothing_is_answered_nothing() {
        for (asked, is_read) in [("", false), ("GET /he", true), ("GET /he", false)] {
            let (mut client, server) = tokio::io::duplex(4096);
            let mut connection = Connection::new(server);
            client.write_all(asked.as_bytes()).await.unwrap();
            if is_read {
                connection.read_exact(&mut vec![0; asked.len()]).await.unwrap();
            }
            let answered = async {
                connection.write_all(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                drop(connection);
            };
            let seen = async {
                let mut seen = String::new();
                client.read_to_string(&mut seen).await.unwrap();
                drop(client);
                seen
            };
            let ((), seen) = tokio::join!(answered, seen);
            assert_eq!(seen.is_empty(), asked.is_empty(), "{seen}");
        }
    }

    #[test]
    fn only_a_bare_head_of_a_refusal_gets_a_body() {
        let bare = "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\ndate: today\r\n\r\n";
        let answer = String::from_utf8(with_body(bare.as_bytes(), false).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n"), "{head}");
        assert!(head.ends_with("date: today"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["code"], "request_timeout");

        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 50\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "\r\n\r\n",
            "",
        ] {
            assert_eq!(with_body(other.as_bytes(), false), None, "{other:?}");
        }
    }

    #[test]
    fn what_was_written_before_the_bare_head_stays() {
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOk";
        let both = format!("{good}HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        let answer = String::from_utf8(with_body(both.as_bytes(), false).unwrap()).unwrap();
        assert!(answer.starts_with(&format!("{good}HTTP/1.1 400 Bad Request\r\ncontent-type")), "{answer}");
    }
}
