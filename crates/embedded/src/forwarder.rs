//! A TCP address on 127.0.0.1 in front of a server. It behaves as networks do: its connections break, fall silent, or are slow, and its
//! server is replaced by another one.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::error::{Context, Error};

/// How the network behaves between the address and its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Every byte passes at once.
    Whole,
    /// Open connections are reset (RST), and so is each new one.
    Refusing,
    /// No byte passes in either direction, and no end of a connection (FIN) either. New connections are accepted and stay silent.
    Silent,
    /// Bytes pass after this time.
    Slow(Duration),
}

/// A forwarder. Dropping it closes its connections.
#[derive(Debug)]
pub struct Forwarder {
    port: u16,
    state: watch::Sender<State>,
    accepting: AbortHandle,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// The server's port on 127.0.0.1.
    server: u16,
    network: Network,
    /// How often the network began to refuse. A connection that is older than the last time is reset.
    resets: u64,
    /// How often the network lost its connections. An older connection stays silent for ever.
    losses: u64,
}

impl Forwarder {
    /// Starts a forwarder on a free port, in front of the server on another port of 127.0.0.1.
    ///
    /// # Errors
    /// The operating system has no free port.
    pub async fn before(server: u16) -> Result<Self, Error> {
        let failed = || "listen on a port of 127.0.0.1".to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context(failed)?;
        let port = listener.local_addr().context(failed)?.port();
        let (state, receiver) = watch::channel(State { server, network: Network::Whole, resets: 0, losses: 0 });
        let accepting = tokio::spawn(accept(listener, receiver)).abort_handle();
        Ok(Self { port, state, accepting })
    }

    /// The port on 127.0.0.1 that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads new connections to the server on another port. Open connections stay with theirs, as after a change of DNS or of a virtual IP.
    pub fn move_to(&self, server: u16) {
        self.state.send_modify(|state| state.server = server);
    }

    /// Changes the network. When a silent network changes, what was held back passes.
    pub fn set(&self, network: Network) {
        self.state.send_modify(|state| {
            state.network = network;
            state.resets += u64::from(network == Network::Refusing);
        });
    }

    /// Makes the network whole for new connections. Every connection that is open now stays silent for ever, as after a router lost its table.
    pub fn lose_connections(&self) {
        self.state.send_modify(|state| {
            state.network = Network::Whole;
            state.losses += 1;
        });
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => drop(connections.spawn(serve(client, state.clone()))),
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut client: TcpStream, state: watch::Receiver<State>) {
    let born = *state.borrow();
    let connected = async {
        pass(&mut state.clone(), born).await?;
        // Read only now, because the server may have been replaced while the network was silent.
        let server = state.borrow().server;
        TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await
    };
    let mut until_reset = state.clone();
    let mut server = tokio::select! {
        connected = connected => connected.ok().filter(|_| state.borrow().network != Network::Refusing),
        _ = until_reset.wait_for(|now| now.resets > born.resets) => None,
    };
    if let Some(server) = &mut server {
        // Small messages must not wait for others.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let both = async {
            let (questions, answers) = (state.clone(), state.clone());
            tokio::try_join!(forward(from_client, to_server, questions, born), forward(from_server, to_client, answers, born)).is_ok()
        };
        tokio::select! {
            ended = both => if ended { return },
            _ = until_reset.wait_for(|now| now.resets > born.resets) => {}
        }
        let _ = server.set_zero_linger();
    }
    let _ = client.set_zero_linger();
}

/// Copies bytes until their end, which is passed on, too.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    born: State,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        pass(&mut state, born).await?;
        match read? {
            0 => return to.shutdown().await,
            read => to.write_all(buffer.get(..read).unwrap_or_default()).await?,
        }
    }
}

/// Waits until bytes may pass.
async fn pass(state: &mut watch::Receiver<State>, born: State) -> std::io::Result<()> {
    loop {
        let now = *state.borrow_and_update();
        if now.losses == born.losses {
            match now.network {
                Network::Whole | Network::Refusing => return Ok(()),
                Network::Slow(delay) => {
                    tokio::time::sleep(delay).await;
                    return Ok(());
                }
                Network::Silent => {}
            }
        }
        state.changed().await.map_err(std::io::Error::other)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte with the byte that names it.
    async fn server(name: u8) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move { while client.read_u8().await.is_ok() && client.write_u8(name).await.is_ok() {} });
            }
        });
        port
    }

    async fn open(forwarder: &Forwarder) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, forwarder.port())).await.unwrap()
    }

    /// Answers the name of the server; none if there is no answer in time.
    async fn ask(client: &mut TcpStream, patience: Duration) -> Option<std::io::Result<u8>> {
        let asked = async {
            client.write_u8(0).await?;
            client.read_u8().await
        };
        tokio::time::timeout(patience, asked).await.ok()
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn moved_address_leads_new_connections_elsewhere() {
        let forwarder = Forwarder::before(server(1).await).await.unwrap();
        let mut old = open(&forwarder).await;
        assert_eq!(ask(&mut old, LONG).await.unwrap().unwrap(), 1);
        forwarder.move_to(server(2).await);
        let mut new = open(&forwarder).await;
        assert_eq!(ask(&mut new, LONG).await.unwrap().unwrap(), 2);
        assert_eq!(ask(&mut old, LONG).await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn refusing_network_resets_old_and_new_connections() {
        let forwarder = Forwarder::before(server(1).await).await.unwrap();
        let mut old = open(&forwarder).await;
        assert_eq!(ask(&mut old, LONG).await.unwrap().unwrap(), 1);
        forwarder.set(Network::Refusing);
        assert!(ask(&mut old, LONG).await.unwrap().is_err());
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, forwarder.port())).await;
        if let Ok(mut new) = refused {
            assert!(ask(&mut new, LONG).await.unwrap().is_err());
        }
        forwarder.set(Network::Whole);
        assert_eq!(ask(&mut open(&forwarder).await, LONG).await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn silent_network_holds_bytes_back_until_it_is_whole() {
        let forwarder = Forwarder::before(server(1).await).await.unwrap();
        let mut old = open(&forwarder).await;
        assert_eq!(ask(&mut old, LONG).await.unwrap().unwrap(), 1);
        forwarder.set(Network::Silent);
        let mut new = open(&forwarder).await;
        assert!(ask(&mut old, SHORT).await.is_none() && ask(&mut new, SHORT).await.is_none());
        forwarder.set(Network::Whole);
        assert_eq!((old.read_u8().await.unwrap(), new.read_u8().await.unwrap()), (1, 1));
    }

    #[tokio::test]
    async fn lost_connection_stays_silent_and_a_new_one_does_not() {
        let forwarder = Forwarder::before(server(1).await).await.unwrap();
        let mut old = open(&forwarder).await;
        assert_eq!(ask(&mut old, LONG).await.unwrap().unwrap(), 1);
        forwarder.set(Network::Silent);
        forwarder.lose_connections();
        assert_eq!(ask(&mut open(&forwarder).await, LONG).await.unwrap().unwrap(), 1);
        assert!(ask(&mut old, SHORT).await.is_none());
    }

    #[tokio::test]
    async fn slow_network_delays_bytes() {
        let forwarder = Forwarder::before(server(1).await).await.unwrap();
        let mut client = open(&forwarder).await;
        forwarder.set(Network::Slow(Duration::from_millis(100)));
        let started = std::time::Instant::now();
        assert_eq!(ask(&mut client, LONG).await.unwrap().unwrap(), 1);
        assert!(started.elapsed() >= SHORT, "100 ms each way");
    }
}
