//! The processes that make a history, seen from the test.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use event_store::{EventStore, Metadata, SourcePartition, Translated};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::PgPool;
use tokio::process::{Child, Command};
use uuid::Uuid;

use super::{
    checker::{Summary, check},
    command::{Decides, Spec, TRANSLATOR},
    domain::{CommandId, Happened},
    record::Record,
    worker::{Calls, WORK, Work},
};
use crate::eventually;

/// The settings of a history.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The log's URL, with the role that the processes use.
    pub database_url: String,
    /// The seed of the commands.
    pub seed: u64,
    /// Processes at the start.
    pub processes: u32,
    /// Commands that each process runs at once.
    pub tasks: u32,
    /// Bytes of each process's state cache.
    pub state_cache_bytes: usize,
    /// The full name of the test that calls [`work_if_asked`](super::work_if_asked).
    pub worker: &'static str,
}

/// Processes that make a history. Dropping this value kills them.
pub struct Workers {
    setup: Setup,
    directory: PathBuf,
    /// The processes by number. A number is never used again.
    running: HashMap<u32, Child>,
    started: u32,
}

impl Workers {
    /// Starts the processes. They record into a new folder in `directory`.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start(setup: Setup, directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref().join(format!("history-{}", Uuid::now_v7().simple()));
        fs::create_dir_all(&directory).expect("a folder for the records can be made");
        let mut workers = Self { directory, running: HashMap::new(), started: 0, setup };
        for _ in 0..workers.setup.processes {
            workers.start_one();
        }
        workers
    }

    /// Starts another process, and returns its number.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_one(&mut self) -> u32 {
        let process = self.started;
        self.started += 1;
        let work = Work {
            database_url: self.setup.database_url.clone(),
            seed: self.setup.seed,
            process,
            tasks: self.setup.tasks,
            state_cache_bytes: self.setup.state_cache_bytes,
            records: self.records(process),
            counted: self.counted(process),
        };
        let output = fs::File::create(self.directory.join(format!("{process}.log"))).expect("a log can be made");
        let child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args([self.setup.worker, "--exact", "--nocapture", "--test-threads=1"])
            .env(WORK, serde_json::to_string(&work).expect("the work can be written"))
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a log can be opened twice"))
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .expect("a process can be started");
        self.running.insert(process, child);
        process
    }

    fn records(&self, process: u32) -> PathBuf {
        self.directory.join(format!("{process}.jsonl"))
    }

    fn counted(&self, process: u32) -> PathBuf {
        self.directory.join(format!("{process}.counted"))
    }

    /// Returns how many commands of a process were answered and recorded.
    ///
    /// # Panics
    /// If the process has ended, or its records cannot be read.
    pub fn answered(&mut self, process: u32) -> usize {
        if let Some(child) = self.running.get_mut(&process) {
            let ended = child.try_wait().expect("a child can be looked after");
            assert!(ended.is_none(), "process {process} ended: {}", self.last_words(process));
        }
        match fs::read(self.records(process)) {
            Ok(records) => records.into_iter().filter(|byte| *byte == b'\n').count(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => panic!("the records of process {process} cannot be read: {error}"),
        }
    }

    /// Returns the running processes.
    pub fn running(&self) -> Vec<u32> {
        let mut running: Vec<_> = self.running.keys().copied().collect();
        running.sort_unstable();
        running
    }

    /// Waits until each of these processes has recorded this many more commands.
    ///
    /// # Panics
    /// If they do not get there.
    pub async fn until_answered(&mut self, further: usize, processes: &[u32]) {
        let goals: Vec<_> = processes.iter().map(|process| (*process, self.answered(*process) + further)).collect();
        eventually(&format!("processes {processes:?} have had {further} more commands answered"), || {
            let there = goals.iter().all(|(process, goal)| self.answered(*process) >= *goal);
            async move { there.then_some(()) }
        })
        .await;
    }

    fn signal(&self, process: u32, signal: Signal) {
        let child = self.running.get(&process).expect("the process runs");
        // The process was not waited for yet, so its pid cannot belong to another one.
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).expect("the process runs");
        kill(Pid::from_raw(pid), signal).expect("a child takes signals");
    }

    /// Freezes a process with SIGSTOP.
    ///
    /// # Panics
    /// If there is no process with that number.
    pub fn freeze(&self, process: u32) {
        self.signal(process, Signal::SIGSTOP);
    }

    /// Resumes a frozen process.
    ///
    /// # Panics
    /// If there is no process with that number.
    pub fn thaw(&self, process: u32) {
        self.signal(process, Signal::SIGCONT);
    }

    /// Kills a process with SIGKILL. Its records count.
    ///
    /// # Panics
    /// If there is no process with that number.
    pub async fn kill(&mut self, process: u32) {
        let mut child = self.running.remove(&process).expect("the process runs");
        child.kill().await.expect("a child can be killed");
    }

    /// Lets the processes finish their commands, and stops them.
    ///
    /// # Panics
    /// If one has failed.
    pub async fn stop(&mut self) {
        for child in self.running.values_mut() {
            drop(child.stdin.take());
        }
        for (process, mut child) in std::mem::take(&mut self.running) {
            let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
            let ended = ended.expect("a process ends when it is told to").expect("a child can be waited for");
            assert!(ended.success(), "process {process} ended with {ended}: {}", self.last_words(process));
        }
    }

    /// Stops the processes and checks their history.
    ///
    /// # Panics
    /// If the log was not exact. The message says what was wrong, and how to repeat the history.
    pub async fn check(mut self, log: &PgPool) -> Summary {
        self.stop().await;
        let mut records: Vec<Record> = vec![];
        let mut calls = Calls::default();
        for process in 0..self.started {
            // A process that was killed has written no counts.
            if let Ok(counted) = fs::read_to_string(self.counted(process)) {
                let counted: Calls = serde_json::from_str(&counted).expect("the counts are what the process wrote");
                calls.looked_up += counted.looked_up;
            }
            let lines = fs::read_to_string(self.records(process)).unwrap_or_default();
            // A process that was killed may have left half a line.
            let whole = lines.rfind('\n').map_or("", |end| lines.get(..end).unwrap_or_default());
            records.extend(whole.lines().map(|line| serde_json::from_str::<Record>(line).expect("a record can be read")));
        }
        let (seed, log) = (self.setup.seed, read_log(log).await);
        match check(seed, &log, &records) {
            Ok(summary) => {
                fs::remove_dir_all(&self.directory).expect("the records can be removed");
                let Calls { looked_up } = calls;
                Summary { looked_up, ..summary }
            }
            Err(violations) => {
                let first: Vec<_> = violations.iter().take(5).collect();
                panic!(
                    "the log is not exact: {} violations, of which the first are {first:#?}\nThe records are in {}. CHECK_SEED={seed} runs \
                     the same commands again.",
                    violations.len(),
                    self.directory.display()
                )
            }
        }
    }

    fn last_words(&self, process: u32) -> String {
        fs::read_to_string(self.directory.join(format!("{process}.log"))).unwrap_or_default()
    }
}

