//! Reads that wait for a connection. Whoever gets one takes the waiting reads along, so a crowd of commands costs few statements.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::oneshot;

use crate::{
    error::StoreError,
    query::query_item::QueryColumns,
    read::answer::{Answer, Found},
};

/// Reads in one statement at most.
const MAX_TOGETHER: usize = 64;

/// The reads that wait.
#[derive(Default)]
pub(crate) struct ReadQueue {
    queue: Mutex<VecDeque<WaitingRead>>,
    tickets: AtomicU64,
}

pub(crate) struct WaitingRead {
    pub(crate) ticket: u64,
    pub(crate) items: QueryColumns,
    pub(crate) reply: oneshot::Sender<Result<Answer, StoreError>>,
}

impl ReadQueue {
    /// Queues a read. Returns its ticket and the receiver of its answer.
    pub(crate) fn push(&self, items: QueryColumns) -> (u64, oneshot::Receiver<Result<Answer, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(WaitingRead { ticket, items, reply });
        (ticket, answer)
    }

    /// Takes the first reads whose callers still wait.
    pub(crate) fn take(&self) -> Vec<WaitingRead> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|read| !read.reply.is_closed());
        let together = queue.len().min(MAX_TOGETHER);
        queue.drain(..together).collect()
    }
}

/// Splits the answer to several reads, one after the other, into one answer each. `lengths` are the reads' numbers of items.
pub(crate) fn split(answer: Answer, lengths: &[usize]) -> Vec<Answer> {
    let mut answers: Vec<_> = lengths.iter().map(|_| Answer { head: answer.head, found: vec![] }).collect();
    let owners: Vec<_> = lengths.iter().enumerate().flat_map(|(read, length)| (0..*length).map(move |own| (read, own))).collect();
    for found in answer.found {
        if let Some((read, own)) = owners.get(found.item)
            && let Some(answer) = answers.get_mut(*read)
        {
            answer.found.push(Found { item: *own, ..found });
        }
    }
    answers
}
