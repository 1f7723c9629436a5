//! Logs to measure on, and the measurement of one contender.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use cart_events::DomainEvent;
use disintegrate::NoSnapshot;
use disintegrate_postgres::decision_maker;
use event_store::{EventStore, StoreSettings};
use sqlx::{ConnectOptions, PgPool};

use crate::{
    bench::Bench,
    database::{Database, FLOOR, LOG, Products, RIVAL, Rival, Table},
    floor::Floor,
    measure::{Load, Sample},
    report::Contender,
    scenarios::thousands,
    work::Work,
};

/// With more events before, Cartlog is measured alone. A rival's log would take twenty minutes and as many gigabytes.
pub(crate) const RIVALS_UP_TO: u64 = 1_000_000;
/// Up to this size, a new log is quicker than removing what a measurement adds.
const FILLED_AGAIN: u64 = 100_000;

/// Returns the settings of a service, or the same without the state cache.
pub(crate) fn settings(contender: Contender) -> StoreSettings {
    let ours = StoreSettings::default();
    if contender == Contender::Loading { StoreSettings { state_cache_bytes: 0, ..ours } } else { ours }
}

/// A log, the floor beside it, and disintegrate's log, with the same number of events.
pub(crate) struct Place {
    pub(crate) ours: Database,
    pub(crate) rival: Option<(Database, Rival)>,
    pub(crate) before: u64,
    /// Whether each measurement gets a new log. Otherwise the added events are removed.
    pub(crate) filled_again: bool,
}

impl Place {
    pub(crate) async fn fill(bench: &Bench, before: u64, with_rival: bool) -> Result<Self> {
        bench.say(format!("filling a log with {} events", thousands(before)));
        let rival = if with_rival { Some(bench.server.rival().await?) } else { None };
        let place = Self { ours: bench.server.log().await?, rival, before, filled_again: before <= FILLED_AGAIN };
        place.refill(Contender::Cartlog).await?;
        if before <= RIVALS_UP_TO {
            place.refill(Contender::Floor).await?;
            place.refill(Contender::Disintegrate).await?;
        }
        Ok(place)
    }

    async fn refill(&self, contender: Contender) -> Result<()> {
        let Some((pool, table)) = self.table(contender) else { return Ok(()) };
        sqlx::raw_sql(&format!("TRUNCATE {}", table.name)).execute(pool).await?;
        table.add_carts(pool, self.before / 2, Products::Many(1_000)).await
    }

    /// Restores the log to its filled state, and runs a checkpoint. A very large log keeps what measurements add, some hundredths of it:
    /// removed rows at its end would have to be skipped, which never happens in a real log.
    pub(crate) async fn again(&self, contender: Contender) -> Result<()> {
        match self.table(contender) {
            _ if self.before > RIVALS_UP_TO => {}
            Some((pool, table)) if !self.filled_again => table.cut(pool, self.before).await?,
            _ => self.refill(contender).await?,
        }
        self.ours.checkpoint().await
    }

    fn table(&self, contender: Contender) -> Option<(&PgPool, Table)> {
        Some(match contender {
            Contender::Disintegrate => (&self.rival.as_ref()?.0.pool, RIVAL),
            Contender::Floor => (&self.ours.pool, FLOOR),
            _ => (&self.ours.pool, LOG),
        })
    }

    /// Measures once. The operation runs for a moment before, so connections and prepared statements exist.
    pub(crate) async fn measure(&self, contender: Contender, work: Work, tasks: usize, length: Duration) -> Result<Sample> {
        self.again(contender).await?;
        let work = Arc::new(work);
        match contender {
            Contender::Cartlog | Contender::Loading => cartlog(&self.ours, contender, work, Load::Tasks(tasks), length).await,
            Contender::Disintegrate => {
                let (_, store) = self.rival.as_ref().ok_or_else(|| anyhow!("disintegrate's log was not made"))?;
                let maker = decision_maker(store.clone(), NoSnapshot);
                Ok(warmed_up(Load::Tasks(tasks), length, move |task| {
                    let (maker, command) = (maker.clone(), work.next(task));
                    async move { maker.make(command?).await.map(drop).map_err(|error| format!("{error:?}")) }
                })
                .await)
            }
            _ => {
                let floor = Floor::connect(&self.ours, tasks).await?;
                let of_operation = floor.clone();
                let sample = warmed_up(Load::Tasks(tasks), length, move |task| {
                    let (floor, command) = (of_operation.clone(), work.next(task));
                    async move { floor.insert(task, &command?).await }
                })
                .await;
                floor.close().await;
                Ok(sample)
            }
        }
    }
}

/// Add Item by a new store, on a log as it is.
pub(crate) async fn cartlog(
    database: &Database,
    contender: Contender,
    work: impl Into<Arc<Work>>,
    load: Load,
    length: Duration,
) -> Result<Sample> {
    let options = database.options_as("cartlog_commands")?.disable_statement_logging();
    let store = EventStore::<DomainEvent>::new(options, settings(contender));
    let (of_operation, work) = (store.clone(), work.into());
    let sample = warmed_up(load, length, move |task| {
        let (store, command) = (of_operation.clone(), work.next(task));
        async move { store.decide(&command?).await.map(drop).map_err(|error| format!("{error:?}")) }
    })
    .await;
    store.close().await;
    Ok(sample)
}

/// The time until the used pages are in memory again and their first changes since a checkpoint are written. With 10 million events, the
/// first 250 ms reached 13 % less than the following ones, which did not differ.
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures after a warm-up of a tenth of the time, and at least [`WARM_UP`].
pub(crate) async fn warmed_up<O, F>(load: Load, length: Duration, operation: O) -> Sample
where
    O: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    // A quick run yields no figures, so it needs no warm-up.
    load.put((length / 10).max(WARM_UP.min(length)), operation.clone()).await;
    load.put(length, operation).await
}

/// Returns all contenders; each round starts with another one.
pub(crate) fn rotated<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    let (end, start) = all.split_at(round % all.len().max(1));
    start.iter().chain(end)
}
