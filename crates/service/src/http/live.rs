//! Read models that push: a query that accepts `text/event-stream` is answered with its answer now, and again whenever it changes.
//!
//! One task of the process asks the log, once a tick, which ids the newest events carry. It wakes only the answers that depend on such an id.
//! An answer is then read again with the query's own handler, once for all streams of a worker that show it. A stream keeps no queue: it sends
//! the newest answer when the client takes it, so a slow client misses answers in between.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use actix_web::{
    Error, HttpMessage, HttpRequest, HttpResponse,
    body::{BoxBody, MessageBody, to_bytes},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderMap},
    middleware::Next,
    web::{Bytes, Data},
};
use event_store::{EventStore, LogEvent, Position, StoreError, Touched};
use futures::{FutureExt as _, future::BoxFuture, stream::unfold};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, interval_at, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::{error::HttpError, error_code::ErrorCode, position::Draining, streamed::Streamed};

/// The least time between two questions to the log.
const TICK: Duration = Duration::from_millis(100);
/// The pause after a question or an answer failed.
const RETRY: Duration = Duration::from_secs(1);
/// The time after which a comment keeps proxies from closing a silent stream.
const KEEP_AWAKE: Duration = Duration::from_secs(15);
/// How many answers a worker reads at once. The other permits to read are for clients that wait.
const READS: usize = 8;

/// The media type of a stream.
const EVENT_STREAM: &str = "text/event-stream";

/// Knows which answers depend on which ids, and wakes them. Clones share it.
#[derive(Clone)]
pub struct Changes(Arc<Watched>);

struct Watched {
    interests: Mutex<Interests>,
    touched: Box<dyn Fn(Position) -> BoxFuture<'static, Result<Touched, StoreError>> + Send + Sync>,
    head: watch::Receiver<Position>,
    /// Wakes were sent for the events up to here.
    read_to: AtomicI64,
    _ends: DropGuard,
}

#[derive(Default)]
struct Interests {
    by_id: HashMap<Uuid, HashMap<u64, watch::Sender<Wake>>>,
    next: u64,
}

/// The position of the newest event that an answer may depend on. In another epoch, positions before it say nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wake {
    epoch: u64,
    position: Position,
}

impl Changes {
    /// Follows a log until the last clone is dropped. Call it within a Tokio runtime.
    pub fn of<E: LogEvent>(log: &EventStore<E>) -> Self {
        let (watcher, reading) = (log.head_watcher().clone(), log.clone());
        let touched = move |after| {
            let log = reading.clone();
            async move { log.touched(after).await }.boxed()
        };
        let head = watcher.subscribe();
        Self::start(head, move || watcher.epoch(), touched)
    }

