//! A TCP proxy in front of PostgreSQL that loses answers, falls silent, and moves to another server.

use std::{net::SocketAddr, sync::Arc};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// A TCP proxy between clients and PostgreSQL.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

#[derive(Clone)]
struct State {
    /// The server that new connections lead to.
    server: (String, u16),
    /// How often `lose_answers` was called.
    lost: u32,
    /// How often `fall_silent` was called.
    silenced: u32,
    /// The open connections, those that are silent among them.
    open: usize,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    ///
    /// # Panics
    /// If there is no port to listen on.
    pub async fn before(server: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("there is a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(watch::Sender::new(State { server: address_of(server), lost: 0, silenced: 0, open: 0 }));
        let states = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let states = states.clone();
                tokio::spawn(async move {
                    let server = states.borrow().server.clone();
                    states.send_modify(|state| state.open += 1);
                    // If anything fails, both sides see their connection closed.
                    if let Ok(server) = TcpStream::connect(server).await {
                        let _ = connect(client, server, states.subscribe()).await;
                    }
                    states.send_modify(|state| state.open -= 1);
                });
            }
        });
        Self { address, state, accepting }
    }

    /// Returns the port on 127.0.0.1 that the proxy listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Loses the next answer on each open connection, and closes the connection. The server has executed what was asked.
    pub fn lose_answers(&self) {
        self.state.send_modify(|state| state.lost += 1);
    }

    /// Leads new connections to another server. Open connections stay with theirs.
    pub fn move_to(&self, server: &PgConnectOptions) {
        self.state.send_modify(|state| state.server = address_of(server));
    }

    /// Forwards nothing more on the open connections, and leaves them open, as if the network or the peer had gone.
    pub fn fall_silent(&self) {
        self.state.send_modify(|state| state.silenced += 1);
    }

    /// Returns how many connections are open, silent ones among them. A client that closes its side of a silent one is noticed.
    pub fn open_connections(&self) -> usize {
        self.state.borrow().open
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn address_of(server: &PgConnectOptions) -> (String, u16) {
    (server.get_host().to_owned(), server.get_port())
}

async fn connect(client: TcpStream, server: TcpStream, mut states: watch::Receiver<State>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let begun = states.borrow().clone();
    let ((from_client, mut to_client), (mut from_server, to_server)) = (client.into_split(), server.into_split());
    let losing = states.clone();
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 || losing.borrow().lost != begun.lost {
                return Ok(());
            }
            to_client.write_all(buffer.get(..read).unwrap_or_default()).await?;
        }
    };
    let mut questions = Questions { from_client, to_server, is_silent: false };
    tokio::select! {
        ended = questions.forward() => return ended,
        ended = answers => return ended,
        _ = states.wait_for(|state| state.silenced != begun.silenced) => {}
    }
    // Both sides stay open until the client closes its own.
    questions.is_silent = true;
    questions.forward().await
}

struct Questions {
    from_client: OwnedReadHalf,
    to_server: OwnedWriteHalf,
    is_silent: bool,
}

impl Questions {
    async fn forward(&mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = self.from_client.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            if !self.is_silent {
                self.to_server.write_all(buffer.get(..read).unwrap_or_default()).await?;
            }
        }
    }
}
