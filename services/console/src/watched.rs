//! What the console watches in the background: how often each event happened, and how far projections lag.
//!
//! The counts of a long log take minutes to read, and no index has them. So each process counts once from the beginning, in small portions, and
//! continues with what is appended.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cart_events::DomainEvent;
use event_store::{EventStore, Position, StoreError};
use service::{CancellationToken, Fault};
use tokio::{sync::watch, time::sleep};

/// The events that one question counts at most.
const PORTION: i64 = 10_000;
/// The pause between two questions while a page is open, and while none is.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// The pause after a question failed.
const RETRY: Duration = Duration::from_secs(1);
/// The time over which events a second are measured.
const RECENT: Duration = Duration::from_secs(5);
/// The pause between two samples of the lags, and how many are kept: five minutes.
const SAMPLE: Duration = Duration::from_secs(5);
const SAMPLES: usize = 60;

/// What is watched. Clones share it.
#[derive(Clone)]
pub(crate) struct Watched(Arc<Inner>);

struct Inner {
    log: EventStore<DomainEvent>,
    counts: Mutex<Counts>,
    lags: Mutex<BTreeMap<String, VecDeque<f64>>>,
    changes: watch::Sender<u64>,
}

/// How often each event happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    all: HashMap<String, i64>,
    recent: VecDeque<(Instant, HashMap<String, i64>)>,
    /// Events after the first position and up to the second are not counted yet.
    gap: (Position, Position),
    /// Events up to here are counted, but for the gap.
    pub(crate) head: Position,
    epoch: Option<u64>,
}

impl Counts {
    /// How often an event of this type happened, as far as it was counted.
    pub(crate) fn of(&self, event_type: &str) -> i64 {
        self.all.get(event_type).copied().unwrap_or_default()
    }

    /// How often a second it happened lately.
    pub(crate) fn rate(&self, event_type: &str) -> f64 {
        let recent = self.recent.iter().filter(|(at, _)| at.elapsed() < RECENT);
        let events: i64 = recent.filter_map(|(_, counts)| counts.get(event_type)).sum();
        events as f64 / RECENT.as_secs_f64()
    }

    /// The number of events that are not counted yet.
    pub(crate) fn left(&self) -> i64 {
        self.gap.1.0 - self.gap.0.0
    }

    fn add(&mut self, counted: &HashMap<String, i64>) {
        for (event_type, events) in counted {
            *self.all.entry(event_type.clone()).or_default() += events;
        }
    }
}

impl Watched {
    pub(crate) fn new(log: EventStore<DomainEvent>) -> Self {
        Self(Arc::new(Inner { log, counts: Mutex::default(), lags: Mutex::default(), changes: watch::Sender::new(0) }))
    }

    pub(crate) fn counts(&self) -> Counts {
        lock(&self.0.counts).clone()
    }

    /// The lags of a projection in seconds, the oldest first.
    pub(crate) fn lags(&self, projection: &str) -> Vec<f64> {
        lock(&self.0.lags).get(projection).map(|lags| lags.iter().copied().collect()).unwrap_or_default()
    }

    /// Changes with each event that was counted.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Counts until it is told to stop.
    ///
    /// # Errors
    /// None: it waits for a log that is away.
    pub(crate) async fn count(self, stop: CancellationToken) -> Result<(), Fault> {
        let mut head = self.0.log.head_watcher().subscribe();
        let counting = async {
            loop {
                match self.step().await {
                    Ok(true) => {}
                    Ok(false) => drop(head.changed().await),
                    Err(error) => {
                        tracing::debug!(%error, "counts wait for the log");
                        sleep(RETRY).await;
                    }
                }
                sleep(if self.0.changes.receiver_count() > 0 { PAUSES.0 } else { PAUSES.1 }).await;
            }
        };
        stop.run_until_cancelled(counting).await;
        Ok(())
    }

    /// Counts a portion. Returns whether it was any.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) async fn step(&self) -> Result<bool, StoreError> {
        let Inner { log, changes, .. } = &*self.0;
        let newest = log.head().await?;
        let epoch = Some(log.head_watcher().epoch());
        let (after, gap) = {
            let mut counts = lock(&self.0.counts);
            if counts.epoch != epoch || newest < counts.head {
                // Another log, perhaps.
                *counts = Counts { gap: (Position::START, newest), head: newest, epoch, ..Counts::default() };
            }
            (counts.head, counts.gap)
        };
        if after < newest {
            let (counted, up_to) = operations::count_types(log.pool(), after, PORTION).await?;
            let mut counts = lock(&self.0.counts);
            counts.add(&counted);
            counts.head = up_to;
            counts.recent.push_back((Instant::now(), counted));
            counts.recent.retain(|(at, _)| at.elapsed() < RECENT);
        }
        if gap.0 < gap.1 {
            let (counted, up_to) = operations::count_types(log.pool(), gap.0, PORTION.min(gap.1.0 - gap.0.0)).await?;
            let mut counts = lock(&self.0.counts);
            counts.add(&counted);
            counts.gap.0 = up_to;
        }
        let any = after < newest || gap.0 < gap.1;
        if any {
            changes.send_modify(|number| *number += 1);
        }
        Ok(any)
    }

    /// Samples the lags until it is told to stop.
    ///
    /// # Errors
    /// None: it waits for a log that is away.
    pub(crate) async fn sample(self, stop: CancellationToken) -> Result<(), Fault> {
        let sampling = async {
            loop {
                if let Ok((_, builds)) = operations::builds(self.0.log.pool()).await {
                    let mut lags = lock(&self.0.lags);
                    for build in builds.iter().filter(|build| build.status == "serving") {
                        let samples = lags.entry(build.name.clone()).or_default();
                        samples.push_back(build.lag_seconds);
                        samples.drain(..samples.len().saturating_sub(SAMPLES));
                    }
                }
                sleep(SAMPLE).await;
            }
        };
        stop.run_until_cancelled(sampling).await;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