    pub(crate) fn start(
        head: watch::Receiver<Position>,
        epoch: impl Fn() -> u64 + Send + Sync + 'static,
        touched: impl Fn(Position) -> BoxFuture<'static, Result<Touched, StoreError>> + Send + Sync + 'static,
    ) -> Self {
        let ended = CancellationToken::new();
        let changes = Self(Arc::new(Watched {
            interests: Mutex::default(),
            touched: Box::new(touched),
            head: head.clone(),
            read_to: AtomicI64::new(0),
            _ends: ended.clone().drop_guard(),
        }));
        let watched = Arc::downgrade(&changes.0);
        tokio::spawn(async move {
            let following = async {
                let (mut head, mut current) = (head, epoch());
                let mut read_to = *head.borrow();
                while head.changed().await.is_ok() {
                    let mut newest = *head.borrow_and_update();
                    while let Some(changes) = watched.upgrade().map(Changes) {
                        if epoch() != current || read_to == Position::START {
                            // What was read may be of a log that was given up, or of one whose head was not known.
                            (current, read_to) = (epoch(), newest);
                            changes.0.read_to.store(newest.0, Ordering::SeqCst);
                            changes.wake_all(Wake { epoch: current, position: newest });
                        } else if changes.lock().by_id.is_empty() {
                            read_to = newest;
                        }
                        if read_to >= newest {
                            break;
                        }
                        match (changes.0.touched)(read_to).await {
                            Ok(touched) => {
                                // In this order: an answer that registers an id in between asks for what it has missed.
                                changes.0.read_to.store(touched.up_to.0, Ordering::SeqCst);
                                changes.wake(&touched, current);
                                // Without an event, another server has answered, which is behind.
                                if touched.up_to == read_to {
                                    sleep(RETRY).await;
                                }
                                read_to = touched.up_to;
                            }
                            Err(error) => {
                                tracing::debug!(%error, "streams wait for the log");
                                sleep(RETRY).await;
                            }
                        }
                        sleep(TICK).await;
                        newest = *head.borrow_and_update();
                    }
                }
            };
            tokio::select! {
                () = ended.cancelled() => {}
                () = following => {}
            }
        });
        changes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Interests> {
        self.0.interests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, touched: &Touched, epoch: u64) {
        let interests = self.lock();
        for (id, position) in &touched.ids {
            for wake in interests.by_id.get(id).into_iter().flat_map(HashMap::values) {
                wake.send_if_modified(|wake| {
                    let newer = *position > wake.position || epoch != wake.epoch;
                    if newer {
                        *wake = Wake { epoch, position: *position };
                    }
                    newer
                });
            }
        }
    }

    fn wake_all(&self, now: Wake) {
        for wake in self.lock().by_id.values().flat_map(HashMap::values) {
            wake.send_if_modified(|wake| std::mem::replace(wake, now) != now);
        }
    }

    /// The newest position known. An answer that has registered its ids, and then reads up to here, misses nothing.
    fn known(&self) -> Position {
        Position(self.0.read_to.load(Ordering::SeqCst)).max(*self.0.head.borrow())
    }

    /// Registers an answer. It is woken for what was appended after this.
    fn interest(&self) -> Interest {
        let number = {
            let mut interests = self.lock();
            interests.next += 1;
            interests.next
        };
        Interest { changes: self.clone(), number, ids: HashSet::new(), wake: watch::Sender::new(Wake::default()) }
    }
}

/// The ids that an answer depends on.
struct Interest {
    changes: Changes,
    number: u64,
    ids: HashSet<Uuid>,
    wake: watch::Sender<Wake>,
}

impl Interest {
    fn set(&mut self, ids: HashSet<Uuid>) {
        let mut interests = self.changes.lock();
        for id in ids.difference(&self.ids) {
            interests.by_id.entry(*id).or_default().insert(self.number, self.wake.clone());
        }
        for id in self.ids.difference(&ids) {
            if let Some(by_number) = interests.by_id.get_mut(id) {
                by_number.remove(&self.number);
                if by_number.is_empty() {
                    interests.by_id.remove(id);
                }
            }
        }
        drop(interests);
        self.ids = ids;
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.set(HashSet::new());
    }
}

/// An answer of a query.
#[derive(Debug, Clone)]
struct Answer {
    /// It is complete up to here.
    position: Position,
    json: Bytes,
}

impl Answer {
    /// The answer as a server-sent event. JSON has no line breaks.
    fn event(&self) -> Bytes {
        [b"id: ".as_slice(), self.position.to_string().as_bytes(), b"\ndata: ", &self.json, b"\n\n"].concat().into()
    }
}

/// An answer that the streams of a worker share, by the log and the query.
type Shared = HashMap<(usize, String), watch::Sender<Answer>>;

thread_local! {
    static SHARED: RefCell<Shared> = RefCell::default();
    static PERMITS: Rc<Semaphore> = Rc::new(Semaphore::new(READS));
}

/// Answers a query as a stream if the client accepts one. A slice opts in by wrapping its route with it.
///
/// The first answer is the query's own, so a refusal is answered before a stream begins.
///
/// # Errors
/// Those of the query. 400 if it asks for the past, or if `Last-Event-ID` is no position.
pub async fn live<B: MessageBody + 'static>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<BoxBody>, Error> {
    let changes = request.app_data::<Data<Changes>>().map(|changes| Changes::clone(changes));
    let (Some(changes), true) = (changes, accepts_stream(request.headers())) else {
        let mut response = next.call(request).await?.map_into_boxed_body();
        response.headers_mut().append(header::VARY, header::HeaderValue::from_static("accept"));
        return Ok(response);
    };
    let response = stream(&request, next, changes).await;
    Ok(match response {
        Ok(response) => request.into_response(response),
        Err(error) => request.error_response(error),
    })
}