/// Reads the whole log.
///
/// # Panics
/// If it cannot be read.
pub async fn read_log(pool: &PgPool) -> Vec<(i64, Happened)> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT event_id, payload FROM event ORDER BY event_id").fetch_all(pool).await.expect("the log can be read");
    rows.into_iter().map(|(at, payload)| (at, serde_json::from_slice(&payload).expect("an event can be read"))).collect()
}

/// Appends like a translator, in one call without a condition: the events of the commands from `first` to before `end`.
///
/// # Panics
/// If they cannot be appended.
pub async fn translate(store: &EventStore<Happened>, seed: u64, first: u32, end: u32) {
    let happens = |number| match Spec::of(seed, CommandId { process: TRANSLATOR, task: 0, number }).decide(&[]) {
        Decides::Events(events) => events,
        decided => unreachable!("a translator says what happened: {decided:?}"),
    };
    let events: Vec<_> = (first..end).flat_map(happens).map(|event| (event, Metadata::default())).collect();
    let source = SourcePartition { consumer: "history", topic: "history", partition: 0 };
    let stored = (first > 0).then_some(i64::from(first));
    let translated = store.append_from(source, stored, i64::from(end), &events).await.expect("the events can be appended");
    assert!(matches!(translated, Translated::Appended { .. }), "somebody else translated too: {translated:?}");
}

/// Returns the seeds of a test: `CHECK_SEED`, or else a fixed one and a random one.
pub fn seeds() -> Vec<u64> {
    match std::env::var("CHECK_SEED") {
        Ok(seed) => vec![seed.parse().expect("CHECK_SEED is a number")],
        Err(_) => vec![1, Uuid::now_v7().as_u64_pair().1 >> 32],
    }
}
