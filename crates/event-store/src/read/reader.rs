//! Reading: one statement answers the matching events *and* the head of the same snapshot.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    connection::{ConnectionPool, PooledConnection, with_timeout},
    error::StoreError,
    metrics::record_query_wait,
    position::Position,
    query::query_item::{QueryColumns, placeholders},
    read::{
        answer::Answer,
        head_watcher::HeadWatcher,
        together::{Asked, Reads, split},
    },
};

/// The head, as a row with no item, and what the items find: in one statement, so in one snapshot.
fn sql(ids: usize) -> String {
    format!(
        "SELECT NULL::integer AS lookup, coalesce(max(e.event_id), 0) AS event_id, NULL AS event_type, NULL AS payload, false AS more \
         FROM event e \
         UNION ALL SELECT lookup, event_id, event_type, payload, more FROM event_matching({})",
        placeholders(1, 3 + ids)
    )
}

/// What waiting for a position came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The log has come to it.
    Reached,
    /// The time is up, and the log only so far.
    TimedOut(Position),
}

/// Reads the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader(Arc<Inner>);

struct Inner {
    connections: ConnectionPool,
    heads: HeadWatcher,
    /// How many domain ids the log has.
    ids: usize,
    sql: String,
    /// Those that wait for a connection, to go together.
    waiting: Reads,
}

impl Reader {
    pub(crate) fn new(connections: ConnectionPool, heads: HeadWatcher, ids: usize) -> Self {
        Self(Arc::new(Inner { connections, heads, ids, sql: sql(ids), waiting: Reads::default() }))
    }

    pub(crate) fn heads(&self) -> &HeadWatcher {
        &self.0.heads
    }

    /// How many domain ids the log has.
    pub(crate) fn ids(&self) -> usize {
        self.0.ids
    }

    /// The newest position in the log.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub(crate) async fn head(&self) -> Result<Position, StoreError> {
        with_timeout(async {
            let mut connection = self.0.connections.connection().await?;
            let head = sqlx::query_scalar("SELECT coalesce(max(event_id), 0) FROM event").fetch_one(&mut *connection).await?;
            connection.done();
            Ok(head)
        })
        .await
    }

    /// Waits until the log has come to a position, for a query that is counted under this name: what is read after that is no older.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub(crate) async fn wait(&self, query: &'static str, position: Position, timeout: Duration) -> Result<Wait, StoreError> {
        let started = Instant::now();
        let outcome = self.waited(position, started + timeout).await;
        let word = match outcome {
            Ok(Wait::Reached) => "there",
            Ok(Wait::TimedOut(_)) => "behind",
            Err(_) => "fault",
        };
        record_query_wait(query, started.elapsed(), word);
        outcome
    }

    async fn waited(&self, position: Position, until: Instant) -> Result<Wait, StoreError> {
        let mut newest = self.0.heads.subscribe();
        loop {
            if *newest.borrow_and_update() >= position {
                return Ok(Wait::Reached);
            }
            // What another process has just appended is announced some milliseconds later.
            let permit = self.0.connections.read_permit().await?;
            let head = self.head().await?;
            drop(permit);
            if head >= position {
                return Ok(Wait::Reached);
            }
            if Instant::now() >= until {
                return Ok(Wait::TimedOut(head));
            }
            // Past the time, the log is asked once more.
            let _ = timeout_at(until, newest.wait_for(|newest| *newest >= position)).await;
        }
    }

    /// What the items find, and the head of the snapshot they saw, which is no older than this call.
    pub(crate) async fn look(&self, items: QueryColumns) -> Result<Answer, StoreError> {
        let (ticket, mut answer) = self.0.waiting.push(items);
        loop {
            let permit = tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or(Err(StoreError::Closed)),
                permit = self.0.connections.read_permit() => permit?,
            };
            let together = self.0.waiting.take();
            if together.is_empty() {
                // Another took it along.
                break;
            }
            let with_ours = together.iter().any(|asked| asked.ticket == ticket);
            // A task of its own, where connections are made: should this caller go, the others still want their answers.
            let inner = self.0.clone();
            self.0.connections.runtime().spawn(async move {
                inner.read_together(together).await;
                drop(permit);
            });
            if with_ours {
                break;
            }
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Inner {
    async fn read_together(self: Arc<Self>, together: Vec<Asked>) {
        match self.read(together.iter().map(|asked| &asked.items)).await {
            Ok(answer) => {
                let lengths: Vec<_> = together.iter().map(|asked| asked.items.len()).collect();
                for (asked, answer) in together.into_iter().zip(split(answer, &lengths)) {
                    // Who has gone need not know; here and below.
                    let _ = asked.reply.send(Ok(answer));
                }
            }
            Err(error) if error.is_unavailable() => {
                for asked in together {
                    let _ = asked.reply.send(Err(error.again()));
                }
            }
            // What is wrong with one of them is no concern of the others.
            Err(_) => {
                for asked in together {
                    let _ = asked.reply.send(self.read([&asked.items]).await);
                }
            }
        }
    }

    async fn read<'a>(&self, items: impl IntoIterator<Item = &'a QueryColumns>) -> Result<Answer, StoreError> {
        let mut columns = QueryColumns::new(self.ids);
        items.into_iter().for_each(|items| columns.extend(items));
        with_timeout(async {
            let mut connection = PooledConnection::from(self.connections.pool()).await?;
            let rows = columns.bind(sqlx::query(&self.sql)).fetch_all(&mut *connection).await?;
            connection.done();
            Answer::from_rows(&rows)
        })
        .await
    }
}
