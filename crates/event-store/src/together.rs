//! Reads that wait for their turn go together: whoever gets a turn takes along what waits by then, in one statement. So what a crowd of
//! commands has to read costs a few round trips and not one each, as their appends do.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::oneshot;

use crate::{
    LogEvent, StoreError,
    appender::again,
    lookup::{Found, LookupColumns},
    read::Answer,
    store::{EventStore, Lent, Shared, in_time},
};

/// Reads that one statement carries at the most.
const MOST: usize = 64;

/// The reads that wait.
#[derive(Default)]
pub(crate) struct Reads {
    queue: Mutex<VecDeque<Asked>>,
    tickets: AtomicU64,
}

struct Asked {
    ticket: u64,
    lookups: LookupColumns,
    reply: oneshot::Sender<Result<Answer, StoreError>>,
}

impl Reads {
    fn push(&self, lookups: LookupColumns) -> (u64, oneshot::Receiver<Result<Answer, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(Asked { ticket, lookups, reply });
        (ticket, answer)
    }

    /// The first of them, without those whose caller has gone.
    fn take(&self) -> Vec<Asked> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|asked| !asked.reply.is_closed());
        let together = queue.len().min(MOST);
        queue.drain(..together).collect()
    }
}

impl<E: LogEvent> EventStore<E> {
    /// What the lookups find, and the head of the snapshot they saw, which is no older than this call.
    pub(crate) async fn look(&self, lookups: LookupColumns) -> Result<Answer, StoreError> {
        let (ticket, mut answer) = self.shared.waiting_reads.push(lookups);
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or(Err(StoreError::Closed)),
                turn = self.turn() => turn?,
            };
            let together = self.shared.waiting_reads.take();
            if together.is_empty() {
                // Another took it along.
                break;
            }
            let with_ours = together.iter().any(|asked| asked.ticket == ticket);
            // A task of its own, where connections are made: should this caller go, the others still want their answers.
            let shared = self.shared.clone();
            self.shared.runtime.spawn(async move {
                shared.read_together(together).await;
                drop(turn);
            });
            if with_ours {
                break;
            }
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Shared {
    async fn read_together(self: Arc<Self>, together: Vec<Asked>) {
        match self.read(together.iter().map(|asked| &asked.lookups)).await {
            Ok(answer) => {
                let lengths: Vec<_> = together.iter().map(|asked| asked.lookups.len()).collect();
                for (asked, answer) in together.into_iter().zip(split(answer, &lengths)) {
                    // Who has gone need not know; here and below.
                    let _ = asked.reply.send(Ok(answer));
                }
            }
            Err(error) if error.is_unavailable() => {
                for asked in together {
                    let _ = asked.reply.send(Err(again(&error)));
                }
            }
            // What is wrong with one of them is no concern of the others.
            Err(_) => {
                for asked in together {
                    let _ = asked.reply.send(self.read([&asked.lookups]).await);
                }
            }
        }
    }

    async fn read<'a>(&self, lookups: impl IntoIterator<Item = &'a LookupColumns>) -> Result<Answer, StoreError> {
        let mut columns = LookupColumns::new(self.ids.len());
        lookups.into_iter().for_each(|lookups| columns.extend(lookups));
        in_time(async {
            let mut connection = Lent::from(&self.pool).await?;
            let rows = columns.bind(sqlx::query(&self.read_sql)).fetch_all(&mut *connection).await?;
            connection.done();
            Answer::from_rows(&rows)
        })
        .await
    }
}

/// Each its own, of an answer to so many lookups one after the other; its lookups numbered from 0.
fn split(answer: Answer, lengths: &[usize]) -> Vec<Answer> {
    let mut answers: Vec<_> = lengths.iter().map(|_| Answer { head: answer.head, found: vec![] }).collect();
    let whose: Vec<_> = lengths.iter().enumerate().flat_map(|(whose, length)| (0..*length).map(move |own| (whose, own))).collect();
    for found in answer.found {
        if let Some((whose, own)) = whose.get(found.lookup)
            && let Some(answer) = answers.get_mut(*whose)
        {
            answer.found.push(Found { lookup: *own, ..found });
        }
    }
    answers
}
