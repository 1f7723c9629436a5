//! The appends that wait, and the batches they make.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

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
    in_flight: Arc<AtomicUsize>,
    max_batch: usize,
}

impl AppendQueue {
    /// `in_flight` counts the appends that were returned and are not answered yet. The caller lowers it.
    pub(crate) fn new(queue: mpsc::Receiver<Append>, closed: CancellationToken, in_flight: Arc<AtomicUsize>, max_batch: usize) -> Self {
        Self { queue, closed, waiting: VecDeque::new(), in_flight, max_batch }
    }

    /// Waits for an append and returns the next batch. Returns `None` once the store is closed and nothing waits.
    pub(crate) async fn next(&mut self) -> Option<Vec<Append>> {
        loop {
            if !self.wait().await {
                return None;
            }
            let batch = self.take();
            if !batch.is_empty() {
                return Some(batch);
            }
        }
    }

    /// Waits for an append. Returns `false` once the store is closed and nothing waits.
    pub(crate) async fn wait(&mut self) -> bool {
        self.collect();
        while self.waiting.is_empty() {
            tokio::select! {
                biased;
                append = self.queue.recv() => match append {
                    Some(append) => self.waiting.push_back(append),
                    None => return false,
                },
                () = self.closed.cancelled(), if !self.queue.is_closed() => self.queue.close(),
            }
            // The callers of one call are answered together. This lets them all decide first, so that they share the next one too.
            tokio::task::yield_now().await;
        }
        true
    }

    /// Takes the next batch without waiting: at most half of the appends that wait or are in flight.
    ///
    /// So two calls of about the same size alternate: the database works on one while this process decides what the other will carry.
    pub(crate) fn take(&mut self) -> Vec<Append> {
        self.collect();
        self.batch()
    }

    fn collect(&mut self) {
        while self.waiting.len() < 4 * self.max_batch
            && let Ok(append) = self.queue.try_recv()
        {
            self.waiting.push_back(append);
        }
        // Nobody would learn the outcome of an append whose caller is gone.
        self.waiting.retain(|append| !append.reply.is_closed());
    }

    fn batch(&mut self) -> Vec<Append> {
        let half = (self.waiting.len() + self.in_flight.load(Ordering::Relaxed)).div_ceil(2);
        let mut batch = Batch::default();
        for append in std::mem::take(&mut self.waiting) {
            if batch.appends.len() < half.min(self.max_batch) && batch.admits(&append) {
                batch.push(append);
            } else {
                self.waiting.push_back(append);
            }
        }
        let now = Instant::now();
        for append in &batch.appends {
            METRICS.append_queue_duration.record(now.duration_since(append.queued).as_secs_f64(), &[]);
        }
        self.in_flight.fetch_add(batch.appends.len(), Ordering::Relaxed);
        batch.appends
    }
}

#[cfg(test)]
mod tests {
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
        (sender, AppendQueue::new(appends, closed.clone(), Arc::default(), max_batch), closed)
    }

    /// The size of the next batch.
    async fn next(queue: &mut AppendQueue) -> Option<usize> {
        queue.next().await.map(|batch| batch.len())
    }

    #[tokio::test]
    async fn two_calls_share_what_waits() {
        let (sender, mut queue, _closed) = queue(100);
        let mut callers = vec![];
        for _ in 0..10 {
            callers.push(enqueue(&sender).await);
        }
        assert_eq!(next(&mut queue).await, Some(5));
        assert_eq!(next(&mut queue).await, Some(5));
        // The first call is answered, and fewer come again.
        queue.in_flight.fetch_sub(5, Ordering::Relaxed);
        for _ in 0..3 {
            callers.push(enqueue(&sender).await);
        }
        assert_eq!(next(&mut queue).await, Some(3), "all that waits, and not more than is in flight");
    }

    #[tokio::test]
    async fn a_batch_takes_max_batch_at_most() {
        let (sender, mut queue, _closed) = queue(4);
        let mut callers = vec![];
        for _ in 0..12 {
            callers.push(enqueue(&sender).await);
        }
        assert_eq!(next(&mut queue).await, Some(4));
    }

    #[tokio::test]
    async fn an_append_whose_caller_is_gone_is_not_sent() {
        let (sender, mut queue, _closed) = queue(8);
        drop(enqueue(&sender).await);
        let _caller = enqueue(&sender).await;
        assert_eq!(next(&mut queue).await, Some(1));
    }

    #[tokio::test]
    async fn what_waits_is_still_sent_after_closing() {
        let (sender, mut queue, closed) = queue(8);
        let _caller = enqueue(&sender).await;
        closed.cancel();
        assert_eq!(next(&mut queue).await, Some(1));
        assert!(queue.next().await.is_none());
        assert!(sender.is_closed());
    }
}