/// Opens a stream, or answers what the query answers instead of a read model.
async fn stream<B: MessageBody + 'static>(request: &ServiceRequest, next: Next<B>, changes: Changes) -> Result<HttpResponse, Error> {
    let last = last_event_id(request.headers())?;
    if request.query_string().split('&').any(|pair| pair.split('=').next() == Some("at")) {
        return Err(HttpError::new(
            ErrorCode::InvalidQuery,
            "at in the query: what was answered at a position never changes, so it has no stream",
        )
        .into());
    }
    let mut query = Query { request: request.request().clone(), next, in_path: ids_in_path(request.request()) };
    // Registered before the read: what is appended after it wakes the answer.
    let mut interest = changes.interest();
    interest.set(query.in_path.clone());
    let (answer, ids) = match query.read(last.unwrap_or_default()).await? {
        Ok(read) => read,
        Err(refused) => return Ok(refused),
    };
    interest.set(ids);
    let newest = changes.known();
    let known = match last {
        Some(last) => {
            let since = (changes.0.touched)(last).await.map_err(HttpError::from)?;
            since.up_to >= answer.position && since.ids.keys().all(|id| !interest.ids.contains(id))
        }
        None => false,
    };
    let key = (Arc::as_ptr(&changes.0).addr(), request.uri().to_string());
    let shared = SHARED.with_borrow(|shared| shared.get(&key).map(watch::Sender::subscribe));
    let mut answers = shared.unwrap_or_else(|| {
        let (sender, receiver) = watch::channel(answer.clone());
        SHARED.with_borrow_mut(|shared| shared.insert(key.clone(), sender.clone()));
        actix_web::rt::spawn(keep_current(key, query, interest, sender, newest));
        receiver
    });
    // The shared answer may be older than this one.
    if answers.borrow().position > answer.position {
        answers.mark_changed();
    }
    let draining = request.app_data::<Data<Draining>>().map(|draining| Draining::clone(draining)).unwrap_or_default();
    let first = if known { Bytes::from_static(b":\n\n") } else { answer.event() };
    let state = Stream { answers, sent: answer, draining, awake: interval_at(Instant::now() + KEEP_AWAKE, KEEP_AWAKE), first: Some(first) };
    let events = unfold(state, |mut state| async move { state.next().await.map(|event| (Ok::<_, Error>(event), state)) });
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, EVENT_STREAM))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::VARY, "accept"))
        .streaming(events))
}

/// The stream of one client.
struct Stream {
    answers: watch::Receiver<Answer>,
    sent: Answer,
    draining: Draining,
    awake: tokio::time::Interval,
    first: Option<Bytes>,
}

impl Stream {
    /// The next bytes to send, or `None` when the process stops or the answer cannot be read any more.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            tokio::select! {
                () = self.draining.begun() => return None,
                changed = self.answers.changed() => {
                    changed.ok()?;
                    let answer = self.answers.borrow_and_update().clone();
                    let differs = answer.json != self.sent.json;
                    // Streams with the same answer share its bytes.
                    self.sent = answer;
                    if differs {
                        self.awake.reset();
                        return Some(self.sent.event());
                    }
                }
                _ = self.awake.tick() => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }
}

/// A query that can be answered again.
struct Query<B> {
    request: HttpRequest,
    next: Next<B>,
    in_path: HashSet<Uuid>,
}

