//! Replicas that start, stop, die and freeze share segments: each event is applied once per key, in order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step fails the test")]

use std::{collections::BTreeSet, sync::mpsc, time::Duration};

use crate::ledger::{Ledger, assert_rows, carts, happen, log, seeded};
use async_trait::async_trait;
use cart_events::{ArchivingStream, DomainEvent};
use event_store::{EventStore, Position, Recorded, StoreSettings};
use projections::{Projection, Projections, SEGMENTS, Settings, Switch, Wait, segment_of};
use rand::{Rng, seq::SliceRandom};
use sqlx::{Connection, PgConnection};
use test_support::{Process, TestLog, eventually, quick};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A process with the id that its ledger writes.
struct Replica {
    id: Uuid,
    process: Process<DomainEvent>,
}

impl std::ops::Deref for Replica {
    type Target = Process<DomainEvent>;

    fn deref(&self) -> &Self::Target {
        &self.process
    }
}

fn start<const VERSION: i32>(log: &TestLog<DomainEvent>) -> Replica {
    start_with::<VERSION>(log, quick())
}

/// Starts a replica whose heartbeat is so rare that no test waits for it.
fn start_with_rare_heartbeats(log: &TestLog<DomainEvent>) -> Replica {
    start_with::<1>(log, Settings { lease: Duration::from_secs(600), ..quick() })
}

fn start_with<const VERSION: i32>(log: &TestLog<DomainEvent>, settings: Settings) -> Replica {
    let ledger = Ledger::<VERSION> { by: Uuid::now_v7(), ..Ledger::default() };
    Replica { id: ledger.by, process: Process::with(log, ledger, settings) }
}

/// Returns how many segments of the serving build each owner has.
async fn shares(log: &TestLog<DomainEvent>) -> Vec<i64> {
    sqlx::query_scalar(
        "SELECT count(*) FROM checkpoint JOIN projection USING (name, build) WHERE status = 'serving' AND owner IS NOT NULL
         GROUP BY owner ORDER BY 1",
    )
    .fetch_all(log.store.pool())
    .await
    .unwrap()
}

async fn until_shares(log: &TestLog<DomainEvent>, wanted: &[i64]) {
    eventually("the segments are shared out", || async { (shares(log).await == wanted).then_some(()) }).await;
}

async fn appliers(log: &TestLog<DomainEvent>, after: Position) -> BTreeSet<Uuid> {
    let by = sqlx::query_scalar("SELECT DISTINCT by FROM projection_a.ledger WHERE position > $1").bind(after.0);
    by.fetch_all(log.store.pool()).await.unwrap().into_iter().collect()
}

