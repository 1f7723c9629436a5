//! Automations: a projection that enqueues to-dos, and the command that each to-do runs.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;

use event_store::{EventStore, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    projection::Projection,
    replica::Replicas,
    run::run,
    settings::Settings,
    todo::{self, Outcome, Todo},
};

/// Reacts to events with commands.
///
/// The projection, with [`Kind::Automation`](crate::Kind::Automation), calls [`todo::enqueue`] in the transaction that moves its checkpoint.
/// [`Projections::run_automation`](crate::Projections::run_automation) runs the projection, and calls [`attempt`](Automation::attempt) for
/// each to-do until it is done or failed.
#[async_trait]
pub trait Automation: Projection {
    /// The most to-dos that this process attempts at once.
    fn concurrency(&self) -> usize {
        16
    }

    /// The longest pause between two attempts at a to-do. The first pause is 125 ms; each further one is twice as long.
    fn max_backoff(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// The longest time that an attempt may take. A to-do is leased for longer than this, so no other process attempts it meanwhile.
    fn longest_attempt(&self) -> Duration;

    /// Runs the command for a to-do. It must tolerate running twice, because a process may die before the outcome is stored.
    async fn attempt(&self, todo: Todo) -> Outcome;
}

/// The part of a lease beyond the longest attempt: time to store the outcome, and the inaccuracy of timeouts.
const LEASE_RESERVE: Duration = Duration::from_secs(3);

/// Returns how the to-dos of an automation are worked: leased for longer than its longest attempt.
pub fn todo_settings<A: Automation>(automation: &A, retention: Duration) -> todo::Settings {
    todo::Settings {
        lease: automation.longest_attempt() + LEASE_RESERVE,
        concurrency: automation.concurrency(),
        max_backoff: automation.max_backoff(),
        retention,
        ..todo::Settings::default()
    }
}

/// See [`Projections::run_automation`](crate::Projections::run_automation).
pub(crate) async fn run_automation<A: Automation>(
    store: EventStore<A::Log>,
    replicas: Replicas,
    automation: Arc<A>,
    settings: Settings,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let working = todo_settings(&*automation, settings.todo_retention);
    let applied = Arc::new(watch::Sender::default());
    let wake = applied.subscribe();
    let log = store.clone();
    let (pool, attempting, health) = (store.pool().clone(), automation.clone(), replicas.health(A::NAME));
    let attempt = move |todo: Todo| {
        // Its command is decided on a server that has come as far.
        log.saw(todo.position, todo.epoch);
        let (automation, heads, epoch) = (attempting.clone(), log.head_watcher().clone(), todo.epoch);
        async move {
            let mut attempt = pin!(automation.attempt(todo));
            // A restored log may lack what the to-do follows from, and a command that was not written would be decided again there.
            poll_fn(move |context| match heads.epoch() == epoch {
                true => attempt.as_mut().poll(context),
                false => Poll::Ready(Outcome::Retry { error: "the log has another server than the to-do was read from".to_owned() }),
            })
            .await
        }
    };
    let (ran, ()) = tokio::join!(
        run(store, replicas, automation, settings, applied, shutdown.clone()),
        todo::work_with(pool, A::NAME, working, health, wake, shutdown, attempt),
    );
    ran
}