impl<B: MessageBody + 'static> Query<B> {
    /// Runs the query's handler. The answer includes the log up to `least`. Returns also the ids that the answer depends on; or the answer that
    /// is none of the read model.
    async fn read(&mut self, least: Position) -> Result<Result<(Answer, HashSet<Uuid>), HttpResponse>, Error> {
        let streamed = Streamed::asking(least);
        self.request.extensions_mut().insert(streamed.clone());
        let response = self.next.call(ServiceRequest::from_request(self.request.clone())).await?.map_into_boxed_body();
        if !response.status().is_success() {
            return Ok(Err(response.into_parts().1));
        }
        let json = to_bytes(response.into_body()).await.map_err(|error| HttpError::fault(anyhow::anyhow!("{error}")))?;
        let mut ids = self.in_path.clone();
        if streamed.is_of_every_key() {
            ids_in(&serde_json::from_slice(&json).map_err(HttpError::fault)?, &mut ids);
        }
        let position = least.max(streamed.complete_to());
        Ok(Ok((Answer { position, json }, ids)))
    }
}

/// Reads an answer again whenever it may have changed, until no stream shows it.
async fn keep_current<B: MessageBody + 'static>(
    key: (usize, String),
    mut query: Query<B>,
    mut interest: Interest,
    answers: watch::Sender<Answer>,
    newest: Position,
) {
    let permits = PERMITS.with(Rc::clone);
    let mut woken = interest.wake.subscribe();
    // The projection may not have applied what was appended before.
    let mut wanted = *woken.borrow_and_update();
    wanted.position = wanted.position.max(newest);
    let mut complete_to = answers.borrow().position;
    loop {
        while complete_to < wanted.position {
            let read = {
                let _permit = permits.acquire().await;
                query.read(wanted.position).await
            };
            match read {
                Ok(Ok((answer, ids))) => {
                    // Wakes for the new ids begin now. What was appended in between is read at once.
                    let has_new = !ids.is_subset(&interest.ids);
                    interest.set(ids);
                    complete_to = answer.position;
                    if has_new {
                        wanted.position = wanted.position.max(interest.changes.known());
                    }
                    answers.send_replace(answer);
                }
                Ok(Err(response)) if response.status().as_u16() == 503 => {
                    tokio::select! {
                        () = answers.closed() => break,
                        () = sleep(RETRY) => {}
                    }
                }
                Ok(Err(_)) | Err(_) => {
                    // The client asks again, and is told why.
                    SHARED.with_borrow_mut(|shared| shared.remove(&key));
                    return;
                }
            }
        }
        tokio::select! {
            () = answers.closed() => {}
            changed = woken.changed() => if changed.is_ok() {
                let wake = *woken.borrow_and_update();
                if wake.epoch != wanted.epoch {
                    complete_to = Position::START;
                }
                wanted = wake;
                continue;
            },
        }
        // A stream that came since keeps the answer alive.
        if answers.receiver_count() == 0 {
            SHARED.with_borrow_mut(|shared| shared.remove(&key));
            return;
        }
    }
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    let types = headers.get_all(header::ACCEPT).filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    types.filter_map(|one| one.split(';').next()).any(|one| one.trim().eq_ignore_ascii_case(EVENT_STREAM))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Position>, HttpError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let position = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|position| *position >= 0);
    let refused = || HttpError::new(ErrorCode::MalformedRequest, "the header Last-Event-ID must be the id of an event of this stream");
    position.map(|position| Some(Position(position))).ok_or_else(refused)
}

fn ids_in_path(request: &HttpRequest) -> HashSet<Uuid> {
    request.match_info().iter().filter_map(|(_, text)| text.parse().ok()).collect()
}

/// Collects every id in an answer.
fn ids_in(json: &serde_json::Value, ids: &mut HashSet<Uuid>) {
    match json {
        serde_json::Value::String(text) => ids.extend(Uuid::parse_str(text).ok()),
        serde_json::Value::Array(values) => values.iter().for_each(|value| ids_in(value, ids)),
        serde_json::Value::Object(fields) => fields.values().for_each(|value| ids_in(value, ids)),
        _ => {}
    }
}
