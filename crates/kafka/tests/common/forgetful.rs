//! A broker whose metadata can be without brokers, as when its controller has fenced it for a moment, and whose connections can fall silent,
//! also while a consumer joins its group: a real one behind a proxy.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use test_support::kafka_bootstrap_servers;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The key of a Metadata request.
const METADATA: i16 = 3;
/// The key of a FindCoordinator request.
const FIND_COORDINATOR: i16 = 10;
/// The key of a JoinGroup request.
const JOIN_GROUP: i16 = 11;
/// The number of topics in an answer without brokers.
const TOPICS: usize = 20_000;

/// A proxy to the real broker. Clients know no other address.
pub struct Forgetful {
    pub address: String,
    fenced: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    /// The connections before this one are silent.
    silent: Arc<AtomicUsize>,
    /// Whether the next connection that asks to join a group falls silent.
    loses_join: Arc<AtomicBool>,
}

impl Forgetful {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let fenced = Arc::new(AtomicBool::new(false));
        let is_fenced = fenced.clone();
        let (connections, silent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, is_silent) = (connections.clone(), silent.clone());
        let loses_join = Arc::new(AtomicBool::new(false));
        let is_lost = loses_join.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let broker = TcpStream::connect(kafka_bootstrap_servers()).await.expect("the broker");
                let (number, is_silent) = (count.fetch_add(1, Ordering::SeqCst), is_silent.clone());
                let silent = move || number < is_silent.load(Ordering::SeqCst);
                tokio::spawn(forward(client, broker, port, is_fenced.clone(), is_lost.clone(), silent));
            }
        });
        Self { address: format!("127.0.0.1:{port}"), fenced, connections, silent, loses_join }
    }

    /// Lets every connection that is open fall silent. It stays open, and new ones work.
    pub fn fall_silent(&self) {
        self.silent.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Lets the next connection that asks to join a group fall silent. It stays open, and new ones work.
    pub fn lose_join(&self) {
        self.loses_join.store(true, Ordering::SeqCst);
    }

    /// Tells whether such a connection has come.
    pub fn has_lost_join(&self) -> bool {
        !self.loses_join.load(Ordering::SeqCst)
    }

    /// Answers questions for metadata without brokers, or as the real broker does.
    pub fn fence(&self, fenced: bool) {
        self.fenced.store(fenced, Ordering::SeqCst);
    }
}

async fn forward(
    client: TcpStream,
    broker: TcpStream,
    port: u16,
    fenced: Arc<AtomicBool>,
    loses_join: Arc<AtomicBool>,
    silent: impl Fn() -> bool,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    // The key and version of each question whose answer has the broker's address, by correlation id.
    let asked = Arc::new(Mutex::new(HashMap::new()));
    let questions = asked.clone();
    let lost = Arc::new(AtomicBool::new(false));
    let is_lost = lost.clone();
    let requests = async move {
        while let Some(frame) = read(&mut from_client).await {
            let word = |at: usize| i16::from_be_bytes([frame[at], frame[at + 1]]);
            if [METADATA, FIND_COORDINATOR].contains(&word(0)) {
                questions.lock().expect("a lock").insert(frame[4..8].to_vec(), (word(0), word(2)));
            }
            if word(0) == JOIN_GROUP && loses_join.swap(false, Ordering::SeqCst) {
                lost.store(true, Ordering::SeqCst);
            }
            if write(&mut to_broker, &frame).await.is_none() {
                break;
            }
        }
    };
    let answers = async move {
        while let Some(mut frame) = read(&mut from_broker).await {
            let question = asked.lock().expect("a lock").remove(&frame[0..4]);
            frame = match question {
                Some((METADATA, version)) if fenced.load(Ordering::SeqCst) => without_brokers(&frame[0..4], version),
                Some(_) => at_port(frame, port),
                None => frame,
            };
            if silent() || is_lost.load(Ordering::SeqCst) {
                continue;
            }
            if write(&mut to_client, &frame).await.is_none() {
                break;
            }
        }
    };
    // Either end closes both.
    tokio::select! { () = requests => {}, () = answers => {} }
}

/// An answer of version 9 to 13 without brokers. Without topics, too, librdkafka would ignore it. With many, it is still busy with them when
/// the thread of its last broker ends and asks for the bootstrap servers to be used again; then it takes that question back.
fn without_brokers(correlation: &[u8], version: i16) -> Vec<u8> {
    assert!((9..=13).contains(&version), "version {version}");
    let mut frame = correlation.to_vec();
    // No tags; not throttled; no brokers; no cluster id; no controller.
    frame.push(0);
    frame.extend(0_i32.to_be_bytes());
    frame.extend([1, 0]);
    frame.extend((-1_i32).to_be_bytes());
    // The number of topics and one, in groups of seven bits.
    frame.extend([(TOPICS + 1) as u8 | 0x80, ((TOPICS + 1) >> 7) as u8 | 0x80, ((TOPICS + 1) >> 14) as u8]);
    for topic in 0..TOPICS {
        let name = format!("topic-{topic:05}");
        // No error; the name; a new id; not internal; no partitions; no list of operations; no tags.
        frame.extend([0, 0, name.len() as u8 + 1]);
        frame.extend(name.bytes());
        if version >= 10 {
            frame.extend(uuid::Uuid::now_v7().into_bytes());
        }
        frame.extend([0, 1]);
        frame.extend(i32::MIN.to_be_bytes());
        frame.push(0);
    }
    if version <= 10 {
        frame.extend(i32::MIN.to_be_bytes());
    }
    if version >= 13 {
        frame.extend(0_i16.to_be_bytes());
    }
    frame.push(0);
    frame
}

/// Puts the proxy's port in the place of the broker's.
fn at_port(mut frame: Vec<u8>, port: u16) -> Vec<u8> {
    let servers = kafka_bootstrap_servers();
    let (host, real) = servers.rsplit_once(':').expect("host:port");
    let real: i32 = real.parse().expect("a port");
    let broker = [host.as_bytes(), &real.to_be_bytes()].concat();
    if let Some(at) = frame.windows(broker.len()).position(|window| window == broker) {
        frame[at + host.len()..at + broker.len()].copy_from_slice(&i32::from(port).to_be_bytes());
    }
    frame
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut frame = vec![0; length as usize];
    from.read_exact(&mut frame).await.ok()?;
    Some(frame)
}

async fn write(to: &mut (impl tokio::io::AsyncWrite + Unpin), frame: &[u8]) -> Option<()> {
    let mut bytes = u32::try_from(frame.len()).ok()?.to_be_bytes().to_vec();
    bytes.extend(frame);
    to.write_all(&bytes).await.ok()
}
