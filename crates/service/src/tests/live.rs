//! Streams of read models.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{HttpMessage as _, HttpRequest, get, http::StatusCode, middleware::from_fn, web};
use event_store::{Position, StoreError, Touched};
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{oneshot, watch},
    time::timeout,
};
use uuid::Uuid;

use super::{Running, serve, service, settings};
use crate::{
    Changes, HttpError,
    http::{error_code::ErrorCode, live::Log, streamed::Streamed},
    live,
};

/// A log in memory. Each event sets the text of a note.
#[derive(Clone)]
struct Notes {
    events: Arc<Mutex<Vec<(Uuid, String)>>>,
    head: watch::Sender<Position>,
    epoch: Arc<AtomicU64>,
    /// The next read of such a note is answered when its sender is dropped.
    held: Arc<Mutex<HashMap<Uuid, oneshot::Receiver<()>>>>,
    /// How often a note was read, and how often the log was asked what changed.
    reads: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Log for Notes {
    fn head(&self) -> watch::Receiver<Position> {
        self.head.subscribe()
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn touched(&self, after: Position) -> BoxFuture<'static, Result<Touched, StoreError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let events = self.events.lock().unwrap();
        let from = usize::try_from(after.0).unwrap();
        let ids = (from..events.len()).map(|at| (events[at].0, Position(i64::try_from(at).unwrap() + 1))).collect();
        let touched = Touched { ids, up_to: after.max(Position(i64::try_from(events.len()).unwrap())) };
        async move { Ok(touched) }.boxed()
    }
}

impl Notes {
    fn serve() -> (Self, Running) {
        let notes = Self {
            events: Arc::default(),
            head: watch::Sender::new(Position::START),
            epoch: Arc::default(),
            held: Arc::default(),
            reads: Arc::default(),
            asked: Arc::default(),
        };
        let service = service(settings(&[])).data(notes.clone()).data(Changes::of_log(notes.clone()));
        let running = serve(service, |app| {
            app.service(note).service(notes_with);
        });
        (notes, running)
    }

    /// Restores the log to an earlier position.
    fn restore(&self, to: i64) {
        self.events.lock().unwrap().truncate(usize::try_from(to).unwrap());
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.head.send_replace(Position(to));
    }

    /// Holds the next read of a note until the sender is dropped.
    fn hold(&self, id: Uuid) -> oneshot::Sender<()> {
        let (sender, receiver) = oneshot::channel();
        self.held.lock().unwrap().insert(id, receiver);
        sender
    }

