//! The appender: one task and two connections a process. While a call is in flight, further appends gather, and the next call carries
//! them, each with its own condition and outcome; it is sent behind the one in flight as soon as it carries as many, so that the database
//! goes from one to the next. Under load batches grow by themselves; alone, an append waits for nothing. Beside other processes that
//! append as well, a process under load has one call at a time, with all that come again and again: see [`Others`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Executor, FromRow, PgConnection, Row,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    append::{
        batch::Batch,
        pending::{Append, AppendOutcome},
    },
    connection::with_timeout,
    error::{StoreError, ends_the_connection},
    metrics::METRICS,
    position::Position,
    query::query_item::{QueryColumns, placeholders},
    read::{
        answer::{Answer, Found},
        head_watcher::HeadWatcher,
    },
    settings::StoreSettings,
};

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) options: PgConnectOptions,
    pub(crate) ids: Vec<&'static str>,
    pub(crate) settings: StoreSettings,
}

/// A connection, and what is needed to see what became of a call on it that got no answer.
struct Session {
    connection: PgConnection,
    backend: Backend,
    /// The last head known before a call.
    head: i64,
}

/// A server process: its start tells it from another one that got the same number.
#[derive(Clone)]
struct Backend {
    pid: i32,
    started: String,
}

struct Appender {
    settings: Settings,
    sql: Arc<str>,
    heads: HeadWatcher,
    others: Arc<Others>,
    session: Option<Session>,
}

/// What waits to be sent.
struct Waiting {
    queue: mpsc::Receiver<Append>,
    closed: CancellationToken,
    first_in: VecDeque<Append>,
    max_batch: usize,
    others: Arc<Others>,
    gathers: Gathers,
}

/// Whether other processes append much at this time: of the positions that the last calls found taken, at least one in five was not
/// written here. With two calls of half its appends each, every process would take two turns at the log's lock for what one turn does, and
/// pay for two flushes; and while others have the lock, there is time to decide what comes again.
///
/// Kept are where the log ended after each of the last calls, and what this process had written until then. Calls may be answered in
/// another order than the database had them: what the first of the two left out is then taken for somebody else's until the other is
/// answered, which is one call of many. So is what was written by a call whose answer was lost.
#[derive(Default)]
struct Others(std::sync::Mutex<VecDeque<(i64, i64)>>);

impl Others {
    /// More than a moment, and few enough that a process is soon alone again: at 64 tasks, 20 ms.
    const CALLS: usize = 16;

    /// A call found the log to end at `head`, and left it to end at `end`.
    fn note(&self, head: i64, end: i64) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.front().is_some_and(|(oldest, _)| head < *oldest) {
            // The log was reset or restored; or these were the first calls.
            calls.clear();
        }
        let (newest, own) = calls.back().copied().unwrap_or((head, 0));
        calls.push_back((newest.max(end), own + end - head));
        if calls.len() > Self::CALLS + 1 {
            calls.pop_front();
        }
    }

    fn append(&self) -> bool {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((from, own_from)), Some((to, own_to))) = (calls.front(), calls.back()) else { return false };
        let (all, own) = (to - from, own_to - own_from);
        calls.len() > Self::CALLS && 4 * (all - own) >= own.max(1)
    }
}

/// Beside others, fewer than this are not gathered: a process with little to append keeps its turn, and its time to answer.
const GATHERED: usize = 8;

/// Beside others, how long those are waited for that may come again, after a call was answered: longer than callers on the same machine
/// take that get their answers over HTTP and send their next commands. (With 1 ms, two processes over HTTP did 15,900 a second on two
/// cores, with 5, 10 or 20 ms 16,500 to 17,000.)
const GATHERING: Duration = Duration::from_millis(5);

/// How long a call may take before another one goes behind it, of however few: a connection that hangs holds nobody up for longer.
const LATE: Duration = Duration::from_millis(20);

