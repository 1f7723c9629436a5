//! The appends that wait, and the batches they make.

use std::{collections::VecDeque, time::Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    append::{batch::Batch, pending::Append},
    metrics::METRICS,
};

/// The appends that wait to be sent.
pub(crate) struct AppendQueue {
    queue: mpsc::Receiver<Append>,
    closed: CancellationToken,
    /// Taken out of the queue, in order. Some may have been left out of a batch that they conflict with.
    waiting: VecDeque<Append>,
    max_batch: usize,
}

impl AppendQueue {
    pub(crate) fn new(queue: mpsc::Receiver<Append>, closed: CancellationToken, max_batch: usize) -> Self {
        Self { queue, closed, waiting: VecDeque::new(), max_batch }
    }

    /// Waits for an append and returns it with all others that wait and may share its call. Returns `None` once the store is closed and
    /// nothing waits.
    pub(crate) async fn next(&mut self) -> Option<Vec<Append>> {
        loop {
            while self.waiting.len() < 4 * self.max_batch
                && let Ok(append) = self.queue.try_recv()
            {
                self.waiting.push_back(append);
            }
            // Nobody would learn the outcome of an append whose caller is gone.
            self.waiting.retain(|append| !append.reply.is_closed());
            if !self.waiting.is_empty() {
                return Some(self.batch());
            }
            tokio::select! {
                biased;
                append = self.queue.recv() => {
                    self.waiting.push_back(append?);
                    // The callers of one call are answered together. This lets them all decide first, so that they share the next one too.
                    tokio::task::yield_now().await;
                }
                () = self.closed.cancelled(), if !self.queue.is_closed() => self.queue.close(),
            }
        }
    }

    fn batch(&mut self) -> Vec<Append> {
        let mut batch = Batch::default();
        for append in std::mem::take(&mut self.waiting) {
            if batch.appends.len() < self.max_batch && batch.admits(&append) {
                batch.push(append);
            } else {
                self.waiting.push_back(append);
            }
        }
        let now = Instant::now();
        for append in &batch.appends {
            METRICS.append_queue_duration.record(now.duration_since(append.queued).as_secs_f64(), &[]);
        }
        batch.appends
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;
    use uuid::Uuid;

    use super::*;
    use crate::{
        append::{pending::AppendOutcome, send_state::SendState},
        error::StoreError,
        query::append_condition::AppendCondition,
    };

    type Caller = oneshot::Receiver<Result<AppendOutcome, StoreError>>;

    async fn enqueue(queue: &mpsc::Sender<Append>) -> Caller {
        let (reply, caller) = oneshot::channel();
        let (id, metadata, queued) = (Uuid::nil(), String::new(), Instant::now());
        let (condition, send_state) = (AppendCondition::default(), Arc::<SendState>::default());
        let append = Append { id, condition, events: vec![], metadata, epoch: 0, queued, send_state, reply };
        assert!(queue.send(append).await.is_ok());
        caller
    }

    fn queue(max_batch: usize) -> (mpsc::Sender<Append>, AppendQueue, CancellationToken) {
        let (sender, appends) = mpsc::channel(100);
        let closed = CancellationToken::new();
        (sender, AppendQueue::new(appends, closed.clone(), max_batch), closed)
    }

    #[tokio::test]
    async fn a_batch_takes_all_that_waits_up_to_max_batch() {
        let (sender, mut queue, _closed) = queue(8);
        let mut callers = vec![];
        for _ in 0..10 {
            callers.push(enqueue(&sender).await);
        }
        assert_eq!(queue.next().await.map(|batch| batch.len()), Some(8));
        assert_eq!(queue.next().await.map(|batch| batch.len()), Some(2));
    }

    #[tokio::test]
    async fn an_append_whose_caller_is_gone_is_not_sent() {
        let (sender, mut queue, _closed) = queue(8);
        drop(enqueue(&sender).await);
        let _caller = enqueue(&sender).await;
        assert_eq!(queue.next().await.map(|batch| batch.len()), Some(1));
    }

    #[tokio::test]
    async fn what_waits_is_still_sent_after_closing() {
        let (sender, mut queue, closed) = queue(8);
        let _caller = enqueue(&sender).await;
        closed.cancel();
        assert_eq!(queue.next().await.map(|batch| batch.len()), Some(1));
        assert!(queue.next().await.is_none());
        assert!(sender.is_closed());
    }
}