    /// Waits until at most so many reads are still to be held.
    async fn held(&self, left: usize) {
        eventually(|| self.held.lock().unwrap().len() <= left).await;
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
    let events = notes.events.lock().unwrap().clone();
    answered(&request, &events, false)?;
    let held = notes.held.lock().unwrap().remove(&id);
    if let Some(held) = held {
        held.await.unwrap_err();
    }
    let text = events.iter().rev().find(|(of, _)| *of == *id).map(|(_, text)| web::Json(json!(text)));
    text.ok_or_else(|| HttpError::refusal(StatusCode::NOT_FOUND, "unknown_note", "there is no such note"))
}

/// The notes whose text is an id.
#[utoipa::path(get, path = "/with/{id}")]
#[get("/with/{id}", wrap = "from_fn(live)")]
async fn notes_with(id: web::Path<Uuid>, request: HttpRequest, notes: web::Data<Notes>) -> Result<web::Json<Value>, HttpError> {
    let events = notes.events.lock().unwrap().clone();
    answered(&request, &events, true)?;
    let newest: HashMap<_, _> = events.into_iter().collect();
    let with: Vec<_> = newest.into_iter().filter(|(_, text)| *text == id.to_string()).map(|(of, _)| of).collect();
    Ok(web::Json(json!(with)))
}

fn answered(request: &HttpRequest, events: &[(Uuid, String)], of_every_key: bool) -> Result<(), HttpError> {
    let head = Position(i64::try_from(events.len()).unwrap());
    if let Some(streamed) = request.extensions().get::<Streamed>() {
        if streamed.least > head {
            return Err(HttpError::new(ErrorCode::Behind, "the log is not there yet").expected());
        }
        streamed.answered(head, of_every_key);
    }
    Ok(())
}

/// The HTTP workers, among which connections are spread.
fn workers() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

async fn eventually(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.unwrap();
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
    assert!(notes.reads() <= STREAMS + workers(), "{} reads", notes.reads());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn stream_resumes_after_the_last_event_id() {
    let (notes, running) = Notes::serve();
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let path = format!("/notes/{id}");
    notes.write(id, "one");
    notes.write(other, "somebody else's");
    // Whatever has changed since, it begins with the answer as it is.
    let mut client = Client::open(&running, &path, "Last-Event-ID: 1\r\n").await;
    let (position, answer) = client.next().await;
    assert!(position >= 1 && answer == json!("one"), "{position}: {answer}");
    notes.write(id, "two");
    assert_eq!(client.next().await, (3, json!("two")));
    let mut behind = Client::open(&running, &path, "Last-Event-ID: 2\r\n").await;
    assert_eq!(behind.next().await, (3, json!("two")));
    running.stop().await.unwrap();
}

/// The event names the note only, and the answer does not have it any more.
#[tokio::test]
async fn stream_of_every_key_resumes_after_a_row_left() {
    let (notes, running) = Notes::serve();
    let (row, text) = (Uuid::now_v7(), Uuid::now_v7());
    let path = format!("/with/{text}");
    notes.write(row, text.to_string());
    let mut client = Client::open(&running, &path, "").await;
    assert_eq!(client.next().await, (1, json!([row])));
    drop(client);
    notes.write(row, "other");
    let mut client = Client::open(&running, &path, "Last-Event-ID: 1\r\n").await;
    assert_eq!(client.next().await, (2, json!([])));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn stream_goes_on_after_the_log_was_restored() {
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    let path = format!("/notes/{id}");
    notes.write(id, "one");
    notes.write(id, "two");
    let mut open = Client::open(&running, &path, "").await;
    assert_eq!(open.next().await, (2, json!("two")));
    notes.restore(1);
    assert_eq!(open.next().await, (1, json!("one")));
    let mut again = Client::open(&running, &path, "Last-Event-ID: 2\r\n").await;
    assert_eq!(again.next().await, (1, json!("one")));
    notes.write(id, "other");
    assert_eq!(open.next().await, (2, json!("other")));
    assert_eq!(again.next().await, (2, json!("other")));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn stream_never_goes_back() {
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    let path = format!("/notes/{id}");
    notes.write(id, "one");
    let mut first = Client::open(&running, &path, "").await;
    assert_eq!(first.next().await, (1, json!("one")));
    let hold = notes.hold(id);
    notes.write(id, "two");
    notes.held(0).await;
    notes.write(id, "three");
    // At least one is in the same worker.
    let mut later = vec![];
    for _ in 0..2 * workers() {
        let mut client = Client::open(&running, &path, "").await;
        assert_eq!(client.next().await, (3, json!("three")));
        later.push(client);
    }
    drop(hold);
    assert_eq!(first.next().await, (2, json!("two")));
    assert_eq!(first.next().await, (3, json!("three")));
    notes.write(id, "four");
    for client in &mut later {
        assert_eq!(client.next().await, (4, json!("four")));
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn streams_of_a_read_model_that_is_behind_leave_others_alone() {
    let (notes, running) = Notes::serve();
    let healthy = Uuid::now_v7();
    notes.write(healthy, "before");
    let mut client = Client::open(&running, &format!("/notes/{healthy}"), "").await;
    client.next().await;
    let mut behind = vec![];
    for _ in 0..12 * workers() {
        let id = Uuid::now_v7();
        notes.write(id, "before");
        let mut stream = Client::open(&running, &format!("/notes/{id}"), "").await;
        stream.next().await;
        behind.push((id, stream));
    }
    let holds: Vec<_> = behind.iter().map(|(id, _)| notes.hold(*id)).collect();
    for (id, _) in &behind {
        notes.write(*id, "after");
    }
    notes.held(4 * workers()).await;
    notes.write(healthy, "after");
    assert_eq!(client.next().await.1, json!("after"));
    drop(holds);
    for (_, stream) in &mut behind {
        assert_eq!(stream.next().await.1, json!("after"));
    }
    running.stop().await.unwrap();
}

/// Without anybody who waits for it, a process does not ask for the head at each announcement.
#[tokio::test]
async fn head_is_waited_for_only_while_there_are_streams() {
    let (notes, running) = Notes::serve();
    let id = Uuid::now_v7();
    let path = format!("/notes/{id}");
    for turn in 0..2 {
        notes.write(id, format!("before {turn}"));
        assert_eq!(running.get(&path).await.status, 200);
        assert_eq!(notes.head.receiver_count(), 0);
        let mut client = Client::open(&running, &path, "").await;
        client.next().await;
        assert!(notes.head.receiver_count() > 0);
        notes.write(id, format!("after {turn}"));
        assert_eq!(client.next().await.1, json!(format!("after {turn}")));
        drop(client);
        // The process notices that the client is gone when it sends to it.
        eventually(|| {
            notes.write(id, Uuid::now_v7().to_string());
            notes.head.receiver_count() == 0
        })
        .await;
    }
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
        eventually(|| notes.reads() > reads).await;
    }
    notes.write(id, "last");
    let mut events = 0;
    while client.next().await.1 != json!("last") {
        events += 1;
    }
    assert!(events < ANSWERS / 2, "{events} of {ANSWERS} answers waited for the reader");
    running.stop().await.unwrap();
}
