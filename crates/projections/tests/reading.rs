//! A replica reads the log once for all its segments, and one batch ahead of what it writes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step fails the test")]

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use async_trait::async_trait;
use cart_events::{ArchivingStream, DomainEvent, examples::Shopping};
use disintegrate::{DomainIdSet, Event, EventSchema};
use event_store::Recorded;
use projections::{Projection, Settings};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::PgConnection;
use test_support::{TestLog, eventually};
use uuid::Uuid;

const BATCH: usize = 50;

/// Events that were read from the log, by each of the tests.
static READ: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// An event that is counted when it is read, whatever becomes of it.
#[derive(Debug, Clone)]
struct Counted<const N: usize>(ArchivingStream);

impl<const N: usize> TryFrom<DomainEvent> for Counted<N> {
    type Error = <ArchivingStream as TryFrom<DomainEvent>>::Error;

    fn try_from(event: DomainEvent) -> Result<Self, Self::Error> {
        READ[N].fetch_add(1, SeqCst);
        ArchivingStream::try_from(event).map(Self)
    }
}

impl<const N: usize> Event for Counted<N> {
    const SCHEMA: EventSchema = ArchivingStream::SCHEMA;

    fn domain_ids(&self) -> DomainIdSet {
        self.0.domain_ids()
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }
}

fn settings() -> Settings {
    Settings { batch: BATCH as i64, ..Settings::default() }
}

/// A log of so many events, all of which the projections below take.
async fn log(events: usize) -> TestLog<DomainEvent> {
    let log = TestLog::<DomainEvent>::create().await;
    let carts: Vec<_> = (0..20).map(|_| Shopping::new()).collect();
    let history = |n: usize| if n.is_multiple_of(10) { carts[n % 20].price_changed(0) } else { carts[n % 20].added(0) };
    log.append((0..events).map(history).collect::<Vec<_>>()).await;
    log
}

struct Reader;

#[async_trait]
impl Projection for Reader {
    type Log = DomainEvent;
    type Event = Counted<0>;
    const NAME: &'static str = "reader";
    const TABLES: &'static [&'static str] = &[];

    fn key(event: &Counted<0>) -> Option<Uuid> {
        event.0.cart_id().map(|cart| cart.uuid())
    }

    async fn apply(&self, _: &mut PgConnection, _: &[Recorded<Counted<0>>]) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn log_is_read_once_for_all_segments_of_a_replica() {
    const EVENTS: usize = 630;
    let log = log(EVENTS).await;
    log.project(Reader, settings()).await;
    assert_eq!(READ[0].swap(0, SeqCst), EVENTS, "eight segments at one position");

    let mut random = StdRng::seed_from_u64(1);
    let mut positions: Vec<i64> = (0..8).map(|_| random.random_range(0..EVENTS as i64)).collect();
    for (segment, position) in positions.iter().enumerate() {
        let set = sqlx::query("UPDATE checkpoint SET position = $2 WHERE segment = $1").bind(segment as i32).bind(position);
        assert_eq!(set.execute(log.store.pool()).await.unwrap().rows_affected(), 1);
    }
    log.project(Reader, settings()).await;
    positions.sort_unstable();
    assert!(positions[0] < positions[7]);
    assert_eq!(READ[0].load(SeqCst), EVENTS - positions[0] as usize, "from where the furthest behind of them stands: {positions:?}");
}

/// Writes no batch behind which there is a whole one more before that one was read.
struct Ahead {
    events: usize,
    written: AtomicUsize,
}

#[async_trait]
impl Projection for Ahead {
    type Log = DomainEvent;
    type Event = Counted<1>;
    const NAME: &'static str = "ahead";
    const TABLES: &'static [&'static str] = &[];

    fn key(event: &Counted<1>) -> Option<Uuid> {
        event.0.cart_id().map(|cart| cart.uuid())
    }

    async fn apply(&self, _: &mut PgConnection, batch: &[Recorded<Counted<1>>]) -> Result<(), sqlx::Error> {
        let written = self.written.fetch_add(batch.len(), SeqCst) + batch.len();
        if written + BATCH <= self.events {
            eventually("the next batch is read while this one is written", || async {
                (READ[1].load(SeqCst) >= written + BATCH).then_some(())
            })
            .await;
        }
        Ok(())
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn next_batch_is_read_while_one_is_written() {
    let (events, written) = (4 * BATCH, AtomicUsize::new(0));
    let log = log(events).await;
    log.project(Ahead { events, written }, settings()).await;
    assert_eq!(READ[1].load(SeqCst), events);
}

/// The promise is 5 seconds. These lengths and the time of the statements add up to it.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn segments_are_taken_over_within_five_seconds() {
    const PROMISED: Duration = Duration::from_secs(5);
    const STATEMENTS: Duration = Duration::from_millis(500);
    let log = TestLog::<DomainEvent>::create().await;
    for role in ["cartlog_projections", "cartlog_publisher"] {
        let idle = "SELECT setting::bigint FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout' AND unit = 'ms'";
        let mut session = sqlx::Connection::connect_with(&log.database.options_as(role)).await.unwrap();
        let idle: i64 = sqlx::query_scalar(idle).fetch_one::<&mut PgConnection>(&mut session).await.unwrap();
        assert!(idle > 0, "{role}: a transaction that is frozen is ended");
        let within = Settings::default().taken_over_within(Duration::from_millis(idle as u64));
        assert!(within + STATEMENTS <= PROMISED, "{role}: {within:?}");
    }
    assert!(Settings::default().shared_within() + STATEMENTS <= PROMISED);
}
