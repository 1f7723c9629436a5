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
    read::{answer::Answer, statement::Lookup},
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
    pub(crate) lookups: Vec<Lookup>,
    pub(crate) reply: oneshot::Sender<Result<Answer, StoreError>>,
}

impl ReadQueue {
    /// Queues a read. Returns its ticket and the receiver of its answer.
    pub(crate) fn push(&self, lookups: Vec<Lookup>) -> (u64, oneshot::Receiver<Result<Answer, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(WaitingRead { ticket, lookups, reply });
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
