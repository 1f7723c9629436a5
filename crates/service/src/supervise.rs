//! Background tasks. One that ends stops the service.

use std::{future::Future, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span, warn};

use crate::fault::Fault;

/// The span of a background task. It is for the log, not for traces.
pub(crate) const SPAN: &str = "background";

/// The background tasks of a process.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    tasks: JoinSet<Ended>,
    started: Vec<&'static str>,
    stop: CancellationToken,
}

/// A task that has ended, with its outcome.
#[derive(Debug)]
struct Ended {
    name: &'static str,
    outcome: Result<(), Fault>,
}

impl Supervisor {
    /// Starts a task.
    pub(crate) fn start<F, Fut>(&mut self, name: &'static str, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        self.started.push(name);
        let running = task(self.stop.child_token());
        // A task of its own, so that a panic has the task's name.
        let handle = tokio::spawn(running.instrument(info_span!(parent: None, SPAN, task = name)));
        self.tasks.spawn(async move {
            let outcome = handle.await.unwrap_or_else(|error| Err(Fault::new(error)));
            Ended { name, outcome }
        });
    }

    /// Tells whether a task was started, even if it has ended.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.started.contains(&name)
    }

    /// Waits until a task ends too early. Without tasks, it waits for ever.
    pub(crate) async fn failure(&mut self) -> Fault {
        match self.tasks.join_next().await {
            Some(Ok(Ended { name, outcome: Err(error) })) => error.context(format!("the background task {name} failed")),
            Some(Ok(Ended { name, outcome: Ok(()) })) => anyhow::anyhow!("the background task {name} ended by itself"),
            Some(Err(error)) => Fault::new(error),
            None => std::future::pending().await,
        }
    }

    /// Asks all tasks to finish and waits for them, at most for `deadline`.
    pub(crate) async fn stop(mut self, deadline: Duration) {
        self.stop.cancel();
        let all_ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok(Ended { name, outcome: Err(error) }) = ended {
                    error!(task = name, error = format!("{error:#}"), "background task failed while finishing");
                }
            }
        };
        if tokio::time::timeout(deadline, all_ended).await.is_err() {
            warn!(left = self.tasks.len(), "background tasks cut off at the deadline");
        }
    }
}
