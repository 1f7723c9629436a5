//! Reads that wait for their turn go together: whoever gets a turn takes along what waits by then, in one statement. So what a crowd of
//! commands has to read costs a few round trips and not one each, as their appends do.

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

/// Reads that one statement carries at the most.
const MOST: usize = 64;

/// The reads that wait.
#[derive(Default)]
pub(crate) struct Reads {
    queue: Mutex<VecDeque<Asked>>,
    tickets: AtomicU64,
}

pub(crate) struct Asked {
    pub(crate) ticket: u64,
    pub(crate) items: QueryColumns,
    pub(crate) reply: oneshot::Sender<Result<Answer, StoreError>>,
}

impl Reads {
    pub(crate) fn push(&self, items: QueryColumns) -> (u64, oneshot::Receiver<Result<Answer, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(Asked { ticket, items, reply });
        (ticket, answer)
    }

    /// The first of them, without those whose caller has gone.
    pub(crate) fn take(&self) -> Vec<Asked> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|asked| !asked.reply.is_closed());
        let together = queue.len().min(MOST);
        queue.drain(..together).collect()
    }
}

/// Each its own, of an answer to so many items one after the other; its items numbered from 0.
pub(crate) fn split(answer: Answer, lengths: &[usize]) -> Vec<Answer> {
    let mut answers: Vec<_> = lengths.iter().map(|_| Answer { head: answer.head, found: vec![] }).collect();
    let whose: Vec<_> = lengths.iter().enumerate().flat_map(|(whose, length)| (0..*length).map(move |own| (whose, own))).collect();
    for found in answer.found {
        if let Some((whose, own)) = whose.get(found.item)
            && let Some(answer) = answers.get_mut(*whose)
        {
            answer.found.push(Found { item: *own, ..found });
        }
    }
    answers
}