/// Whether to gather at this time. Where those that are waited for do not come, as they come from outside at times of their own, or were
/// refused, it is tried again only after so many calls, and twice as many each time.
#[derive(Default)]
struct Gathers {
    /// In how many times running not all came.
    in_vain: u32,
    /// For so many calls more nobody is waited for.
    paused: u32,
}

impl Gathers {
    fn note(&mut self, all_came: bool) {
        self.in_vain = if all_came { 0 } else { (self.in_vain + 1).min(6) };
        self.paused = if all_came { 0 } else { 1 << self.in_vain };
    }
}

/// How many appends the call carries that is on its way on the other connection; 0 where none is.
type OnItsWay = watch::Sender<usize>;

pub(crate) async fn run(settings: Settings, queue: mpsc::Receiver<Append>, heads: HeadWatcher, closed: CancellationToken) {
    let ids = settings.ids.len();
    let sql: Arc<str> =
        format!("SELECT lookup, event_id, event_type, payload, more FROM event_append({})", placeholders(1, 1 + 3 + ids + 4 + ids)).into();
    let others = Arc::<Others>::default();
    let (first_in, max_batch) = (VecDeque::new(), settings.settings.max_batch);
    let waiting = Mutex::new(Waiting { queue, closed, first_in, max_batch, others: others.clone(), gathers: Gathers::default() });
    let appender =
        || Appender { settings: settings.clone(), sql: sql.clone(), heads: heads.clone(), others: others.clone(), session: None };
    let (one, other) = (OnItsWay::default(), OnItsWay::default());
    // Two calls at a time: the database has the next one when it has done with the one before, and need not wait for this process.
    tokio::join!(appender().work(&waiting, &one, &other), appender().work(&waiting, &other, &one));
}

impl Waiting {
    /// The next batch, as soon as there is one to be sent; none any more: the store is closed.
    async fn next(&mut self, other: &OnItsWay) -> Option<Vec<Append>> {
        let mut ahead = other.subscribe();
        // How many come again and again, and how many of them were on their way when last looked at.
        let (mut expected, mut carried) = (0, *ahead.borrow());
        let patience = time::sleep(LATE);
        tokio::pin!(patience);
        loop {
            while self.first_in.len() < 4 * self.max_batch
                && let Ok(append) = self.queue.try_recv()
            {
                self.first_in.push_back(append);
            }
            // Its caller has given up: nobody would learn of it.
            self.first_in.retain(|append| !append.reply.is_closed());
            let (here, ahead_of_it) = (self.first_in.len(), *ahead.borrow_and_update());
            if ahead_of_it > 0 {
                expected = (here + ahead_of_it).min(self.max_batch);
            }
            if ahead_of_it != carried {
                carried = ahead_of_it;
                patience.as_mut().reset(time::Instant::now() + if carried > 0 { LATE } else { GATHERING });
            }
            let over = patience.deadline() <= time::Instant::now();
            let beside = expected >= GATHERED && self.others.append();
            let gather = beside && self.gathers.paused == 0;
            let enough = match (gather, ahead_of_it) {
                (true, 0) => over || here >= expected,
                (true, _) => over,
                (false, _) => over || here >= ahead_of_it,
            };
            if here > 0 && enough {
                if gather && ahead_of_it == 0 {
                    self.gathers.note(here >= expected);
                    METRICS.gathered.add(1, &[]);
                    return Some(self.batch(here));
                }
                self.gathers.paused = self.gathers.paused.saturating_sub(1);
                // Half of those that come again and again go with one call and half with the next: while the database works on the one, this
                // process decides the other.
                return Some(self.batch((here + ahead_of_it).div_ceil(2)));
            }
            tokio::select! {
                biased;
                append = self.queue.recv() => match append {
                    Some(append) => self.first_in.push_back(append),
                    None if here == 0 => return None,
                    None => return Some(self.batch(here)),
                },
                _ = ahead.changed() => {}
                () = patience.as_mut(), if here > 0 && !over => {}
                () = self.closed.cancelled(), if !self.queue.is_closed() => self.queue.close(),
            }
        }
    }

