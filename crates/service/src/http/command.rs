//! The measurement of commands.

use std::{sync::LazyLock, time::Instant};

use event_store::{DecideError, Position, StoreError};
use opentelemetry::{KeyValue, global, metrics::Histogram};

use super::refusal::Refusal;

/// In seconds. A command takes one or two round trips to the database, and waits in a queue under load.
const BOUNDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0];

/// Created at the first command, after the meter provider is set.
static DURATION: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    global::meter("service")
        .f64_histogram("command.duration")
        .with_unit("s")
        .with_description("Time of a command, by slice and outcome: done, refused (with the code in `refusal`), busy, fault.")
        .with_boundaries(BOUNDS.to_vec())
        .build()
});

/// Runs a slice's command, and records its outcome and duration.
///
/// # Errors
/// The error of the command.
pub async fn command<R: Refusal>(
    slice: &'static str,
    decision: impl Future<Output = Result<Position, DecideError<R>>>,
) -> Result<Position, DecideError<R>> {
    let start = Instant::now();
    let outcome = decision.await;
    let seconds = start.elapsed().as_secs_f64();
    // Static words, which need no allocation.
    let slice = KeyValue::new("slice", slice);
    let became = |word: &'static str| KeyValue::new("outcome", word);
    match &outcome {
        Ok(_) => DURATION.record(seconds, &[slice, became("done")]),
        Err(DecideError::Refused(refusal)) => {
            DURATION.record(seconds, &[slice, became("refused"), KeyValue::new("refusal", refusal.code())]);
        }
        Err(DecideError::Store(StoreError::Busy)) => DURATION.record(seconds, &[slice, became("busy")]),
        Err(DecideError::Store(_)) => DURATION.record(seconds, &[slice, became("fault")]),
    }
    outcome
}
