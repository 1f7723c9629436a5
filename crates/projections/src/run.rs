//! Running a projection in this process.

use std::sync::Arc;

use disintegrate::Event;
use event_store::{EventStore, Position, StoreError, connection::with_timeout};
use opentelemetry::KeyValue;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::METRICS,
    projection::{Kind, Projection},
    registration::{self, Switched},
    replica::{self, HeartbeatGuard, Replica, Replicas},
    running::{Running, count_faults, report},
    settings::{RARE_TIMEOUT, Settings},
    worker,
};

/// See [`Projections::run`](crate::Projections::run). `applied` is notified with the position after each applied batch.
pub(crate) async fn run<P: Projection>(
    store: EventStore<P::Log>,
    replicas: Replicas,
    projection: Arc<P>,
    settings: Settings,
    applied: Arc<watch::Sender<Position>>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let types: Arc<[String]> = P::Event::SCHEMA.events.iter().map(|name| (*name).to_owned()).collect();
    let replica = Arc::new(Replica::new(P::NAME, P::VERSION, types.clone(), settings.lease));
    let health = replicas.health(P::NAME);
    let running = Running { store, replicas, projection, settings: settings.effective(), applied, replica, types, health };
    if !register(&running, &shutdown).await {
        return Ok(());
    }
    count_faults::<P>(0);
    let heartbeat = running.replicas.keep_alive(running.store.pool(), running.replica.clone());
    match P::KIND {
        Kind::ReadModel => {
            tokio::join!(
                worker::work(&running, &heartbeat, "projection_a", &shutdown),
                worker::work(&running, &heartbeat, "projection_b", &shutdown),
                switch(&running, &heartbeat, &shutdown),
                register_again(&running, &heartbeat, &shutdown),
            );
        }
        Kind::Automation => {
            tokio::join!(worker::work(&running, &heartbeat, "automation", &shutdown), register_again(&running, &heartbeat, &shutdown),);
        }
    }
    // If the database is away, both fail, and the others wait until the lease expires. So their outcomes do not matter.
    let _ = timeout(RARE_TIMEOUT, heartbeat.end()).await;
    let _ = with_timeout(async {
        let mut connection = running.store.connection().await?;
        sqlx::query!("SELECT delete_replicas(ARRAY[$1::text], ARRAY[$2::uuid], '{NULL}')", P::NAME, running.replica.id)
            .fetch_one(&mut *connection)
            .await?;
        connection.done();
        Ok(())
    })
    .await;
    Ok(())
}

/// Registers the projection as soon as the database is ready. Returns `false` if the process was stopped before.
async fn register<P: Projection>(running: &Running<P>, shutdown: &CancellationToken) -> bool {
    let mut backoff = running.settings.backoff();
    loop {
        if running.store.wait_ready(shutdown).await.is_err() {
            return false;
        }
        let registered = timeout(RARE_TIMEOUT, registration::register::<P>(running.store.pool(), &running.replica)).await;
        match registered.unwrap_or(Err(StoreError::Busy)) {
            Ok(()) => return true,
            Err(error) => report::<P>(&error),
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = backoff.wait() => {}
        }
    }
}

/// Registers the projection in each other log that a heartbeat finds, as a restart would. A log may be restored to a time before this release
/// first ran.
async fn register_again<P: Projection>(running: &Running<P>, heartbeat: &HeartbeatGuard, shutdown: &CancellationToken) {
    let mut view = running.replica.view();
    let mut known = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
        }
        let may_lack_it = {
            let view = view.borrow_and_update();
            let before = known.replace(view.log.clone());
            view.builds.is_empty() || before.is_some_and(|before| before != view.log)
        };
        if may_lack_it {
            if !register(running, shutdown).await {
                return;
            }
            heartbeat.request();
        }
    }
}

/// Records the progress of a rebuild.
fn measure<P: Projection>(view: &replica::ClusterView, head: Position) {
    let new = view.builds.values().find(|build| !build.serving);
    let progress = new.map_or(1.0, |build| {
        let applied: i64 = build.checkpoints.iter().map(|checkpoint| checkpoint.position.0.min(head.0)).sum();
        let all = i64::try_from(build.checkpoints.len()).unwrap_or_default() * head.0;
        if all == 0 { 1.0 } else { applied as f64 / all as f64 }
    });
    METRICS.projection_rebuild.record(progress, &[KeyValue::new("projection", P::NAME)]);
}

/// Switches to a new build when it has caught up. Runs beside the workers, because the switch waits for their progress.
async fn switch<P: Projection>(running: &Running<P>, heartbeat: &HeartbeatGuard, shutdown: &CancellationToken) {
    let mut view = running.replica.view();
    let mut warned = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
        }
        let nearly = {
            let view = view.borrow_and_update();
            let serving = view.builds.values().find(|build| build.serving);
            measure::<P>(&view, running.store.head_watcher().newest());
            let new = view
                .builds
                .values()
                .find(|build| !build.serving && build.version == P::VERSION && build.switch_when_ready && build.limit().is_none());
            let head = running.store.head_watcher().newest().0;
            // A build that is ahead of the log does not say how far the new one has to come.
            let highest = |build: &replica::Build| {
                if build.ahead_of.is_some() { Some(head) } else { build.checkpoints.iter().map(|checkpoint| checkpoint.position.0).max() }
            };
            let lowest = |build: &replica::Build| build.checkpoints.iter().map(|checkpoint| checkpoint.position.0).min();
            match (serving, new) {
                // One replica switches: the one with the smallest id.
                (Some(serving), Some(new)) => {
                    new.before == 0 && lowest(new) >= highest(serving).map(|highest| highest - running.settings.batch)
                }
                _ => false,
            }
        };
        if nearly {
            let switched = timeout(RARE_TIMEOUT, registration::switch(running.store.pool(), P::NAME, P::VERSION, &running.types)).await;
            match switched.unwrap_or(Err(StoreError::Busy)) {
                Ok(Switched::Done) => {
                    warned = false;
                    heartbeat.request();
                }
                Ok(Switched::NotYet) => {}
                Ok(Switched::Parked) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(
                            projection = P::NAME,
                            help = "see `cartctl parked list`",
                            "did not switch: the new build has more parked keys"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(projection = P::NAME, error = &error as &dyn std::error::Error, "switch failed, retrying");
                }
            }
        }
    }
}
