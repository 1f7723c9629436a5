//! Reading: one statement returns the matching events and the head of the same snapshot.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    connection::{Pool, PooledConnection, log_connection, with_timeout},
    error::StoreError,
    metrics::record_query_wait,
    position::Position,
    read::{
        answer::Answer,
        head_watcher::{HeadWatcher, Seen},
        read_queue::{ReadQueue, WaitingRead},
        statement::{Lookup, Statement},
    },
};

/// The outcome of waiting for a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The log has reached the position.
    Reached,
    /// The time ran out. The log ends at this position.
    TimedOut(Position),
}

/// Reads the log. Clones share their connections.
#[derive(Clone)]
pub(crate) struct Reader(Arc<Inner>);

struct Inner {
    pool: Pool,
    /// The log's domain ids, in the schema's order.
    ids: Vec<&'static str>,
    waiting: ReadQueue,
}

impl Reader {
    pub(crate) fn new(pool: Pool, ids: Vec<&'static str>) -> Self {
        Self(Arc::new(Inner { pool, ids, waiting: ReadQueue::default() }))
    }

    pub(crate) fn head_watcher(&self) -> &HeadWatcher {
        self.0.pool.connector().head_watcher()
    }

    /// See [`EventStore::head`](crate::EventStore::head).
    pub(crate) async fn head(&self) -> Result<Position, StoreError> {
        loop {
            let seen = self.head_watcher().seen_so_far();
            let reading = async {
                let mut connection = PooledConnection::from(&self.0.pool).await?;
                Ok((log_connection::head(&mut connection).await?, connection))
            };
            let (head, connection) = with_timeout(reading).await?;
            if self.0.accept(connection, head, seen).await? {
                return Ok(head);
            }
        }
    }

    /// See [`EventStore::wait`](crate::EventStore::wait).
    pub(crate) async fn wait(&self, query: &'static str, position: Position, timeout: Duration) -> Result<Wait, StoreError> {
        let started = Instant::now();
        let outcome = self.wait_until(position, started + timeout).await;
        let label = match outcome {
            Ok(Wait::Reached) => "reached",
            Ok(Wait::TimedOut(_)) => "timed_out",
            Err(_) => "fault",
        };
        record_query_wait(query, started.elapsed(), label);
        outcome
    }

    async fn wait_until(&self, position: Position, deadline: Instant) -> Result<Wait, StoreError> {
        let mut newest = self.head_watcher().subscribe();
        loop {
            if *newest.borrow_and_update() >= position {
                return Ok(Wait::Reached);
            }
            // Another process announces its append some milliseconds after the commit, so the log itself is asked.
            let permit = self.0.pool.read_permit().await?;
            let head = self.head().await?;
            drop(permit);
            if head >= position {
                return Ok(Wait::Reached);
            }
            if Instant::now() >= deadline {
                return Ok(Wait::TimedOut(head));
            }
            // After the deadline the log is asked once more.
            let _ = timeout_at(deadline, newest.wait_for(|newest| *newest >= position)).await;
        }
    }

    /// Returns what the lookups find, and the head of that snapshot. The snapshot is no older than this call.
    pub(crate) async fn find(&self, lookups: Vec<Lookup>) -> Result<Answer, StoreError> {
        let (ticket, mut answer) = self.0.waiting.push(lookups);
        // Callers that became ready together all ask first, so that one statement reads for all of them.
        tokio::task::yield_now().await;
        loop {
            let permit = tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or(Err(StoreError::Closed)),
                permit = self.0.pool.read_permit() => permit?,
            };
            let together = self.0.waiting.take();
            if together.is_empty() {
                // Another caller has taken this read along.
                break;
            }
            let has_own = together.iter().any(|read| read.ticket == ticket);
            // A task of its own, because the other callers want their answers even if this one goes away.
            let inner = self.0.clone();
            self.0.pool.connector().runtime().spawn(async move {
                inner.read_together(together).await;
                drop(permit);
            });
            if has_own {
                break;
            }
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Inner {
    async fn read_together(self: Arc<Self>, together: Vec<WaitingRead>) {
        let reads: Vec<_> = together.iter().map(|read| read.lookups.as_slice()).collect();
        match self.read(&reads).await {
            Ok(answers) => {
                for (read, answer) in together.into_iter().zip(answers) {
                    // A caller that is gone needs no answer; here and below.
                    let _ = read.reply.send(Ok(answer));
                }
            }
            Err(error) if error.is_unavailable() => {
                for read in together {
                    let _ = read.reply.send(Err(error.clone()));
                }
            }
            // Each read alone, so that one bad read fails only its own caller.
            Err(_) => {
                for read in together {
                    let answer = self.read(&[&read.lookups]).await.map(|answers| answers.into_iter().next().unwrap_or_default());
                    let _ = read.reply.send(answer);
                }
            }
        }
    }

    /// Returns an answer for each read, all of one snapshot.
    async fn read(&self, reads: &[&[Lookup]]) -> Result<Vec<Answer>, StoreError> {
        let statement = Statement::of(reads, &self.ids);
        loop {
            let seen = self.pool.connector().head_watcher().seen_so_far();
            let reading = async {
                let mut connection = PooledConnection::from(&self.pool).await?;
                let rows = statement.query().fetch_all(&mut *connection).await?;
                Ok((statement.answers(&rows)?, connection))
            };
            let (answers, connection) = with_timeout(reading).await?;
            let head = answers.first().map_or(0, |answer| answer.head);
            if self.accept(connection, Position(head), seen).await? {
                return Ok(answers);
            }
        }
    }

    /// Returns whether an answer with this head is of the log's current server. `seen` was taken before the question.
    async fn accept(&self, connection: PooledConnection, head: Position, seen: Seen) -> Result<bool, StoreError> {
        let connector = self.pool.connector();
        let accepted = connection.is_current() && connector.head_watcher().includes(head, seen);
        if accepted {
            connector.head_watcher().seen(head, connection.epoch());
            connection.done();
        } else {
            drop(connection);
            // A new connection learns which server serves the log now, or that the log was restored.
            connector.connect().await?;
        }
        Ok(accepted)
    }
}