    fn batch(&mut self, most: usize) -> Vec<Append> {
        let mut batch = Batch::default();
        for append in std::mem::take(&mut self.first_in) {
            if batch.appends.len() < most.min(self.max_batch) && batch.admits(&append) {
                batch.push(append);
            } else {
                self.first_in.push_back(append);
            }
        }
        let now = Instant::now();
        for append in &batch.appends {
            METRICS.append_queue_duration.record(now.duration_since(append.queued).as_secs_f64(), &[]);
        }
        batch.appends
    }
}

impl Appender {
    /// Appends what waits, until the store is closed.
    async fn work(mut self, waiting: &Mutex<Waiting>, mine: &OnItsWay, other: &OnItsWay) {
        loop {
            let Some(batch) = waiting.lock().await.next(other).await else { return };
            self.append(batch, mine).await;
        }
    }

    /// Appends a batch and answers each of its appends.
    async fn append(&mut self, mut batch: Vec<Append>, on_its_way: &OnItsWay) {
        let mut pause = Duration::ZERO;
        loop {
            on_its_way.send_replace(batch.len());
            let called = self.call(&batch).await;
            on_its_way.send_replace(0);
            match called {
                Ok(answer) => return self.answer(batch, answer),
                Err(StoreError::Unavailable(error)) if self.session.is_some() && !rolled_back(&error) => {
                    batch = self.resolve(batch, error).await;
                    if batch.is_empty() {
                        return;
                    }
                    // At once the first time; where connections are lost over and over, not as fast as they can be.
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).clamp(Duration::from_millis(10), Duration::from_millis(500));
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::Closed)) => {
                    // A server that takes no writes may have been the primary: the next connection may find the one that is.
                    self.session = None;
                    return refuse(batch, || error.again());
                }
                // One bad row hurts nobody else.
                Err(_) if batch.len() > 1 => {
                    for append in batch {
                        // Nobody need wait for all of these.
                        Box::pin(self.append(vec![append], &OnItsWay::default())).await;
                    }
                    return;
                }
                Err(error) => {
                    let mut error = Some(error);
                    return refuse(batch, || error.take().unwrap_or(StoreError::Closed));
                }
            }
        }
    }

    /// Sends a batch. After an error, a session that is left is one whose call was sent.
    async fn call(&mut self, batch: &[Append]) -> Result<Answer, StoreError> {
        if self.session.is_none() {
            let session = self.connect().await?;
            self.session = Some(session);
        }
        // The connection tells which log it is, so this is asked after it was made.
        if batch.iter().any(|append| append.epoch != self.heads.epoch()) {
            return Err(StoreError::Reset("what was decided on was read from the log before".to_owned()));
        }
        // Whatever was seen before the call is below what the call writes: what became of it is looked for from here.
        let seen = self.heads.newest().0;
        let Some(session) = &mut self.session else { return Err(StoreError::Closed) };
        session.head = session.head.max(seen);
        let ids = self.settings.ids.len();
        let mut l_append = vec![];
        let mut items = QueryColumns::new(ids);
        let (mut e_append, mut e_type, mut e_payload, mut e_metadata, mut e_ids) =
            (vec![], vec![], vec![], vec![], vec![Vec::<Option<Uuid>>::new(); ids]);
        for (n, append) in (0_i32..).zip(batch) {
            for (item, after) in append.condition.items() {
                l_append.push(n);
                items.push(item, after.0);
            }
            for event in &append.events {
                e_append.push(n);
                e_type.push(event.event_type);
                e_payload.push(event.payload.as_slice());
                e_metadata.push(append.metadata.as_str());
                for (column, id) in e_ids.iter_mut().zip(&event.ids) {
                    column.push(*id);
                }
            }
        }
        let query = items.bind(sqlx::query(&self.sql).bind(l_append)).bind(e_append).bind(e_type).bind(e_payload).bind(e_metadata);
        let query = e_ids.into_iter().fold(query, sqlx::query::Query::bind);
        let started = Instant::now();
        // A call that is not answered within this is a lost connection: its outcome is looked up on another one.
        let rows: Result<Vec<PgRow>, sqlx::Error> =
            match tokio::time::timeout(Duration::from_secs(10), query.fetch_all(&mut session.connection)).await {
                Ok(rows) => rows,
                Err(_) => Err(sqlx::Error::PoolTimedOut),
            };
        METRICS.append_duration.record(started.elapsed().as_secs_f64(), &[]);
        METRICS.append_batch.record(batch.len() as u64, &[]);
        let answer = match rows.and_then(|rows| Answer::from_rows(&rows)).map_err(StoreError::from) {
            Err(StoreError::Reset(reason)) => {
                tracing::warn!(%reason, "the log was reset or restored: forgetting what was known of it");
                self.heads.reset(Position::START);
                return Err(StoreError::Reset(reason));
            }
            answer => answer?,
        };
        session.head = answer.head;
        Ok(answer)
    }

    /// Tells each append of a batch what became of it.
    fn answer(&mut self, batch: Vec<Append>, answer: Answer) {
        let mut found: HashMap<usize, Vec<_>> = HashMap::new();
        for event in answer.found {
            found.entry(event.item).or_default().push(event);
        }
        let (mut item, mut head) = (0, answer.head);
        for append in batch {
            let mut missed = vec![];
            for own in 0..append.condition.items().count() {
                missed.extend(found.remove(&item).into_iter().flatten().map(|event| Found { item: own, ..event }));
                item += 1;
            }
            let outcome = if missed.is_empty() {
                head += i64::try_from(append.events.len()).unwrap_or_default();
                METRICS.appends.add(1, &[]);
                AppendOutcome::Written { last: Position(head) }
            } else {
                METRICS.conflicts.add(1, &[]);
                AppendOutcome::Conflict(Answer { head: answer.head, found: missed })
            };
            // A caller that is gone learns it from the log.
            let _ = append.reply.send(Ok(outcome));
        }
        if let Some(session) = &mut self.session {
            session.head = head;
        }
        self.others.note(answer.head, head);
        if head > answer.head {
            self.heads.committed(Position(head));
        } else {
            self.heads.seen(Position(head));
        }
    }

    /// The connection was lost with a batch on its way. Looks on a new one whether it was committed, before anyone decides again. Answers
    /// those that were not and that are to be sent as they were: nothing of them is in the log, and nothing can come any more.
    async fn resolve(&mut self, batch: Vec<Append>, lost: sqlx::Error) -> Vec<Append> {
        METRICS.unknown_outcomes.add(1, &[]);
        tracing::warn!(error = %lost, appends = batch.len(), "the connection was lost during an append: looking up what became of it");
        let Some(session) = self.session.take() else { return batch };
        let (backend, known) = (session.backend.clone(), session.head);
        let appends: Vec<_> = batch.iter().map(|append| append.id).collect();
        drop(session);
        let deadline = Instant::now() + self.settings.settings.command_timeout;
        let mut pause = Duration::from_millis(20);
        let written = loop {
            match self.look_up(&backend, &appends, known).await {
                Ok(written) => break written,
                Err(error) if Instant::now() >= deadline => {
                    tracing::error!(error = &error as &dyn std::error::Error, "what became of an append could not be looked up");
                    refuse(batch, || StoreError::OutcomeUnknown);
                    return vec![];
                }
                Err(StoreError::Reset(_)) => {
                    refuse(batch, || StoreError::OutcomeUnknown);
                    return vec![];
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
            }
        };
        let mut unwritten = vec![];
        for append in batch {
            match written.get(&append.id) {
                Some(last) => {
                    METRICS.appends.add(1, &[]);
                    self.heads.committed(*last);
                    // As above.
                    let _ = append.reply.send(Ok(AppendOutcome::Written { last: *last }));
                }
                // Its caller was told that the outcome is not known: now it is, and stays so.
                None if append.reply.is_closed() => {}
                // It was looked for in another log than the one it was sent to.
                None if append.epoch != self.heads.epoch() => refuse(vec![append], || StoreError::OutcomeUnknown),
                None => unwritten.push(append),
            }
        }
        unwritten
    }

    /// Those of these appends that were written after a position, and where. The lost connection's server process is ended first: while it
    /// lives, it may still read the call from its socket and commit it.
    async fn look_up(&mut self, backend: &Backend, appends: &[Uuid], known: i64) -> Result<HashMap<Uuid, Position>, StoreError> {
        let mut session = self.connect().await?;
        let rows = with_timeout(Self::written_since(&mut session.connection, backend, appends, known)).await?;
        let Some(rows) = rows else { return Err(StoreError::Busy) };
        self.session = Some(session);
        Ok(rows.into_iter().map(|(id, last)| (id, Position(last))).collect())
    }

    /// `None`: the server process does not end yet.
    async fn written_since(
        connection: &mut PgConnection,
        backend: &Backend,
        appends: &[Uuid],
        known: i64,
    ) -> Result<Option<Vec<(Uuid, i64)>>, sqlx::Error> {
        let gone: Option<bool> =
            sqlx::query_scalar("SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2")
                .bind(backend.pid)
                .bind(&backend.started)
                .fetch_optional(&mut *connection)
                .await?;
        if gone == Some(false) {
            return Ok(None);
        }
        // One message, which is one transaction, and an answer that the socket takes whole: once it is sent, the lock is released again
        // without this process, should it be frozen here. With a transaction of several messages, its two connections could hold the lock
        // one after the other, each until the server ends those that are idle.
        //
        // It writes something, for its own commit to wait for what an append's waits for: where a synchronous standby is missing, the
        // server that ended the append's process left its events in the log without the standby's having them, and they would be lost
        // with the primary. And a standby, where not all of the log may be yet, refuses.
        let appends: Vec<_> = appends.iter().map(Uuid::to_string).collect();
        let sql = format!(
            "DO $$ BEGIN PERFORM event_lock(), pg_logical_emit_message(true, 'cartlog', ''); END $$; \
             SELECT (metadata->>'append_id')::uuid, max(event_id) FROM event \
             WHERE event_id > {known} AND (metadata->>'append_id')::uuid = ANY('{{{}}}') GROUP BY 1",
            appends.join(",")
        );
        let rows = connection.fetch_all(sql.as_str()).await?;
        rows.iter().map(FromRow::from_row).collect::<Result<_, _>>().map(Some)
    }

    async fn connect(&mut self) -> Result<Session, StoreError> {
        let connecting = async {
            let mut connection = self.settings.options.connect().await?;
            let row = sqlx::query(
                "SELECT pg_backend_pid(), (SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()), \
                        event_log_id(), (SELECT coalesce(max(event_id), 0) FROM event)",
            )
            .fetch_one(&mut connection)
            .await?;
            let session =
                Session { backend: Backend { pid: row.try_get(0)?, started: row.try_get(1)? }, head: row.try_get(3)?, connection };
            Ok((session, row.try_get(2)?))
        };
        let (session, log_id): (Session, String) = match tokio::time::timeout(self.settings.settings.connect_timeout, connecting).await {
            Ok(session) => session.map_err(|error: sqlx::Error| match StoreError::from(error) {
                // Whatever it is, nothing was sent.
                StoreError::Database(error) | StoreError::Rejected(error) => StoreError::Unavailable(error),
                error => error,
            })?,
            Err(_) => return Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        };
        if self.heads.connected_to(log_id) {
            return Err(StoreError::Reset("it is another one than the one connected to before".to_owned()));
        }
        Ok(session)
    }
}

