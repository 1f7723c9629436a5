//! Repeats one operation from many tasks at once, and counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, interval},
};

/// The result of one measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Successes per second.
    pub(crate) per_second: f64,
    /// Failures per second.
    pub(crate) failed_per_second: f64,
    /// The median in milliseconds; `None` if only the whole was timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p50_ms: Option<f64>,
    /// The 99th percentile in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p99_ms: Option<f64>,
    /// The error of the first failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_failure: Option<String>,
}

impl Sample {
    /// Makes a sample of single durations within a time.
    pub(crate) fn of_each(mut times: Vec<Duration>, elapsed: Duration) -> Self {
        times.sort_unstable();
        Self { p50_ms: quantile(&times, 0.5), p99_ms: quantile(&times, 0.99), ..Self::of_whole(times.len() as f64, elapsed) }
    }

    /// Makes a sample of a count within a time.
    pub(crate) fn of_whole(done: f64, elapsed: Duration) -> Self {
        Self { per_second: done / elapsed.as_secs_f64(), ..Self::default() }
    }
}

/// When a measurement ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After this many operations of all tasks together.
    Done(u64),
}

/// How operations are started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// By each of this many tasks, as soon as its last one has ended.
    Tasks(usize),
    /// This many times per second, whether or not earlier ones have ended.
    Offered(u32),
}

impl Load {
    /// The number of tasks in the report. A fixed rate counts as one task.
    pub(crate) const fn tasks(self) -> usize {
        match self {
            Self::Tasks(tasks) => tasks,
            Self::Offered(_) => 1,
        }
    }

    /// The measured time.
    pub(crate) async fn put<O, F>(self, length: Duration, operation: O) -> Sample
    where
        O: Fn(usize) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        match self {
            Self::Tasks(tasks) => measure(tasks, Until::Elapsed(length), operation).await,
            Self::Offered(per_second) => offer(per_second, length, operation).await,
        }
    }
}

/// Repeats `operation` in each of `tasks` tasks. It gets the number of its task.
pub(crate) async fn measure<O, F>(tasks: usize, until: Until, operation: O) -> Sample
where
    O: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), String>> + Send,
{
    let started = Instant::now();
    let begun = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for task in 0..tasks {
        let (operation, begun) = (operation.clone(), begun.clone());
        running.spawn(async move {
            let (mut times, mut failed, mut first_failure) = (vec![], 0_u64, None);
            loop {
                let start = Instant::now();
                let more = match until {
                    Until::Elapsed(length) => start < started + length,
                    Until::Done(count) => begun.fetch_add(1, Ordering::Relaxed) < count,
                };
                if !more {
                    return (times, failed, first_failure);
                }
                match operation(task).await {
                    Ok(()) => times.push(start.elapsed()),
                    Err(reason) => {
                        failed += 1;
                        first_failure.get_or_insert(reason);
                    }
                }
            }
        });
    }
    Together::default().of_all(running, started).await
}

/// The durations of the successes, the number of failures, and the first error.
type Ended = (Vec<Duration>, u64, Option<String>);

/// The results of all tasks.
#[derive(Default)]
struct Together {
    times: Vec<Duration>,
    failed: u64,
    first_failure: Option<String>,
}

impl Together {
    fn add(&mut self, ended: Result<Ended, JoinError>) {
        let (times, failed, first_failure) = ended.unwrap_or_else(|error| (vec![], 1, Some(error.to_string())));
        self.times.extend(times);
        self.failed += failed;
        self.first_failure = self.first_failure.take().or(first_failure);
    }

    /// The time from the start until the last one has ended.
    async fn of_all(mut self, mut running: JoinSet<Ended>, started: Instant) -> Sample {
        while let Some(ended) = running.join_next().await {
            self.add(ended);
        }
        let (Self { times, failed, first_failure }, elapsed) = (self, started.elapsed());
        Sample { failed_per_second: failed as f64 / elapsed.as_secs_f64(), first_failure, ..Sample::of_each(times, elapsed) }
    }
}

/// Starts `operation` at a fixed rate, whether or not earlier ones have ended, like independent clients. Each is timed from the moment at
/// which it was due, so a delayed generator hides nothing. The rate is that until the last one has ended.
async fn offer<O, F>(per_second: u32, length: Duration, operation: O) -> Sample
where
    O: Fn(usize) -> F,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let started = Instant::now();
    let (mut running, mut begun, mut together) = (JoinSet::new(), 0_u32, Together::default());
    // Timers are not finer than this.
    let mut ticks = interval(Duration::from_millis(1));
    while started.elapsed() < length {
        ticks.tick().await;
        loop {
            let due = started + Duration::from_secs(1) * begun / per_second;
            if due > Instant::now() || due >= started + length {
                break;
            }
            let doing = operation(begun as usize);
            running.spawn(async move {
                match doing.await {
                    Ok(()) => (vec![due.elapsed()], 0, None),
                    Err(reason) => (vec![], 1, Some(reason)),
                }
            });
            begun += 1;
        }
        // Collected here and not at the end, when that would be idle time.
        while let Some(ended) = running.try_join_next() {
            together.add(ended);
        }
    }
    together.of_all(running, started).await
}

/// Returns a percentile of sorted times, in milliseconds.
fn quantile(times: &[Duration], part: f64) -> Option<f64> {
    times.get((times.len().saturating_sub(1) as f64 * part) as usize).map(|time| time.as_secs_f64() * 1_000.0)
}

/// The median, the least and the greatest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Returns `None` for no numbers.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<_> = numbers.into_iter().collect();
        numbers.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        let middle = numbers.len() / 2;
        let median = if numbers.len() % 2 == 1 { numbers[middle] } else { f64::midpoint(numbers[middle - 1], numbers[middle]) };
        Some(Self { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn offered_operations_begin_when_due_and_are_timed_from_then() {
        let sample = offer(100, Duration::from_secs(1), |n| async move {
            tokio::time::sleep(Duration::from_millis(if n < 50 { 700 } else { 200 })).await;
            if n == 7 { Err("seven".to_owned()) } else { Ok(()) }
        })
        .await;
        let took = sample.per_second * 1.19;
        assert!((98.0..102.0).contains(&took), "{sample:?}");
        assert_eq!(sample.first_failure.as_deref(), Some("seven"));
        let (half, most) = (sample.p50_ms.unwrap_or_default(), sample.p99_ms.unwrap_or_default());
        assert!((200.0..202.0).contains(&half) && (700.0..702.0).contains(&most), "{sample:?}");
    }

    #[tokio::test]
    async fn successes_and_failures_are_counted_apart() {
        let begun = Arc::new(AtomicU64::new(0));
        let sample = measure(4, Until::Done(100), move |task| {
            let n = begun.fetch_add(1, Ordering::Relaxed);
            async move { if n.is_multiple_of(4) { Err(format!("task {task}")) } else { Ok(()) } }
        })
        .await;
        assert!((sample.per_second / sample.failed_per_second - 3.0).abs() < 1e-9);
        assert!(sample.failed_per_second > 0.0);
        assert!(sample.first_failure.unwrap().starts_with("task "));
        assert!(sample.p99_ms >= sample.p50_ms);
    }

    #[test]
    fn spread_has_median_and_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }
}
