//! A minimal HTTP client, because it shares the cores with what it measures.

use std::sync::Arc;

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
};

/// A keep-alive connection.
pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: vec![] })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<&[u8], String> {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes(), 200).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Result<&[u8], String> {
        self.post_expecting(200, path, body).await
    }

    pub(crate) async fn post_expecting(&mut self, status: u16, path: &str, body: &str) -> Result<&[u8], String> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.exchange(request.as_bytes(), status).await
    }

    /// Returns the body of an answer with this status.
    async fn exchange(&mut self, request: &[u8], status: u16) -> Result<&[u8], String> {
        let failed = |error: std::io::Error| error.to_string();
        self.stream.write_all(request).await.map_err(failed)?;
        self.read.clear();
        loop {
            if self.stream.read_buf(&mut self.read).await.map_err(failed)? == 0 {
                return Err("the connection was closed".to_owned());
            }
            if let Some(body) = body(&self.read) {
                let body = self.read.len() - body.len();
                let good = self.read.starts_with(format!("HTTP/1.1 {status} ").as_bytes());
                return if good { Ok(&self.read[body..]) } else { Err(String::from_utf8_lossy(&self.read).into_owned()) };
            }
        }
    }
}

/// Keep-alive connections, spread evenly over some processes. A task uses one of them.
#[derive(Clone)]
pub(crate) struct Clients(Arc<Vec<Mutex<Client>>>);

impl Clients {
    pub(crate) async fn connect(urls: &[String], count: usize) -> Result<Self> {
        let mut made = vec![];
        for url in urls.iter().cycle().take(count) {
            made.push(Mutex::new(Client::connect(url).await?));
        }
        Ok(Self(Arc::new(made)))
    }

    pub(crate) async fn of(&self, task: usize) -> MutexGuard<'_, Client> {
        self.0[task % self.0.len()].lock().await
    }
}

/// Returns the body once all bytes that `Content-Length` announces have arrived. Our services always send that header.
fn body(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let body = &answer[end + 4..];
    (body.len() >= length.unwrap_or_default()).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_complete_with_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nx: y\r\n\r\nabc";
        assert_eq!(body(answer), Some(&b"abc"[..]));
        for end in 0..answer.len() {
            assert_eq!(body(&answer[..end]), None, "{end}");
        }
    }
}