/// Whether the server itself answered that the call failed, and goes on serving the connection: then nothing of it was written. An end of
/// the connection says nothing of the kind: it may come after the commit.
fn rolled_back(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| !ends_the_connection(error))
}

/// Answers a whole batch with an error.
fn refuse(batch: Vec<Append>, mut error: impl FnMut() -> StoreError) {
    for append in batch {
        // A caller that is gone need not know.
        let _ = append.reply.send(Err(error()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use crate::query::append_condition::AppendCondition;

    use super::*;

    /// Calls that find the log where the one before left it and `foreign` positions further, and write `own`.
    fn calls(others: &Others, from: i64, times: i64, foreign: i64, own: i64) -> i64 {
        (0..times).fold(from, |end, _| {
            others.note(end + foreign, end + foreign + own);
            end + foreign + own
        })
    }

    #[test]
    fn others_append_where_a_fifth_of_the_positions_is_not_ours() {
        let others = Others::default();
        let end = calls(&others, 1_000, 17, 0, 50);
        assert!(!others.append(), "what was there before is nobody's");
        let end = calls(&others, end, 16, 12, 50);
        assert!(!others.append(), "a trickle");
        let end = calls(&others, end, 16, 13, 50);
        assert!(others.append());
        let end = calls(&others, end, 16, 0, 50);
        assert!(!others.append(), "alone again");
        calls(&others, end, 16, 1, 0);
        assert!(others.append(), "all of it is others'");
    }

    #[test]
    fn calls_answered_in_another_order_are_nobody_elses() {
        let others = Others::default();
        let end = calls(&others, 0, 17, 0, 50);
        for pair in 0..20 {
            let first = end + 100 * pair;
            others.note(first + 50, first + 100);
            assert!(!others.append());
            others.note(first, first + 50);
            assert!(!others.append());
        }
    }

    #[test]
    fn after_a_reset_it_begins_anew() {
        let others = Others::default();
        calls(&others, 1_000_000, 17, 0, 50);
        calls(&others, 0, 16, 50, 50);
        assert!(!others.append(), "not known yet");
        calls(&others, 16 * 100, 1, 50, 50);
        assert!(others.append());
    }

    type Caller = oneshot::Receiver<Result<AppendOutcome, StoreError>>;

    /// A process, beside another one that writes as much or alone.
    fn process(foreign: i64) -> (mpsc::Sender<Append>, Waiting) {
        let others = Arc::<Others>::default();
        calls(&others, 0, 17, foreign, 50);
        let (queue, appends) = mpsc::channel(1_000);
        let (closed, first_in, gathers) = (CancellationToken::new(), VecDeque::new(), Gathers::default());
        (queue, Waiting { queue: appends, closed, first_in, max_batch: 256, others, gathers })
    }

    async fn come(queue: &mpsc::Sender<Append>, times: usize) -> Vec<Caller> {
        let mut callers = vec![];
        for _ in 0..times {
            let (reply, caller) = oneshot::channel();
            let (id, metadata, queued) = (Uuid::nil(), String::new(), Instant::now());
            let append = Append { id, condition: AppendCondition::default(), events: vec![], metadata, epoch: 0, queued, reply };
            assert!(queue.send(append).await.is_ok());
            callers.push(caller);
        }
        callers
    }

    /// How many the next call carries, and when it is sent.
    async fn next(waiting: &mut Waiting, other: &OnItsWay) -> (usize, time::Instant) {
        (waiting.next(other).await.map_or(0, |batch| batch.len()), time::Instant::now())
    }

    /// While a call is on its way with ten, ten come, and so many more after it was answered. How many the next one carries, and how long
    /// after the answer it is sent.
    async fn ten_and_again(waiting: &mut Waiting, queue: &mpsc::Sender<Append>, again: usize) -> (usize, Duration) {
        let other = OnItsWay::new(10);
        let coming = async {
            let mut callers = come(queue, 10).await;
            time::sleep(Duration::from_millis(3)).await;
            other.send_replace(0);
            let answered = time::Instant::now();
            // Not in the same moment: what is decided anew comes after the answers.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            callers.extend(come(queue, again).await);
            (answered, callers)
        };
        let ((carried, sent), (answered, _callers)) = tokio::join!(next(waiting, &other), coming);
        (carried, sent - answered)
    }

    fn just_after(after: Duration, least: Duration) {
        assert!(after >= least && after <= least + Duration::from_millis(1), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn beside_others_one_call_carries_all_that_come_again() {
        let (queue, mut waiting) = process(50);
        assert_eq!(ten_and_again(&mut waiting, &queue, 10).await.0, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn alone_half_goes_with_the_next_call_as_soon_as_it_is_as_much_as_the_one_before() {
        let (queue, mut waiting) = process(0);
        let other = OnItsWay::new(10);
        let began = time::Instant::now();
        let ((carried, sent), _callers) = tokio::join!(next(&mut waiting, &other), come(&queue, 10));
        assert_eq!((carried, sent), (10, began));
    }

    #[tokio::test(start_paused = true)]
    async fn beside_others_those_that_do_not_come_again_are_waited_for_a_moment_and_then_for_some_calls_not_at_all() {
        let (queue, mut waiting) = process(50);
        for calls in [2, 4, 8] {
            let (carried, after) = ten_and_again(&mut waiting, &queue, 9).await;
            assert_eq!(carried, 19);
            just_after(after, GATHERING);
            for _ in 0..calls {
                let (other, began) = (OnItsWay::new(10), time::Instant::now());
                let ((carried, sent), _callers) = tokio::join!(next(&mut waiting, &other), come(&queue, 10));
                assert_eq!((carried, sent), (10, began));
            }
        }
        assert_eq!(ten_and_again(&mut waiting, &queue, 10).await.0, 20);
        assert_eq!(ten_and_again(&mut waiting, &queue, 10).await.0, 20, "they come again");
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_that_were_gathered_give_up_the_next_one_is_sent_at_once() {
        let (queue, mut waiting) = process(50);
        let other = OnItsWay::new(10);
        let coming = async {
            drop(come(&queue, 1).await);
            time::sleep(Duration::from_millis(3)).await;
            other.send_replace(0);
            time::sleep(Duration::from_secs(1)).await;
            (time::Instant::now(), come(&queue, 1).await)
        };
        let (sent, (came, _callers)) = tokio::join!(next(&mut waiting, &other), coming);
        assert_eq!(sent, (1, came));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_holds_nobody_up() {
        for foreign in [0, 50] {
            let (queue, mut waiting) = process(foreign);
            let (other, began) = (OnItsWay::new(10), time::Instant::now());
            let ((carried, sent), _callers) = tokio::join!(next(&mut waiting, &other), come(&queue, 1));
            assert_eq!(carried, 1);
            just_after(sent - began, LATE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn beside_others_a_few_keep_their_turn() {
        let (queue, mut waiting) = process(50);
        let (other, began) = (OnItsWay::new(1), time::Instant::now());
        let (sent, _callers) = tokio::join!(next(&mut waiting, &other), come(&queue, 1));
        assert_eq!(sent, (1, began));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_gathered_is_sent_when_the_store_is_closed() {
        let (queue, mut waiting) = process(50);
        let closed = waiting.closed.clone();
        let (other, began) = (OnItsWay::new(10), time::Instant::now());
        let coming = async {
            let callers = come(&queue, 1).await;
            tokio::task::yield_now().await;
            closed.cancel();
            callers
        };
        let (sent, _callers) = tokio::join!(next(&mut waiting, &other), coming);
        assert_eq!(sent, (1, began));
        assert_eq!(next(&mut waiting, &other).await.0, 0);
    }
}