/// Waits until the serving build has applied the whole log, and compares it with a fold of the log.
async fn assert_exact(log: &TestLog<DomainEvent>) {
    let head = log.store.head().await.unwrap();
    eventually("all is applied", || async {
        let waited = log.projections.wait("ledger", None, head, Duration::from_secs(1)).await.unwrap();
        (waited == Wait::Reached).then_some(())
    })
    .await;
    let build: String =
        sqlx::query_scalar("SELECT build FROM projection WHERE status = 'serving'").fetch_one(log.store.pool()).await.unwrap();
    assert_rows(log, &build, &|_, _| false).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn replicas_share_segments_and_take_over() {
    let (log, carts, random) = (log().await, carts(), seeded(1));
    let first = start::<1>(&log);
    until_shares(&log, &[16]).await;
    let second = start::<1>(&log);
    until_shares(&log, &[8, 8]).await;
    let head = happen(&log, &carts, 200, &random).await;
    assert_exact(&log).await;
    assert_eq!(appliers(&log, Position::START).await, BTreeSet::from([first.id, second.id]));
    let third = start::<1>(&log);
    until_shares(&log, &[5, 5, 6]).await;
    second.process.kill();
    until_shares(&log, &[8, 8]).await;
    first.process.stop().await;
    until_shares(&log, &[16]).await;
    happen(&log, &carts, 200, &random).await;
    assert_exact(&log).await;
    assert_eq!(appliers(&log, head).await, BTreeSet::from([third.id]));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn throughput_covers_all_replicas() {
    let (log, carts, random) = (log().await, carts(), seeded(14));
    let replicas = [start::<1>(&log), start::<1>(&log)];
    until_shares(&log, &[8, 8]).await;
    let of = async |replica: &Replica| replica.projections.backlog().await.unwrap().remove("ledger").unwrap();
    let told = "SELECT coalesce(sum((throughput -> 'projection_a' ->> 'events')::float8), 0), count(*) FILTER (WHERE throughput ? 'projection_a') FROM replica";
    let told = async || -> (f64, i64) { sqlx::query_as(told).fetch_one(log.store.pool()).await.unwrap() };
    for replica in &replicas {
        eventually("it tells what both apply", || async {
            happen(&log, &carts, 20, &random).await;
            let (before, backlog, after) = (told().await, of(replica).await, told().await);
            // Asked between two heartbeats, and not about one.
            (before == after && before.1 == 2).then(|| {
                assert!((backlog.events_per_second - before.0).abs() < 0.1, "{backlog:?}, {before:?}");
                assert!(backlog.events_per_second > 0.0, "{backlog:?}");
                assert!((1.0..=50.0).contains(&backlog.batch), "no batch takes more: {backlog:?}");
            })
        })
        .await;
    }
    let (_, builds) = operations::builds(log.store.pool()).await.unwrap();
    assert!(builds[0].events_per_second > 0.0 && (1.0..=50.0).contains(&builds[0].batch), "{builds:?}");
    for replica in &replicas {
        eventually("nothing is applied any more", || async {
            let backlog = of(replica).await;
            ((backlog.events_per_second, backlog.batch) == (0.0, 0.0)).then_some(())
        })
        .await;
    }
    drop(replicas);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn replicas_may_outnumber_segments() {
    let (log, carts, random) = (log().await, carts(), seeded(2));
    let mut replicas: Vec<_> = (0..17).map(|_| start::<1>(&log)).collect();
    until_shares(&log, &[1; 16]).await;
    happen(&log, &carts, 100, &random).await;
    replicas.remove(0).process.kill();
    until_shares(&log, &[1; 16]).await;
    assert_exact(&log).await;
    drop(replicas);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn random_replicas_lose_double_and_reorder_nothing() {
    for seed in [11, 12] {
        let (log, carts, random) = (log().await, carts(), seeded(seed));
        let mut replicas = vec![start::<1>(&log)];
        for _ in 0..25 {
            for _ in 0..6 {
                happen(&log, &carts, 12, &random).await;
            }
            replicas.shuffle(&mut *random.borrow_mut());
            let next = random.borrow_mut().random_range(0..5);
            match next {
                0 | 1 if replicas.len() < 4 => replicas.push(start::<1>(&log)),
                2 => {
                    if let Some(replica) = replicas.pop() {
                        replica.process.kill();
                    }
                }
                3 => {
                    if let Some(replica) = replicas.pop() {
                        replica.process.stop().await;
                    }
                }
                // The replicas continue, until they have caught up or for a while. Either will do.
                _ => {
                    let head = log.store.head().await.unwrap();
                    let _ = log.projections.wait("ledger", None, head, Duration::from_millis(300)).await.unwrap();
                }
            }
        }
        replicas.push(start::<1>(&log));
        assert_exact(&log).await;
    }
}

/// Freezes a whole process with its heartbeat in the middle of a transaction, and thaws it after a takeover.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn thawed_replica_writes_nothing_after_a_takeover() {
    let (log, carts, random) = (log().await, carts(), seeded(3));
    let ledger = Ledger::<1> { by: Uuid::now_v7(), ..Ledger::default() };
    let (frozen, halt, options) = (ledger.by, ledger.halt.clone(), log.database.options_as("cartlog_projections"));
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // A runtime with one thread, which the ledger blocks.
    let process = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let projections = Projections::new(EventStore::new(options, StoreSettings::default()));
            projections.run(ledger, quick(), stopped).await.unwrap();
        });
    });
    until_shares(&log, &[16]).await;
    let before = happen(&log, &carts, 100, &random).await;
    assert_exact(&log).await;
    let (there, resume) = (mpsc::channel(), mpsc::channel());
    *halt.lock().unwrap() = Some((there.0, resume.1));
    happen(&log, &carts, 100, &random).await;
    tokio::task::spawn_blocking(move || there.1.recv().unwrap()).await.unwrap();
    let other = start::<1>(&log);
    assert_exact(&log).await;
    until_shares(&log, &[16]).await;
    resume.0.send(()).unwrap();
    // Its transaction has ended, and it acquires its share.
    until_shares(&log, &[8, 8]).await;
    assert_eq!(appliers(&log, before).await, BTreeSet::from([other.id]));
    happen(&log, &carts, 200, &random).await;
    assert_exact(&log).await;
    assert!(appliers(&log, before).await.contains(&frozen));
    stop.cancel();
    tokio::task::spawn_blocking(move || process.join().unwrap()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn write_without_ownership_of_a_segment_fails_whole() {
    let (log, carts, random) = (log().await, carts(), seeded(4));
    let replica = start::<1>(&log);
    until_shares(&log, &[16]).await;
    happen(&log, &carts, 50, &random).await;
    assert_exact(&log).await;
    // Another replica, which stays alive and does nothing, takes a segment before the first one can see it.
    let other = Uuid::now_v7();
    let mut connection = PgConnection::connect_with(&log.database.options()).await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let stolen = "WITH r AS (INSERT INTO replica (name, id, version, beats, lease) VALUES ('ledger', $1, 0, 1, '1 hour'))
                  UPDATE checkpoint SET owner = $1 WHERE segment = 3";
    sqlx::query(stolen).bind(other).execute(&mut *transaction).await.unwrap();
    let head = happen(&log, &carts, 50, &random).await;
    transaction.commit().await.unwrap();
    // Only the events of the other segments are applied.
    eventually("the other segments have come to the head", || async {
        let behind: Vec<i32> = sqlx::query_scalar("SELECT segment FROM checkpoint WHERE position < $1")
            .bind(head.0)
            .fetch_all(log.store.pool())
            .await
            .unwrap();
        (behind == [3]).then_some(())
    })
    .await;
    let rows: Vec<(i64, Uuid)> = sqlx::query_as("SELECT position, cart_id FROM projection_a.ledger WHERE position > $1 - 50")
        .bind(head.0)
        .fetch_all(log.store.pool())
        .await
        .unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|(_, cart)| segment_of(*cart) != 3), "{rows:?}");
    sqlx::query("DELETE FROM replica WHERE id = $1").bind(other).execute(log.store.pool()).await.unwrap();
    assert_exact(&log).await;
    replica.process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn segments_at_different_positions_join() {
    let (log, carts, random) = (log().await, carts(), seeded(6));
    let replica = start::<1>(&log);
    happen(&log, &carts, 400, &random).await;
    assert_exact(&log).await;
    replica.process.stop().await;
    // Sets each segment back to its own position, with its rows, as if other replicas had left them there.
    for segment in 0..SEGMENTS {
        let position = random.borrow_mut().random_range(0..400_i64);
        sqlx::query("UPDATE checkpoint SET position = $2 WHERE segment = $1")
            .bind(segment)
            .bind(position)
            .execute(log.store.pool())
            .await
            .unwrap();
        sqlx::query("DELETE FROM projection_a.ledger WHERE key_hash(uuid_send(cart_id)) % 16 = $1 AND position > $2")
            .bind(segment)
            .bind(position)
            .execute(log.store.pool())
            .await
            .unwrap();
    }
    let _replicas = [start::<1>(&log), start::<1>(&log)];
    assert_exact(&log).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn segment_of_is_the_same_in_sql_and_rust() {
    let log = TestLog::<DomainEvent>::create().await;
    let keys: Vec<_> = (0..500).flat_map(|_| [Uuid::now_v7(), Uuid::new_v4()]).chain([Uuid::nil(), Uuid::max()]).collect();
    let sql: Vec<i64> =
        sqlx::query_scalar("SELECT key_hash(uuid_send(key)) % $2 FROM unnest($1::uuid[]) WITH ORDINALITY AS k(key, n) ORDER BY n")
            .bind(&keys)
            .bind(SEGMENTS)
            .fetch_all(log.store.pool())
            .await
            .unwrap();
    assert_eq!(sql, keys.iter().map(|key| i64::from(segment_of(*key))).collect::<Vec<_>>());
    let in_scope: Vec<bool> = sqlx::query_scalar(
        "WITH s AS MATERIALIZED (SELECT set_config('projection.segments', $2, false))
         SELECT key_in_scope(key) FROM s, unnest($1::uuid[]) WITH ORDINALITY AS k(key, n) ORDER BY n",
    )
    .bind(&keys)
    .bind("01".repeat(SEGMENTS as usize / 2))
    .fetch_all(&log.database.pool().await)
    .await
    .unwrap();
    assert_eq!(in_scope, keys.iter().map(|key| segment_of(*key) % 2 == 1).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn worker_recovers_before_the_next_heartbeat() {
    let (log, carts, random) = (log().await, carts(), seeded(9));
    let replica = start_with_rare_heartbeats(&log);
    until_shares(&log, &[16]).await;
    happen(&log, &carts, 50, &random).await;
    assert_exact(&log).await;
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND usename = 'cartlog_projections'";
    assert!(sqlx::query_scalar::<_, i64>(cut).fetch_one(log.store.pool()).await.unwrap() > 0);
    happen(&log, &carts, 50, &random).await;
    assert_exact(&log).await;
    replica.process.stop().await;
}

async fn serving(log: &TestLog<DomainEvent>) -> (String, i32) {
    sqlx::query_as("SELECT build, version FROM projection WHERE status = 'serving'").fetch_one(log.store.pool()).await.unwrap()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn new_version_is_rebuilt_beside_the_serving_build() {
    let (log, carts, random) = (log().await, carts(), seeded(7));
    let old = [start::<1>(&log), start::<1>(&log)];
    happen(&log, &carts, 1_000, &random).await;
    assert_exact(&log).await;
    // Both releases run at the same time, and a new replica dies.
    let mut new = vec![start::<2>(&log), start::<2>(&log), start::<2>(&log)];
    happen(&log, &carts, 300, &random).await;
    new.pop().unwrap().process.kill();
    eventually("the new build is in service", || async {
        let head = happen(&log, &carts, 5, &random).await;
        // Not faster than the machine applies them: the ledger takes longer with each event. Whether it has caught up does not matter yet.
        let _ = log.projections.wait("ledger", None, head, Duration::from_secs(1)).await.unwrap();
        (serving(&log).await == ("projection_b".to_owned(), 2)).then_some(())
    })
    .await;
    happen(&log, &carts, 100, &random).await;
    assert_exact(&log).await;
    until_shares(&log, &[8, 8]).await;
    eventually("nobody works what was in service any more", || async {
        let left: Vec<Option<Uuid>> =
            sqlx::query_scalar("SELECT owner FROM checkpoint WHERE build = 'projection_a'").fetch_all(log.store.pool()).await.unwrap();
        (left == [None; 16]).then_some(())
    })
    .await;
    drop((old, new));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn rebuild_leaves_a_newer_releases_build_alone() {
    let (log, carts, random) = (log().await, carts(), seeded(10));
    let old = start::<1>(&log);
    happen(&log, &carts, 50, &random).await;
    assert_exact(&log).await;
    operations::pause(log.store.pool(), "ledger", true).await.unwrap();
    let building = async || -> Option<i32> {
        let version = sqlx::query_scalar("SELECT version FROM projection WHERE status = 'building'");
        version.fetch_optional(log.store.pool()).await.unwrap()
    };
    let until_building = async |version: i32| {
        eventually("it is being made", || async { (building().await == Some(version)).then_some(()) }).await;
    };
    let new = start::<2>(&log);
    until_building(2).await;
    projections::rebuild::<Ledger<1>>(log.store.pool()).await.unwrap();
    projections::rebuild_named(log.store.pool(), "ledger", Switch::WhenReady).await.unwrap();
    assert_eq!(building().await, Some(2));

    // The newer release is gone, so its build may be replaced.
    new.process.stop().await;
    // A heartbeat in flight may have extended its lease.
    eventually("the older one is made", || async {
        projections::rebuild::<Ledger<1>>(log.store.pool()).await.unwrap();
        (building().await == Some(1)).then_some(())
    })
    .await;
    let new = start::<2>(&log);
    until_building(2).await;
    operations::pause(log.store.pool(), "ledger", false).await.unwrap();
    eventually("the newer one is in service", || async { (serving(&log).await.1 == 2).then_some(()) }).await;
    assert_exact(&log).await;
    drop((old, new));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn rebuild_switches_only_when_asked() {
    let (log, carts, random) = (log().await, carts(), seeded(8));
    let _replicas = [start::<1>(&log), start::<1>(&log)];
    happen(&log, &carts, 300, &random).await;
    assert_exact(&log).await;
    projections::rebuild_named(log.store.pool(), "ledger", Switch::WhenAsked).await.unwrap();
    let head = happen(&log, &carts, 100, &random).await;
    eventually("the new build is as far", || async {
        let there = "SELECT min(position) >= $1 FROM checkpoint WHERE build = 'projection_b'";
        sqlx::query_scalar::<_, bool>(there).bind(head.0).fetch_one(log.store.pool()).await.unwrap().then_some(())
    })
    .await;
    // It does not serve after two more heartbeats.
    for _ in 0..2 {
        let before: sqlx::types::time::OffsetDateTime =
            sqlx::query_scalar("SELECT max(beaten_at) FROM replica").fetch_one(log.store.pool()).await.unwrap();
        eventually("a heartbeat has come", || async {
            let beat: bool =
                sqlx::query_scalar("SELECT min(beaten_at) > $1 FROM replica").bind(before).fetch_one(log.store.pool()).await.unwrap();
            beat.then_some(())
        })
        .await;
    }
    assert_eq!(serving(&log).await.0, "projection_a");
    assert!(projections::switch_when_ready(log.store.pool(), "ledger").await.unwrap());
    eventually("it is in service", || async { (serving(&log).await.0 == "projection_b").then_some(()) }).await;
    assert_exact(&log).await;
    assert!(!projections::switch_when_ready(log.store.pool(), "ledger").await.unwrap());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn wait_reads_own_writes_on_every_replica() {
    let (log, carts) = (log().await, carts());
    let replicas = [start::<1>(&log), start::<1>(&log)];
    until_shares(&log, &[8, 8]).await;
    let long = Duration::from_secs(20);
    for (n, cart) in carts.iter().enumerate().take(20) {
        let position = log.append([cart.added(0)]).await;
        for projections in [&replicas[0].projections, &replicas[1].projections, &log.projections] {
            let key = (n % 2 == 0).then(|| cart.cart_id.uuid());
            assert_eq!(projections.wait("ledger", key, position, long).await.unwrap(), Wait::Reached);
            let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM projection_a.ledger WHERE position = $1")
                .bind(position.0)
                .fetch_one(projections.store().pool())
                .await
                .unwrap();
            assert_eq!(rows, 1);
        }
    }
    // Waiting also works for events that the projection does not take, and not for positions past the head.
    let head = log.append([carts[0].created()]).await;
    for projections in [&replicas[0].projections, &log.projections] {
        assert_eq!(projections.wait("ledger", None, head, long).await.unwrap(), Wait::Reached);
        let ahead = Position(head.0 + 1);
        assert_eq!(projections.wait("ledger", None, ahead, Duration::ZERO).await.unwrap(), Wait::TimedOut(head));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn wait_skips_events_that_are_not_the_projections() {
    let (log, carts, random) = (log().await, carts(), seeded(11));
    let holder = start_with_rare_heartbeats(&log);
    until_shares(&log, &[16]).await;
    let other = start_with_rare_heartbeats(&log);
    happen(&log, &carts, 50, &random).await;
    let added = log.append([carts[0].added(0)]).await;
    let long = Duration::from_secs(20);
    assert_eq!(other.projections.wait("ledger", None, added, long).await.unwrap(), Wait::Reached);
    let key = carts[0].cart_id.uuid();
    let head = log.append([carts[0].created(), carts[1].inventory(0, 3)]).await;
    for of in [None, Some(key)] {
        assert_eq!(other.projections.wait("ledger", of, head, long).await.unwrap(), Wait::Reached);
        // Not for positions past the head.
        let ahead = other.projections.wait("ledger", of, Position(head.0 + 1), Duration::ZERO).await.unwrap();
        assert!(matches!(ahead, Wait::TimedOut(at) if at <= head), "{ahead:?}");
    }
    let mut standstill = log.store.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM checkpoint FOR UPDATE").execute(&mut *standstill).await.unwrap();
    let added = log.append([carts[0].added(0), carts[0].created()]).await;
    let waited = other.projections.wait("ledger", Some(key), added, Duration::ZERO).await.unwrap();
    assert!(matches!(waited, Wait::TimedOut(at) if at.0 < added.0 - 1), "{waited:?}");
    standstill.rollback().await.unwrap();
    drop((holder, other));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn waiting_callers_share_one_poll() {
    let (log, carts, random) = (log().await, carts(), seeded(13));
    let holder = start_with_rare_heartbeats(&log);
    until_shares(&log, &[16]).await;
    let other = start_with_rare_heartbeats(&log);
    let head = happen(&log, &carts, 50, &random).await;
    let next = Position(head.0 + 1);
    let long = Duration::from_secs(20);
    assert_eq!(other.projections.wait("ledger", None, head, long).await.unwrap(), Wait::Reached);
    let mut lock = log.store.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE checkpoint IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let waiting: Vec<_> = (0..50)
        .map(|n| {
            let (projections, key) = (other.projections.clone(), (n % 2 == 0).then(|| carts[n / 2].cart_id.uuid()));
            tokio::spawn(async move { projections.wait("ledger", key, next, long).await.unwrap() })
        })
        .collect();
    let looking = async || -> i64 {
        let looking = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'
                          AND query LIKE '%checkpoint c JOIN projection p%'";
        sqlx::query_scalar(looking).fetch_one(log.store.pool()).await.unwrap()
    };
    eventually("one looks", || async { (looking().await > 0).then_some(()) }).await;
    assert_eq!(other.projections.store().wait("a test", next, Duration::ZERO).await.unwrap(), event_store::Wait::TimedOut(head));
    assert_eq!(looking().await, 1);
    lock.rollback().await.unwrap();
    log.append([carts[0].added(0)]).await;
    for waited in waiting {
        assert_eq!(waited.await.unwrap(), Wait::Reached);
    }
    drop((holder, other));
}

/// One of several projections of a process. Writes nothing.
struct Other<const N: usize>;

#[async_trait]
impl<const N: usize> Projection for Other<N> {
    type Log = DomainEvent;
    type Event = ArchivingStream;
    const NAME: &'static str = ["other_0", "other_1", "other_2"][N];
    const TABLES: &'static [&'static str] = &[];

    fn key(event: &ArchivingStream) -> Option<Uuid> {
        event.cart_id().map(|cart| cart.uuid())
    }

    async fn apply(&self, _: &mut PgConnection, _: &[Recorded<ArchivingStream>]) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn stopped_replica_is_not_kept_alive() {
    let log = log().await;
    let store = EventStore::new(log.database.options_as("cartlog_projections"), StoreSettings::default());
    let projections = Projections::new(store);
    for _ in 0..20 {
        let stop = CancellationToken::new();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(projections.run(Other::<0>, quick(), stop.clone()));
        running.spawn(projections.run(Other::<1>, quick(), stop.clone()));
        running.spawn(projections.run(Other::<2>, quick(), stop.clone()));
        eventually("they are at work", || async {
            let held: i64 =
                sqlx::query_scalar("SELECT count(*) FROM checkpoint WHERE owner IS NOT NULL").fetch_one(log.store.pool()).await.unwrap();
            (held == 48).then_some(())
        })
        .await;
        stop.cancel();
        while let Some(ended) = running.join_next().await {
            ended.unwrap().unwrap();
        }
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM replica").fetch_one(log.store.pool()).await.unwrap();
        assert_eq!(left, 0);
    }
}
