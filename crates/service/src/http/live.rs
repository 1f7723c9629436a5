//! Read models that push: a query that accepts `text/event-stream` is answered with its answer now, and again whenever it changes.
//!
//! While there are streams, one task of the process asks the log, once a tick, which ids the newest events carry. It wakes only the answers that
//! depend on such an id.
//! An answer is then read again with the query's own handler, once for all streams of a worker that show it. A stream keeps no queue: it sends
//! the newest answer when the client takes it, so a slow client misses answers in between.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use actix_web::{
    Error, HttpMessage, HttpRequest, HttpResponse,
    body::{BoxBody, MessageBody, to_bytes},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{self, HeaderMap},
    },
    middleware::Next,
    web::{Bytes, Data},
};
use event_store::{EventStore, LogEvent, Position, StoreError, Touched};
use futures::{FutureExt as _, future::BoxFuture, stream::unfold};
use tokio::{
    runtime::Handle,
    sync::watch,
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

/// The media type of a stream.
const EVENT_STREAM: &str = "text/event-stream";

/// Knows which answers depend on which ids, and wakes them. Clones share it.
#[derive(Clone)]
pub struct Changes(Arc<Followed>);

/// A log that is followed while there are streams.
struct Followed {
    log: Box<dyn Log>,
    runtime: Handle,
    following: Mutex<Weak<Following>>,
}

/// Tells streams the head, the epoch and the touched ids of a log.
pub(crate) trait Log: Send + Sync + 'static {
    fn head(&self) -> watch::Receiver<Position>;
    fn epoch(&self) -> u64;
    fn touched(&self, after: Position) -> BoxFuture<'static, Result<Touched, StoreError>>;
}

impl<E: LogEvent> Log for EventStore<E> {
    fn head(&self) -> watch::Receiver<Position> {
        self.head_watcher().subscribe()
    }

    fn epoch(&self) -> u64 {
        self.head_watcher().epoch()
    }

    fn touched(&self, after: Position) -> BoxFuture<'static, Result<Touched, StoreError>> {
        let log = self.clone();
        async move { log.touched(after).await }.boxed()
    }
}

/// The answers that streams show, and the task that wakes them. It ends with the last of them.
struct Following {
    followed: Arc<Followed>,
    interests: Mutex<Interests>,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Wake {
    epoch: u64,
    position: Position,
}

impl Changes {
    /// Follows a log in this Tokio runtime while there are streams.
    pub fn of<E: LogEvent>(log: &EventStore<E>) -> Self {
        Self::of_log(log.clone())
    }

    pub(crate) fn of_log(log: impl Log) -> Self {
        Self(Arc::new(Followed { log: Box::new(log), runtime: Handle::current(), following: Mutex::default() }))
    }

    fn following(&self) -> Arc<Following> {
        let mut known = self.0.following.lock().unwrap_or_else(PoisonError::into_inner);
        known.upgrade().unwrap_or_else(|| {
            let following = Following::start(&self.0);
            *known = Arc::downgrade(&following);
            following
        })
    }
}

impl Following {
    fn start(followed: &Arc<Followed>) -> Arc<Self> {
        let ended = CancellationToken::new();
        // In this order: an epoch that begins in between is noticed.
        let (epoch, mut head) = (followed.log.epoch(), followed.log.head());
        let read_to = *head.borrow_and_update();
        let following = Arc::new(Self {
            followed: followed.clone(),
            interests: Mutex::default(),
            head: head.clone(),
            read_to: AtomicI64::new(read_to.0),
            _ends: ended.clone().drop_guard(),
        });
        let follow = Self::follow(Arc::downgrade(&following), epoch, head, read_to);
        followed.runtime.spawn(async move { ended.run_until_cancelled(follow).await });
        following
    }

