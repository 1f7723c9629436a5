//! Streams of read models.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{HttpMessage as _, HttpRequest, get, http::StatusCode, middleware::from_fn, web};
use event_store::{Position, Touched};
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use uuid::Uuid;

use super::{Running, serve, service, settings};
use crate::{Changes, HttpError, http::streamed::Streamed, live};

/// A log in memory. Each event sets the text of a note.
#[derive(Clone)]
struct Notes {
    events: Arc<Mutex<Vec<(Uuid, String)>>>,
    head: watch::Sender<Position>,
    /// How often a note was read, and how often the log was asked what changed.
    reads: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Notes {
    fn serve() -> (Self, Running) {
        let notes =
            Self { events: Arc::default(), head: watch::Sender::new(Position::START), reads: Arc::default(), asked: Arc::default() };
        let log = notes.clone();
        let changes = Changes::start(
            notes.head.subscribe(),
            || 0,
            move |after| {
                log.asked.fetch_add(1, Ordering::SeqCst);
                let events = log.events.lock().unwrap();
                let from = usize::try_from(after.0).unwrap();
                let ids = (from..events.len()).map(|at| (events[at].0, Position(i64::try_from(at).unwrap() + 1))).collect();
                let touched = Touched { ids, up_to: Position(i64::try_from(events.len()).unwrap()) };
                async move { Ok(touched) }.boxed()
            },
        );
        let service = service(settings(&[])).data(notes.clone()).data(changes);
        let running = serve(service, |app| {
            app.service(note);
        });
        (notes, running)
    }

    fn write(&self, id: Uuid, text: impl Into<String>) -> i64 {
        let mut events = self.events.lock().unwrap();
        events.push((id, text.into()));
        let head = i64::try_from(events.len()).unwrap();
        self.head.send_replace(Position(head));
        head
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

#[utoipa::path(get, path = "/notes/{id}")]
#[get("/notes/{id}", wrap = "from_fn(live)")]
async fn note(id: web::Path<Uuid>, request: HttpRequest, notes: web::Data<Notes>) -> Result<web::Json<Value>, HttpError> {
    notes.reads.fetch_add(1, Ordering::SeqCst);
    let events = notes.events.lock().unwrap();
    if let Some(streamed) = request.extensions().get::<Streamed>() {
        streamed.answered(Position(i64::try_from(events.len()).unwrap()), false);
    }
    let text = events.iter().rev().find(|(of, _)| *of == *id).map(|(_, text)| web::Json(json!(text)));
    text.ok_or_else(|| HttpError::refusal(StatusCode::NOT_FOUND, "unknown_note", "there is no such note"))
}

/// A client of a stream.
struct Client {
    connection: TcpStream,
    received: Vec<u8>,
    read: usize,
}

impl Client {
    async fn open(running: &Running, path: &str, headers: &str) -> Self {
        let mut connection = TcpStream::connect(running.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n{headers}\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut client = Self { connection, received: vec![], read: 0 };
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        client
    }

    /// Reads up to a text. Returns what came before it.
    async fn until(&mut self, end: &str) -> String {
        let reading = async {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let found = self.received[self.read..].windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(at) = found {
                    let text = String::from_utf8_lossy(&self.received[self.read..self.read + at]).into_owned();
                    self.read += at + end.len();
                    return text;
                }
                let length = self.connection.read(&mut buffer).await.unwrap();
                assert!(length > 0, "the stream ended before {end:?}");
                self.received.extend_from_slice(&buffer[..length]);
            }
        };
        timeout(Duration::from_secs(20), reading).await.unwrap_or_else(|_| panic!("never: {end:?}"))
    }

    /// The next event: its id, and its data.
    async fn next(&mut self) -> (i64, Value) {
        self.until("id: ").await;
        let id = self.until("\ndata: ").await.parse().unwrap();
        (id, serde_json::from_str(&self.until("\n\n").await).unwrap())
    }
}

#[tokio::test]
async fn stream_sends_each_answer_in_order_to_the_last() {
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    notes.write(id, "first");
    let mut client = Client::open(&running, &format!("/notes/{id}"), "").await;
    assert_eq!(client.next().await, (1, json!("first")));
    let mut last = 1;
    for number in 0..20 {
        last = notes.write(id, number.to_string());
        if number % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
    let mut seen = 1;
    loop {
        let (position, text) = client.next().await;
        assert!(position > seen && position <= last);
        seen = position;
        if text == json!("19") {
            break;
        }
    }
    // The same text again is no change.
    notes.write(id, "19");
    notes.write(id, "end");
    assert_eq!(client.next().await.1, json!("end"));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn only_answers_that_changed_are_read_again() {
    const STREAMS: usize = 300;
    let (notes, running) = Notes::serve();
    let ids: Vec<_> = (0..STREAMS).map(|_| Uuid::now_v7()).collect();
    let mut clients = vec![];
    for id in &ids {
        notes.write(*id, "before");
    }
    for id in &ids {
        let mut client = Client::open(&running, &format!("/notes/{id}"), "").await;
        client.next().await;
        clients.push(client);
    }
    assert_eq!(notes.reads(), STREAMS);
    let asked = notes.asked.load(Ordering::SeqCst);
    for _ in 0..3 {
        notes.write(Uuid::now_v7(), "somebody else's");
    }
    notes.write(ids[7], "after");
    assert_eq!(clients[7].next().await.1, json!("after"));
    assert_eq!(notes.reads(), STREAMS + 1, "one answer is read again, not {STREAMS}");
    let asked = notes.asked.load(Ordering::SeqCst) - asked;
    assert!((1..=2).contains(&asked), "the log was asked {asked} times");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn streams_of_one_answer_share_its_reads() {
    const STREAMS: usize = 50;
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    notes.write(id, "before");
    let mut clients = vec![];
    for _ in 0..STREAMS {
        let mut client = Client::open(&running, &format!("/notes/{id}"), "").await;
        client.next().await;
        clients.push(client);
    }
    notes.write(id, "after");
    for client in &mut clients {
        assert_eq!(client.next().await.1, json!("after"));
    }
    let workers = std::thread::available_parallelism().unwrap().get();
    assert!(notes.reads() <= STREAMS + workers, "{} reads", notes.reads());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn stream_resumes_after_the_last_event_id() {
    let (notes, running) = Notes::serve();
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let path = format!("/notes/{id}");
    notes.write(id, "one");
    notes.write(other, "somebody else's");
    // Nothing has changed since: there is a comment instead of the answer.
    let mut client = Client::open(&running, &path, "Last-Event-ID: 1\r\n").await;
    let before = client.until(":\n\n").await;
    assert!(!before.contains("data"), "{before}");
    notes.write(id, "two");
    assert_eq!(client.next().await, (3, json!("two")));
    let mut behind = Client::open(&running, &path, "Last-Event-ID: 2\r\n").await;
    assert_eq!(behind.next().await, (3, json!("two")));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn refusal_is_answered_before_a_stream_begins() {
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    notes.write(id, "one");
    for (path, headers, status, code) in [
        (format!("/notes/{}", Uuid::now_v7()), "", 404, "unknown_note"),
        (format!("/notes/{id}?at=1"), "", 400, "invalid_query"),
        (format!("/notes/{id}"), "Last-Event-ID: yesterday\r\n", 400, "malformed_request"),
        (format!("/notes/{id}"), "Last-Event-ID: -1\r\n", 400, "malformed_request"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n{headers}\r\n");
        let answer = running.exchange(&request).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{path} {headers}");
    }
    let plain = running.get(&format!("/notes/{id}")).await;
    assert_eq!((plain.json(), plain.header("vary")), (json!("one"), Some("accept")));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn streams_end_when_the_process_stops() {
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    notes.write(id, "one");
    let mut client = Client::open(&running, &format!("/notes/{id}"), "").await;
    client.next().await;
    let stopped = tokio::time::Instant::now();
    let (ended, ()) = tokio::join!(running.stop(), async {
        // The last chunk.
        client.until("0\r\n\r\n").await;
    });
    ended.unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
}

#[tokio::test]
async fn slow_reader_misses_answers_and_gets_the_last() {
    const ANSWERS: usize = 40;
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    notes.write(id, "first");
    let mut client = Client::open(&running, &format!("/notes/{id}"), "").await;
    for number in 0..ANSWERS {
        let reads = notes.reads();
        notes.write(id, format!("{number} {}", "x".repeat(1 << 20)));
        timeout(Duration::from_secs(20), async {
            while notes.reads() == reads {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }
    notes.write(id, "last");
    let mut events = 0;
    while client.next().await.1 != json!("last") {
        events += 1;
    }
    assert!(events < ANSWERS / 2, "{events} of {ANSWERS} answers waited for the reader");
    running.stop().await.unwrap();
}
