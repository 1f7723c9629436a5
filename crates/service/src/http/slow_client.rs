//! A connection that does not wait for its client for ever.
//!
//! actix-http bounds the time for the head of a connection's first request alone. After that, a client that sends a little of a head and
//! stops, or sends a byte now and then, would keep its place for as long as it likes; and so would one that does not read its answer.
//!
//! A client that sends a request before the one before it is answered is held to the shorter of its times: what comes after an answer is
//! taken for a head, though it may be the rest of a body.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the first byte of a head to its last.
    pub(crate) head: Duration,
    /// Without a whole head, since it was last answered.
    pub(crate) idle: Duration,
    /// For taking any more of its answer.
    pub(crate) answer: Duration,
}

/// A connection; see the [module](self).
#[derive(Debug)]
pub(crate) struct Watched<Io = TcpStream> {
    io: Io,
    patience: Patience,
    head: Head,
    /// When the client has taken too long to send, while a head is awaited.
    sending: Pin<Box<Sleep>>,
    /// When it has taken too long to read, while it does not.
    reading: Option<Pin<Box<Sleep>>>,
}

/// What came of a request's head since the last answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// Nothing.
    Awaited,
    /// Empty lines before it, which are none of it.
    Blank,
    /// A part of it; whether the last line of it is whole, and so an empty one would be the end.
    Begun { after_line: bool },
    /// All of it: what comes now is the body, and takes its time elsewhere.
    Whole,
}

impl Head {
    fn take(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |head, byte| match (head, byte) {
            (Self::Whole, _) => Self::Whole,
            (Self::Awaited | Self::Blank, b'\r' | b'\n') => Self::Blank,
            (Self::Begun { after_line: true }, b'\n') => Self::Whole,
            (_, b'\n') => Self::Begun { after_line: true },
            (Self::Begun { after_line }, b'\r') => Self::Begun { after_line },
            _ => Self::Begun { after_line: false },
        })
    }
}

impl<Io> Watched<Io> {
    pub(crate) fn new(io: Io, patience: Patience) -> Self {
        Self { io, patience, head: Head::Awaited, sending: Box::pin(sleep(patience.idle)), reading: None }
    }

    fn received(&mut self, bytes: &[u8]) {
        let before = self.head;
        self.head = before.take(bytes);
        if before == Head::Awaited && self.head != Head::Awaited {
            self.sending.as_mut().reset(Instant::now() + self.patience.head);
        }
    }

    fn answered(&mut self) {
        self.head = Head::Awaited;
        self.sending.as_mut().reset(Instant::now() + self.patience.idle);
    }
}

fn too_slow<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        match read {
            Poll::Pending if self.head != Head::Whole && self.sending.as_mut().poll(cx).is_ready() => too_slow(),
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => {
                self.received(buffer.filled().get(before..).unwrap_or_default());
                Poll::Ready(outcome)
            }
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write(cx, bytes);
        if write.is_ready() {
            self.reading = None;
            // "100 Continue" asks for the body of the head that is here.
            if !bytes.starts_with(b"HTTP/1.1 100 ") {
                self.answered();
            }
            return write;
        }
        let patience = self.patience.answer;
        let reading = self.reading.get_or_insert_with(|| Box::pin(sleep(patience)));
        if reading.as_mut().poll(cx).is_ready() { too_slow() } else { Poll::Pending }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PATIENCE: Patience = Patience { head: Duration::from_secs(5), idle: Duration::from_secs(80), answer: Duration::from_secs(30) };
    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// A client, and the connection to it that answered a request, on which the clock goes only where everybody waits.
    async fn answered() -> (DuplexStream, Watched<DuplexStream>) {
        let (mut client, server) = duplex(64);
        let mut server = Watched::new(server, PATIENCE);
        client.write_all(HEAD).await.unwrap();
        server.read_exact(&mut [0; HEAD.len()]).await.unwrap();
        server.write_all(b"Ok").await.unwrap();
        client.read_exact(&mut [0; 2]).await.unwrap();
        (client, server)
    }

    /// After how many seconds reading fails.
    async fn given_up_after(server: &mut Watched<DuplexStream>) -> u64 {
        let start = Instant::now();
        let error = loop {
            match server.read(&mut [0; 64]).await {
                Ok(read) => assert!(read > 0, "the client is there"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_head_that_trickles_is_given_up_as_the_first_is() {
        let (mut client, mut server) = answered().await;
        let trickle = tokio::spawn(async move {
            for byte in b"\r\n\r\n".iter().chain(b"GET / HTTP/1.1\r\nX: ").chain(&[b'a'; 1_000]) {
                client.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert_eq!(given_up_after(&mut server).await, 5);
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_of_a_head_that_came_with_the_request_before_is_given_up_too() {
        let (mut client, server) = duplex(64);
        let mut server = Watched::new(server, PATIENCE);
        client.write_all(&[HEAD, b"GET"].concat()).await.unwrap();
        server.read_exact(&mut [0; HEAD.len() + 3]).await.unwrap();
        server.write_all(b"Ok").await.unwrap();
        assert_eq!(given_up_after(&mut server).await, 80);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_between_requests_or_for_an_answer_is_waited_for() {
        let (mut client, mut server) = answered().await;
        tokio::time::sleep(Duration::from_secs(70)).await;
        client.write_all(HEAD).await.unwrap();
        server.read_exact(&mut [0; HEAD.len()]).await.unwrap();
        // The answer takes its time, and so does a body.
        let silent = tokio::time::timeout(Duration::from_secs(600), server.read_u8()).await;
        assert!(silent.is_err(), "nothing came, and nothing was given up");
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_was_asked_for_by_100_continue_is_no_head() {
        let (mut client, server) = duplex(64);
        let mut server = Watched::new(server, PATIENCE);
        client.write_all(HEAD).await.unwrap();
        server.read_exact(&mut [0; HEAD.len()]).await.unwrap();
        server.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        client.write_all(b"{").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        let silent = tokio::time::timeout(Duration::from_secs(600), server.read_u8()).await;
        assert!(silent.is_err(), "nothing came, and nothing was given up");
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_an_answer_is_given_up() {
        let (client, mut server) = answered().await;
        let start = Instant::now();
        let error = server.write_all(&[b'a'; 1_000]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
        drop(client);
    }
}
