//! A TCP address on 127.0.0.1 in front of a server. It behaves as networks do: its connections break, fall silent, or are slow, answers are
//! lost, and its server is replaced by another one.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;
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
    /// Each connection that its client has not closed holds one more.
    open: Arc<()>,
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
    /// How often the network lost answers. An older connection is reset instead of its next answer.
    lost_answers: u64,
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
        let (state, receiver) = watch::channel(State { server, network: Network::Whole, resets: 0, losses: 0, lost_answers: 0 });
        let open = Arc::new(());
        let accepting = tokio::spawn(accept(listener, receiver, open.clone())).abort_handle();
        Ok(Self { port, state, open, accepting })
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

    /// Resets each connection that is open now when the server answers on it next. The server has done what was asked.
    pub fn lose_answers(&self) {
        self.state.send_modify(|state| state.lost_answers += 1);
    }

    /// How many connections clients hold open, silent ones among them.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        // This one and the listener's hold it, too.
        Arc::strong_count(&self.open).saturating_sub(2)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>, open: Arc<()>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => drop(connections.spawn(serve(client, state.clone(), open.clone()))),
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut client: TcpStream, state: watch::Receiver<State>, open: Arc<()>) {
    let (born, mut open) = (*state.borrow(), Some(open));
    let connected = async {
        if !passes(&mut state.clone(), born).await {
            forget(&mut client, open.take()).await;
        }
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
            let questions = forward(from_client, to_server, state.clone(), born, open.take());
            let answers = forward(from_server, to_client, state.clone(), born, None);
            tokio::try_join!(questions, answers).is_ok()
        };
        tokio::select! {
            ended = both => if ended { return },
            _ = until_reset.wait_for(|now| now.resets > born.resets) => {}
        }
        let _ = server.set_zero_linger();
    }
    let _ = client.set_zero_linger();
}

/// Copies bytes until their end, which is passed on, too. A client's `open` is dropped when the client closes its side. Without it, the bytes
/// are a server's answers.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    born: State,
    open: Option<Arc<()>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        if !passes(&mut state, born).await {
            forget(from, open).await;
        }
        match read? {
            0 => return to.shutdown().await,
            _ if open.is_none() && state.borrow().lost_answers > born.lost_answers => return Err(ErrorKind::ConnectionReset.into()),
            read => to.write_all(buffer.get(..read).unwrap_or_default()).await?,
        }
    }
}

/// Waits until bytes may pass. Returns whether they ever may.
async fn passes(state: &mut watch::Receiver<State>, born: State) -> bool {
    loop {
        let now = *state.borrow_and_update();
        if now.losses > born.losses {
            return false;
        }
        match now.network {
            Network::Whole | Network::Refusing => return true,
            Network::Slow(delay) => {
                tokio::time::sleep(delay).await;
                return true;
            }
            Network::Silent => {}
        }
        if state.changed().await.is_err() {
            return false;
        }
    }
}

/// Passes nothing on and closes nothing. Drops `open` when the sender closes its side.
async fn forget(mut from: impl AsyncRead + Unpin, open: Option<Arc<()>>) -> ! {
    let mut buffer = vec![0; 64 * 1024];
    while from.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    drop(open);
    std::future::pending().await
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

    /// Returns the name of the server; none if there is no answer in time.
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
    async fn lost_connection_counts_until_its_client_closes_it() {
        let forwarder = Forwarder::before(server(1).await).await.unwrap();
        let mut old = open(&forwarder).await;
        assert_eq!(ask(&mut old, LONG).await.unwrap().unwrap(), 1);
        forwarder.set(Network::Silent);
        let mut new = open(&forwarder).await;
        assert!(ask(&mut new, SHORT).await.is_none());
        forwarder.lose_connections();
        assert!(ask(&mut old, SHORT).await.is_none() && ask(&mut new, SHORT).await.is_none());
        for (client, left) in [(old, 1), (new, 0)] {
            drop(client);
            let closed = async {
                while forwarder.open_connections() > left {
                    tokio::task::yield_now().await
                }
            };
            tokio::time::timeout(LONG, closed).await.unwrap();
            assert_eq!(forwarder.open_connections(), left);
        }
    }

    #[tokio::test]
    async fn lost_answer_resets_the_connection() {
        let forwarder = Forwarder::before(server(1).await).await.unwrap();
        let mut old = open(&forwarder).await;
        assert_eq!(ask(&mut old, LONG).await.unwrap().unwrap(), 1);
        forwarder.lose_answers();
        assert!(ask(&mut old, LONG).await.unwrap().is_err());
        assert_eq!(ask(&mut open(&forwarder).await, LONG).await.unwrap().unwrap(), 1);
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
