//! A process that runs commands and records each one. It is the test program itself, started again to run a single test.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use event_store::{EventStore, StoreSettings};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;

use super::{
    command::Spec,
    domain::{CommandId, Happened},
    record::Record,
};

/// The variable with the process's orders.
pub(crate) const WORK: &str = "CARTLOG_HISTORY_WORK";

/// The orders of a process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) database_url: String,
    pub(crate) seed: u64,
    pub(crate) process: u32,
    pub(crate) tasks: u32,
    pub(crate) state_cache_bytes: usize,
    pub(crate) records: PathBuf,
    /// The file for its [`Calls`], written at an orderly stop.
    pub(crate) counted: PathBuf,
}

/// The counts of a process's calls of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Calls {
    /// Calls whose connection was lost before the answer. Their outcome was looked up.
    pub(crate) looked_up: usize,
}

fn calls(metrics: &Registry) -> Calls {
    Calls { looked_up: count(metrics, "log_unknown_outcomes_total") }
}

fn count(metrics: &Registry, counter: &str) -> usize {
    let families = metrics.gather();
    let counters = families.iter().filter(|family| family.name() == counter).flat_map(|family| family.get_metric());
    let count: f64 = counters.map(|metric| metric.get_counter().get_value()).sum();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "Prometheus has floats only; a counter of calls is whole and small"
    )]
    let count = count as usize;
    count
}

/// Opens a store with a state cache of this many bytes; 0 turns the cache off.
pub fn settings(state_cache_bytes: usize) -> StoreSettings {
    StoreSettings { state_cache_bytes, ..StoreSettings::default() }
}

/// Runs the orders of this process, if it has any. The body of a test that does nothing when a person runs it.
///
/// # Panics
/// If the orders cannot be carried out.
pub fn work_if_asked() {
    let Ok(work) = std::env::var(WORK) else { return };
    let work: Work = serde_json::from_str(&work).expect("the work is what the test wrote");
    let metrics = metrics();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime can be made");
    let counted = work.counted.clone();
    runtime.block_on(run(work));
    std::fs::write(counted, serde_json::to_vec(&calls(&metrics)).expect("counts can be written")).expect("the counts can be written");
}

/// Installs metrics as a service does.
fn metrics() -> Registry {
    let metrics = Registry::new();
    let reader = opentelemetry_prometheus::exporter().with_registry(metrics.clone()).build().expect("metrics can be read");
    opentelemetry::global::set_meter_provider(SdkMeterProvider::builder().with_reader(reader).build());
    metrics
}

async fn run(work: Work) {
    let options: PgConnectOptions = work.database_url.parse().expect("the work has a database's URL");
    let store = EventStore::<Happened>::new(options, settings(work.state_cache_bytes));
    let records = OpenOptions::new().create(true).append(true).open(&work.records).expect("records can be written");
    let (records, stop) = (Arc::new(Mutex::new(records)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..work.tasks)
        .map(|task| tokio::spawn(commands(store.clone(), work.seed, (work.process, task), records.clone(), stop.clone())))
        .collect();
    // The parent process holds the other end. It asks to stop by closing it, also when it dies.
    let told = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut vec![]));
    told.await.expect("waiting does not panic").expect("the test's end of the pipe can be read");
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no command panics");
    }
    store.close().await;
}

async fn commands(store: EventStore<Happened>, seed: u64, (process, task): (u32, u32), records: Arc<Mutex<File>>, stop: Arc<AtomicBool>) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let command = CommandId { process, task, number };
        let before = head(&store).await;
        let (outcome, happens) = Spec::of(seed, command).run(&store).await;
        let after = head(&store).await;
        let mut line = serde_json::to_vec(&Record { command, before, after, outcome, happens }).expect("a record can be written");
        line.push(b'\n');
        // One unbuffered write: the record stays even if this process dies.
        records.lock().expect("writing does not panic").write_all(&line).expect("records can be written");
    }
}

/// Returns the log's head as soon as the log can be reached.
async fn head(store: &EventStore<Happened>) -> i64 {
    loop {
        match store.head().await {
            Ok(head) => return head.0,
            Err(error) if error.is_unavailable() => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("the head cannot be read: {error:?}"),
        }
    }
}
