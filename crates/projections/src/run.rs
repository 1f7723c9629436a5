//! Running a projection in this process.

use std::sync::Arc;

use disintegrate::Event;
use event_store::{EventStore, Position, StoreError, connection::with_timeout};
use opentelemetry::KeyValue;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    metrics::METRICS,
    projection::{Kind, Projection},
    registration::{self, Switched},
    replica::{self, Alive, Replica, Replicas},
    running::{Running, count_faults, say},
    settings::{SLOW, Settings},
    worker,
};

/// Runs a projection until it is told to stop. Any number of processes may run the same one: they share its segments, and when one dies the
/// others take over. `applied` is told up to where, whenever this process has applied something: not how it goes past what is nothing of it.
///
/// # Errors
/// None: what goes wrong is said, counted and tried again.
pub(crate) async fn run<P: Projection>(
    store: EventStore<P::Log>,
    replicas: Replicas,
    projection: P,
    settings: Settings,
    applied: Arc<watch::Sender<Position>>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let types: Arc<[String]> = P::Event::SCHEMA.events.iter().map(|name| (*name).to_owned()).collect();
    let replica = Arc::new(Replica::new(P::NAME, P::VERSION, P::SEGMENTS, types.clone(), settings.lease));
    let running = Running { store, replicas, projection, settings: settings.kept(), applied, replica, types };
    if !register(&running, &shutdown).await {
        return Ok(());
    }
    count_faults::<P>(0);
    let alive = running.replicas.live(running.store.pool(), running.replica.clone());
    match P::KIND {
        Kind::ReadModel => {
            tokio::join!(
                worker::work(&running, &alive, "projection_a", &shutdown),
                worker::work(&running, &alive, "projection_b", &shutdown),
                switch(&running, &alive, &shutdown),
            );
        }
        Kind::Automation => worker::work(&running, &alive, "automation", &shutdown).await,
    }
    // Where the database is away, neither of these two comes about, and the others wait until this one is no longer alive: so what becomes
    // of them is nothing to stop for.
    let _ = timeout(SLOW, alive.end()).await;
    let _ = with_timeout(async {
        let mut connection = running.store.connection().await?;
        sqlx::query!("DELETE FROM replica WHERE name = $1 AND id = $2", P::NAME, running.replica.id).execute(&mut *connection).await?;
        connection.done();
        Ok(())
    })
    .await;
    Ok(())
}

/// Makes the projection known, as soon as the database is there. `false`: stopped before.
async fn register<P: Projection>(running: &Running<P>, shutdown: &CancellationToken) -> bool {
    let mut backoff = Backoff::new(running.settings.max_backoff);
    loop {
        let started = Instant::now();
        if running.store.wait_ready(shutdown).await.is_err() {
            return false;
        }
        let registered = timeout(SLOW, registration::register::<P>(running.store.pool(), &running.replica)).await;
        match registered.unwrap_or(Err(StoreError::Busy)) {
            Ok(()) => return true,
            Err(error) => say::<P>(&error),
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = backoff.pause(started) => {}
        }
    }
}

/// How far the build that is being made has come.
fn measure<P: Projection>(seen: &replica::Seen, head: Position) {
    let made = seen.builds.values().find(|build| !build.serving);
    let progress = made.map_or(1.0, |build| {
        let applied: i64 = build.checkpoints.iter().map(|checkpoint| checkpoint.position.0.min(head.0)).sum();
        let all = i64::try_from(build.checkpoints.len()).unwrap_or_default() * head.0;
        if all == 0 { 1.0 } else { applied as f64 / all as f64 }
    });
    METRICS.projection_rebuild.record(progress, &[KeyValue::new("projection", P::NAME)]);
}

/// Puts a new build into service when it is as far as the one that is. Beside the workers, for they go on while it waits for them.
async fn switch<P: Projection>(running: &Running<P>, alive: &Alive, shutdown: &CancellationToken) {
    let mut seen = running.replica.seen();
    let mut said = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = seen.changed() => if changed.is_err() { return },
        }
        let nearly = {
            let seen = seen.borrow_and_update();
            let serving = seen.builds.values().find(|build| build.serving);
            measure::<P>(&seen, running.store.head_watcher().newest());
            let made = seen
                .builds
                .values()
                .find(|build| !build.serving && build.version == P::VERSION && build.switch_when_ready && build.limit().is_none());
            let far = |build: &replica::Build| build.checkpoints.iter().map(|checkpoint| checkpoint.position.0).max();
            let near = |build: &replica::Build| build.checkpoints.iter().map(|checkpoint| checkpoint.position.0).min();
            match (serving, made) {
                (Some(serving), Some(made)) => made.before == 0 && near(made) >= far(serving).map(|far| far - running.settings.batch),
                _ => false,
            }
        };
        if nearly {
            let switched = timeout(SLOW, registration::switch(running.store.pool(), P::NAME, P::VERSION, &running.types)).await;
            match switched.unwrap_or(Err(StoreError::Busy)) {
                Ok(Switched::Done) => {
                    said = false;
                    alive.look();
                }
                Ok(Switched::NotYet) => {}
                Ok(Switched::Parked) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(
                            projection = P::NAME,
                            "the new build does not go into service: it has keys parked that the one in service has not; `cartctl parked list` shows them"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        projection = P::NAME,
                        error = &error as &dyn std::error::Error,
                        "the new build cannot go into service yet"
                    );
                }
            }
        }
    }
}
