//! Loses answers of the database.

use std::net::SocketAddr;

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A TCP proxy between clients and PostgreSQL. The server has executed what the proxy loses; the client gets no answer.
pub struct Proxy {
    address: SocketAddr,
    /// How often `lose_answers` was called.
    lost: watch::Sender<u32>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    ///
    /// # Panics
    /// If there is no port to listen on.
    pub async fn before(server: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("there is a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (host, port) = (server.get_host().to_owned(), server.get_port());
        let lost = watch::Sender::new(0);
        let losing = lost.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (host, losing) = (host.clone(), losing.clone());
                tokio::spawn(async move {
                    // If anything fails, both sides see their connection closed.
                    if let Ok(server) = TcpStream::connect((host, port)).await {
                        let _ = connect(client, server, losing).await;
                    }
                });
            }
        });
        Self { address, lost, accepting }
    }

    /// Returns the port on 127.0.0.1 that the proxy listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Loses the next answer on each open connection, and closes the connection.
    pub fn lose_answers(&self) {
        self.lost.send_modify(|lost| *lost += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn connect(client: TcpStream, server: TcpStream, losing: watch::Receiver<u32>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let begun = *losing.borrow();
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
    let questions = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 || *losing.borrow() != begun {
                return Ok(());
            }
            to_client.write_all(buffer.get(..read).unwrap_or_default()).await?;
        }
    };
    tokio::select! {
        ended = questions => ended,
        ended = answers => ended,
    }
}
