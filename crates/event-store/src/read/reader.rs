//! Reading: one statement returns the matching events and the head of the same snapshot.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    connection::{Pool, PooledConnection, log_connection, with_timeout},
    error::StoreError,
    metrics::record_query_wait,
    position::Position,
    query::query_item::{QueryColumns, placeholders},
    read::{
        answer::Answer,
        head_watcher::{HeadWatcher, Seen},
        read_queue::{ReadQueue, WaitingRead, split},
    },
};

/// Returns the statement that reads. The head comes as a row without an item.
fn sql(ids: usize) -> String {
    format!(
        "SELECT NULL::integer AS query_item, coalesce(max(e.event_id), 0) AS event_id, NULL AS event_type, NULL AS payload, false AS more \
         FROM event e \
         UNION ALL SELECT query_item, event_id, event_type, payload, more FROM read_events({})",
        placeholders(1, 3 + ids)
    )
}

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
    /// The number of the log's domain ids.
    ids: usize,
    sql: String,
    waiting: ReadQueue,
}

impl Reader {
    pub(crate) fn new(pool: Pool, ids: usize) -> Self {
        Self(Arc::new(Inner { pool, ids, sql: sql(ids), waiting: ReadQueue::default() }))
    }

    pub(crate) fn head_watcher(&self) -> &HeadWatcher {
        self.0.pool.connector().head_watcher()
    }

    /// Returns the number of the log's domain ids.
    pub(crate) fn ids(&self) -> usize {
        self.0.ids
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

    /// Returns what the items find, and the head of that snapshot. The snapshot is no older than this call.
    pub(crate) async fn find(&self, items: QueryColumns) -> Result<Answer, StoreError> {
        let (ticket, mut answer) = self.0.waiting.push(items);
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
        match self.read(together.iter().map(|read| &read.items)).await {
            Ok(answer) => {
                let lengths: Vec<_> = together.iter().map(|read| read.items.len()).collect();
                for (read, answer) in together.into_iter().zip(split(answer, &lengths)) {
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
                    let _ = read.reply.send(self.read([&read.items]).await);
                }
            }
        }
    }

    async fn read<'a>(&self, items: impl IntoIterator<Item = &'a QueryColumns>) -> Result<Answer, StoreError> {
        let mut columns = QueryColumns::new(self.ids);
        items.into_iter().for_each(|items| columns.extend(items));
        loop {
            let seen = self.pool.connector().head_watcher().seen_so_far();
            let query = columns.clone().bind(sqlx::query(&self.sql));
            let reading = async {
                let mut connection = PooledConnection::from(&self.pool).await?;
                let answer = Answer::from_rows(&query.fetch_all(&mut *connection).await?)?;
                Ok((answer, connection))
            };
            let (answer, connection) = with_timeout(reading).await?;
            if self.accept(connection, Position(answer.head), seen).await? {
                return Ok(answer);
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