    /// Wakes answers until the head is not known any more.
    async fn follow(following: Weak<Self>, mut current: u64, mut head: watch::Receiver<Position>, mut read_to: Position) {
        while head.changed().await.is_ok() {
            let mut newest = *head.borrow_and_update();
            while let Some(following) = following.upgrade() {
                let log = &following.followed.log;
                if log.epoch() != current || read_to == Position::START || newest < read_to {
                    // The positions that were read may belong to a lost log, or the head was not yet known. An epoch begins before its head
                    // is known.
                    (current, read_to) = (log.epoch(), newest);
                    following.read_to.store(newest.0, Ordering::SeqCst);
                    following.wake_all(Wake { epoch: current, position: newest });
                }
                if read_to >= newest {
                    break;
                }
                match log.touched(read_to).await {
                    Ok(touched) => {
                        // In this order: an answer that registers an id in between asks for what it has missed.
                        following.read_to.store(touched.up_to.0, Ordering::SeqCst);
                        following.wake(&touched, current);
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
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Interests> {
        self.interests.lock().unwrap_or_else(PoisonError::into_inner)
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
        Position(self.read_to.load(Ordering::SeqCst)).max(*self.head.borrow())
    }

    /// Registers an answer. It is woken for what was appended after this.
    fn interest(self: Arc<Self>) -> Interest {
        let number = {
            let mut interests = self.lock();
            interests.next += 1;
            interests.next
        };
        Interest { following: self, number, ids: HashSet::new(), wake: watch::Sender::new(Wake::default()) }
    }
}

/// The ids that an answer depends on.
struct Interest {
    following: Arc<Following>,
    number: u64,
    ids: HashSet<Uuid>,
    wake: watch::Sender<Wake>,
}

impl Interest {
    fn set(&mut self, ids: HashSet<Uuid>) {
        let mut interests = self.following.lock();
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
    /// The epoch in which its read began.
    epoch: u64,
    /// It is complete up to here.
    position: Position,
    json: Bytes,
}

impl Answer {
    /// Returns the epoch and position that the answer includes.
    fn at(&self) -> Wake {
        Wake { epoch: self.epoch, position: self.position }
    }

    /// The answer as a server-sent event. JSON has no line breaks.
    fn event(&self) -> Bytes {
        [b"id: ".as_slice(), self.position.to_string().as_bytes(), b"\ndata: ", &self.json, b"\n\n"].concat().into()
    }
}

/// An answer that the streams of a worker share, by the log and the query.
type Shared = HashMap<(usize, String), watch::Sender<Answer>>;

thread_local! {
    static SHARED: RefCell<Shared> = RefCell::default();
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
    let mut query =
        Query { request: request.request().clone(), next, in_path: ids_in_path(request.request()), followed: changes.0.clone() };
    // Registered before the read: what is appended after it wakes the answer.
    let mut interest = changes.following().interest();
    interest.set(query.in_path.clone());
    let mut read = query.read(Streamed::first(last.unwrap_or_default())).await?;
    if last.is_some() && is_unavailable(&read) {
        // The log may have been restored to an earlier position. A browser would not try again after an error.
        read = query.read(Streamed::again(Position::START)).await?;
    }
    let Read { answer, ids } = match read {
        Ok(read) => read,
        Err(refused) => return Ok(refused),
    };
    interest.set(ids);
    let newest = interest.following.known();
    let key = (Arc::as_ptr(&changes.0).addr(), request.uri().to_string());
    let shared = SHARED.with_borrow(|shared| shared.get(&key).map(watch::Sender::subscribe));
    let mut answers = shared.unwrap_or_else(|| {
        let (sender, receiver) = watch::channel(answer.clone());
        SHARED.with_borrow_mut(|shared| shared.insert(key.clone(), sender.clone()));
        actix_web::rt::spawn(keep_current(key, query, interest, sender, newest));
        receiver
    });
    if answer.at() < answers.borrow().at() {
        answers.mark_changed();
    }
    let draining = request.app_data::<Data<Draining>>().map(|draining| Draining::clone(draining)).unwrap_or_default();
    let first = Some(answer.event());
    let state = Stream { answers, sent: answer, draining, awake: interval_at(Instant::now() + KEEP_AWAKE, KEEP_AWAKE), first };
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
                    // The stream began with an answer of its own, and the shared one was read before that.
                    if answer.at() < self.sent.at() {
                        continue;
                    }
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
    followed: Arc<Followed>,
}

/// The result of a query.
struct Read {
    answer: Answer,
    /// The ids that the answer depends on.
    ids: HashSet<Uuid>,
}

impl<B: MessageBody + 'static> Query<B> {
    /// Runs the query's handler. Returns what it has read, or the answer that is none of the read model.
    async fn read(&mut self, streamed: Streamed) -> Result<Result<Read, HttpResponse>, Error> {
        let epoch = self.followed.log.epoch();
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
        let position = streamed.least.max(streamed.complete_to());
        Ok(Ok(Read { answer: Answer { epoch, position, json }, ids }))
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
    let mut woken = interest.wake.subscribe();
    // The projection may not have applied what was appended before.
    let mut wanted = Wake { position: newest, ..answers.borrow().at() }.max(*woken.borrow_and_update());
    // A stream that came since keeps the answer alive.
    while answers.receiver_count() > 0 {
        if answers.borrow().at() >= wanted {
            tokio::select! {
                () = answers.closed() => {}
                _ = woken.changed() => wanted = *woken.borrow_and_update(),
            }
            continue;
        }
        let epoch = wanted.epoch;
        let read = tokio::select! {
            () = answers.closed() => continue,
            // The log may have been restored, and may never reach the position.
            Ok(wake) = woken.wait_for(|wake| wake.epoch > epoch) => {
                wanted = *wake;
                continue;
            }
            read = query.read(Streamed::again(wanted.position)) => read,
        };
        match read {
            Ok(Ok(Read { answer, ids })) => {
                // Wakes for the new ids begin now. What was appended in between is read at once.
                let has_new = !ids.is_subset(&interest.ids);
                interest.set(ids);
                if has_new {
                    wanted = wanted.max(Wake { epoch: answer.epoch, position: interest.following.known() });
                }
                answers.send_replace(answer);
            }
            Ok(read) if is_unavailable(&read) => tokio::select! {
                () = answers.closed() => {}
                () = sleep(RETRY) => {}
            },
            // The client asks again, and is told why.
            _ => break,
        }
    }
    SHARED.with_borrow_mut(|shared| shared.remove(&key));
}

/// Whether a read may succeed later.
fn is_unavailable(read: &Result<Read, HttpResponse>) -> bool {
    read.as_ref().is_err_and(|answer| answer.status() == StatusCode::SERVICE_UNAVAILABLE)
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
