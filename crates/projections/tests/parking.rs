//! Events that a projection cannot apply park their key or block segments. A retry loses, doubles and reorders nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::ledger::{Ledger, Missing, assert_rows, carts, happen, log, seeded};
use async_trait::async_trait;
use cart_events::{ArchivingStream, DomainEvent, examples::Shopping};
use event_store::{Metadata, Position, Recorded};
use operations::{Parked, Skip};
use projections::{
    Kind, Projection, ProjectionError, Projections, Query, SEGMENTS, Switch, Wait, segment_of,
    todo::{self, NewTodo},
};
use rand::Rng;
use sqlx::PgConnection;
use test_support::{Process, TestLog, eventually};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Waits until all segments of a build that are not blocked have reached the head.
async fn until_at_head(log: &TestLog<DomainEvent>, build: &str) {
    let head = log.store.head().await.unwrap();
    eventually("segments that are not blocked are at the head", || async {
        let there: Option<bool> = sqlx::query_scalar(
            "SELECT bool_and(position >= $1 OR coalesce(position < blocked_at, false)) FROM checkpoint WHERE build = $2",
        )
        .bind(head.0)
        .bind(build)
        .fetch_one(log.store.pool())
        .await
        .unwrap();
        there?.then_some(())
    })
    .await;
}

/// Compares a build's rows with a fold of the log.
async fn assert_exact(log: &TestLog<DomainEvent>, build: &str, missing: Missing<'_>) {
    until_at_head(log, build).await;
    assert_rows(log, build, missing).await;
}

async fn parked(log: &TestLog<DomainEvent>) -> Vec<Parked> {
    operations::parked(log.store.pool(), Some("ledger")).await.unwrap()
}

async fn until_parked(log: &TestLog<DomainEvent>, count: usize) -> Vec<Parked> {
    eventually("so many are parked", || async {
        let parked = parked(log).await;
        (parked.len() == count && parked.iter().all(|parked| !parked.retry_asked)).then_some(parked)
    })
    .await
}

async fn until_all_are_blocked_before(log: &TestLog<DomainEvent>, position: i64) {
    eventually("all segments stand", || async {
        let parked = parked(log).await;
        let all =
            |parked: &Parked| parked.position.0 == position && parked.segments.as_deref() == Some(&(0..SEGMENTS).collect::<Vec<_>>()[..]);
        (parked.len() == 1 && parked.iter().all(all)).then_some(())
    })
    .await;
}

/// Asks for a retry of all parked keys, and waits for it.
async fn retry(log: &TestLog<DomainEvent>) -> Vec<Parked> {
    assert!(!operations::retry_parked(log.store.pool(), None, None).await.unwrap().is_empty());
    eventually("what is parked was tried again", || async {
        let parked = parked(log).await;
        parked.iter().all(|parked| !parked.retry_asked).then_some(parked)
    })
    .await
}

fn key(cart: &Shopping) -> Uuid {
    cart.cart_id.uuid()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn failing_event_parks_its_key_until_a_retry() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(1), Ledger::<1>::default());
    happen(&log, &carts, 200, &random).await;
    let poison = log.append([carts[3].added(0)]).await.0;
    ledger.poison.lock().unwrap().events.insert(poison);
    let process = Process::start(&log, ledger.clone());
    let last = happen(&log, &carts, 300, &random).await;
    let first = until_parked(&log, 1).await.remove(0);
    let not_yet = |position, cart| cart == key(&carts[3]) && position >= poison;
    assert_exact(&log, "projection_a", &not_yet).await;
    assert_eq!((first.key, first.position, first.attempts), (Some(key(&carts[3])), Position(poison), 1));
    assert!(first.error.contains("division by zero (SQLSTATE 22012)"), "{}", first.error);
    assert!(parked(&log).await[0].since_seconds >= first.since_seconds);
    let backlog = process.projections.backlog().await.unwrap().remove("ledger").unwrap();
    assert_eq!((backlog.lag, backlog.parked, backlog.blocked), (0, 1, 0));

    // Each request of an operator causes one retry.
    let still = retry(&log).await;
    assert_eq!((still.len(), still[0].attempts), (1, 2));
    assert_eq!(retry(&log).await[0].attempts, 3);
    assert_exact(&log, "projection_a", &not_yet).await;
    let of_the_cart: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM event
         WHERE event_id BETWEEN $1 AND $2 AND (event_type = 'PriceChanged' OR cart_id = $3 AND event_type <> 'CartCreated')",
    )
    .bind(poison)
    .bind(last.0)
    .bind(key(&carts[3]))
    .fetch_one(log.store.pool())
    .await
    .unwrap();
    assert_eq!(still[0].queued, of_the_cart);
    let queue = operations::parked_queue(&log.store, &still[0], 2).await.unwrap();
    assert_eq!((queue.len(), queue[0].position), (2, Position(poison)));

    ledger.poison.lock().unwrap().events.clear();
    assert!(retry(&log).await.is_empty());
    assert_exact(&log, "projection_a", &|_, _| false).await;
    happen(&log, &carts, 100, &random).await;
    assert_exact(&log, "projection_a", &|_, _| false).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn retry_stops_at_the_next_failing_event() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(2), Ledger::<1>::default());
    happen(&log, &carts, 50, &random).await;
    let first = log.append([carts[0].added(0)]).await.0;
    happen(&log, &carts, 200, &random).await;
    let second = log.append([carts[0].added(1)]).await.0;
    happen(&log, &carts, 200, &random).await;
    ledger.poison.lock().unwrap().events.extend([first, second]);
    let process = Process::start(&log, ledger.clone());
    until_parked(&log, 1).await;
    until_at_head(&log, "projection_a").await;

    ledger.poison.lock().unwrap().events.remove(&first);
    let parked = retry(&log).await.remove(0);
    assert_eq!((parked.key, parked.position, parked.attempts), (Some(key(&carts[0])), Position(second), 1));
    assert_exact(&log, "projection_a", &|position, cart| cart == key(&carts[0]) && position >= second).await;
    ledger.poison.lock().unwrap().events.clear();
    assert!(retry(&log).await.is_empty());
    assert_exact(&log, "projection_a", &|_, _| false).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn new_segment_owner_keeps_parked_keys() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(3), Ledger::<1>::default());
    happen(&log, &carts, 100, &random).await;
    let poison = log.append([carts[7].added(0)]).await.0;
    ledger.poison.lock().unwrap().events.insert(poison);
    let first = Process::start(&log, ledger.clone());
    until_parked(&log, 1).await;
    first.kill();
    let second = Process::start(&log, ledger.clone());
    happen(&log, &carts, 200, &random).await;
    assert_exact(&log, "projection_a", &|position, cart| cart == key(&carts[7]) && position >= poison).await;
    assert_eq!(parked(&log).await[0].attempts, 1, "nobody has asked for another");
    let third = Process::start(&log, ledger.clone());
    eventually("the segments are shared out", || async {
        let owners: i64 = sqlx::query_scalar("SELECT count(DISTINCT owner) FROM checkpoint").fetch_one(log.store.pool()).await.unwrap();
        (owners == 2).then_some(())
    })
    .await;
    happen(&log, &carts, 100, &random).await;
    ledger.poison.lock().unwrap().events.clear();
    assert!(retry(&log).await.is_empty());
    assert_exact(&log, "projection_a", &|_, _| false).await;
    drop((second, third));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn parked_keys_survive_replicas_that_come_and_die() {
    for seed in [21, 22] {
        let (log, carts, random, ledger) = (log().await, carts(), seeded(seed), Ledger::<1>::default());
        let mut replicas = vec![Process::start(&log, ledger.clone())];
        for _ in 0..15 {
            let head = happen(&log, &carts, 30, &random).await.0;
            let next = random.borrow_mut().random_range(0..6);
            match next {
                0 if replicas.len() < 3 => replicas.push(Process::start(&log, ledger.clone())),
                1 => replicas.swap_remove(0).kill(),
                2 => {
                    operations::retry_parked(log.store.pool(), None, None).await.unwrap();
                }
                3 => ledger.poison.lock().unwrap().events.clear(),
                _ => {
                    // Mostly a cart's; what has no key stops segments, so that the other may not be come to.
                    ledger.poison.lock().unwrap().events.extend([head + 3, head + 11]);
                    happen(&log, &carts, 30, &random).await;
                    eventually("some of it is come to", || async { (!parked(&log).await.is_empty()).then_some(()) }).await;
                }
            }
            if replicas.is_empty() {
                replicas.push(Process::start(&log, ledger.clone()));
            }
        }
        ledger.poison.lock().unwrap().events.clear();
        until_at_head(&log, "projection_a").await;
        eventually("all is applied", || async {
            let standing = operations::retry_parked(log.store.pool(), None, None).await.unwrap().len();
            (standing == 0 && parked(&log).await.is_empty()).then_some(())
        })
        .await;
        assert_exact(&log, "projection_a", &|_, _| false).await;
        drop(replicas);
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn skip_is_recorded_and_the_queue_is_applied() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(4), Ledger::<1>::default());
    happen(&log, &carts, 100, &random).await;
    let poison = log.append([carts[5].added(0)]).await.0;
    let next = log.append([carts[5].removed(0), carts[6].removed(0)]).await.0 - 1;
    happen(&log, &carts, 100, &random).await;
    ledger.poison.lock().unwrap().events.insert(poison);
    let process = Process::start(&log, ledger.clone());
    until_parked(&log, 1).await;
    let cart = key(&carts[5]);
    let skip = Skip { projection: "ledger", key: Some(cart), position: Position(next), reason: "a test order", by: "ada" };
    assert!(operations::skip(log.store.pool(), skip).await.unwrap().is_empty(), "it is not the first of the queue");
    let other = Skip { position: Position(poison), key: Some(key(&carts[6])), ..skip };
    assert!(operations::skip(log.store.pool(), other).await.unwrap().is_empty(), "that key is not parked");
    assert!(operations::skipped(log.store.pool(), None).await.unwrap().is_empty());

    let skip = Skip { position: Position(poison), ..skip };
    assert_eq!(operations::skip(log.store.pool(), skip).await.unwrap(), ["projection_a"]);
    until_parked(&log, 0).await;
    assert_exact(&log, "projection_a", &|position, of| of == cart && position == poison).await;
    let skipped = operations::skipped(log.store.pool(), Some("ledger")).await.unwrap().remove(0);
    assert_eq!((skipped.key, skipped.position, skipped.attempts), (Some(cart), Position(poison), 1));
    assert_eq!((skipped.reason.as_str(), skipped.skipped_by.as_str()), ("a test order", "ada"));
    assert!(skipped.error.contains("division by zero"));
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn keyless_event_blocks_only_the_segments_it_fails_in() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(5), Ledger::<1>::default());
    happen(&log, &carts, 100, &random).await;
    let poison = log.append([carts[0].price_changed(0)]).await.0;
    let last = happen(&log, &carts, 200, &random).await;
    let (held, segment) = (key(&carts[9]), segment_of(key(&carts[9])));
    ledger.poison.lock().unwrap().where_held.insert(poison, held);
    let process = Process::start(&log, ledger.clone());
    let stands = until_parked(&log, 1).await.remove(0);
    assert_eq!((stands.key, stands.segments, stands.position), (None, Some(vec![segment]), Position(poison)));
    assert!(stands.error.contains("division by zero"), "{}", stands.error);
    assert_exact(&log, "projection_a", &|position, cart| segment_of(cart) == segment && position >= poison).await;
    let backlog = process.projections.backlog().await.unwrap().remove("ledger").unwrap();
    assert_eq!((backlog.parked, backlog.blocked), (0, 1));
    eventually("it is tried again and again", || async { (parked(&log).await[0].attempts > 3).then_some(()) }).await;
    let (_, builds) = operations::builds(log.store.pool()).await.unwrap();
    let standing: Vec<_> = builds[0].segments.iter().filter(|segment| segment.blocked).map(|segment| segment.segment).collect();
    assert_eq!(standing, [segment]);
    let waited = process.projections.wait("ledger", Some(held), last, Duration::ZERO).await.unwrap();
    assert!(matches!(waited, Wait::TimedOut(at) if at.0 == poison - 1), "{waited:?}");

    ledger.poison.lock().unwrap().where_held.clear();
    until_parked(&log, 0).await;
    assert_exact(&log, "projection_a", &|_, _| false).await;

    // An operator can skip the event.
    let poison = log.store.head().await.unwrap().0 + 1;
    ledger.poison.lock().unwrap().events.insert(poison);
    log.append([carts[0].price_changed(0)]).await;
    happen(&log, &carts, 50, &random).await;
    until_all_are_blocked_before(&log, poison).await;
    let skip = Skip { projection: "ledger", key: None, position: Position(poison), reason: "nobody bought it", by: "ada" };
    assert_eq!(operations::skip(log.store.pool(), skip).await.unwrap(), ["projection_a"]);
    until_parked(&log, 0).await;
    assert_exact(&log, "projection_a", &|position, _| position == poison).await;
    process.stop().await;
}

async fn spoil(log: &TestLog<DomainEvent>, position: i64) -> Vec<u8> {
    let payload = sqlx::query_scalar("SELECT payload FROM event WHERE event_id = $1");
    let payload = payload.bind(position).fetch_one(log.store.pool()).await.unwrap();
    mend(log, position, b"{\"ItemAdded\":{}}").await;
    payload
}

async fn mend(log: &TestLog<DomainEvent>, position: i64, payload: &[u8]) {
    let set = sqlx::query("UPDATE event SET payload = $2 WHERE event_id = $1").bind(position).bind(payload);
    set.execute(log.store.pool()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn undecodable_event_parks_its_key_or_blocks_all() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(6), Ledger::<1>::default());
    happen(&log, &carts, 100, &random).await;
    let unreadable = log.append([carts[1].added(0)]).await.0;
    happen(&log, &carts, 10, &random).await;
    let again = log.append([carts[1].added(1)]).await.0;
    happen(&log, &carts, 100, &random).await;
    let (one, two) = (spoil(&log, unreadable).await, spoil(&log, again).await);
    let process = Process::start(&log, ledger.clone());
    let parked = until_parked(&log, 1).await.remove(0);
    assert_eq!((parked.key, parked.position), (Some(key(&carts[1])), Position(unreadable)));
    assert!(parked.error.contains("cannot be read"), "{}", parked.error);
    assert_exact(&log, "projection_a", &|position, cart| cart == key(&carts[1]) && position >= unreadable).await;
    mend(&log, unreadable, &one).await;
    let parked = retry(&log).await.remove(0);
    assert_eq!((parked.position, parked.attempts), (Position(again), 1));
    mend(&log, again, &two).await;
    assert!(retry(&log).await.is_empty());
    assert_exact(&log, "projection_a", &|_, _| false).await;
    process.stop().await;

    let unreadable = log.append([carts[1].price_changed(0)]).await.0;
    happen(&log, &carts, 50, &random).await;
    let payload = spoil(&log, unreadable).await;
    let process = Process::start(&log, ledger.clone());
    until_all_are_blocked_before(&log, unreadable).await;
    assert_exact(&log, "projection_a", &|position, _| position >= unreadable).await;
    mend(&log, unreadable, &payload).await;
    until_parked(&log, 0).await;
    assert_exact(&log, "projection_a", &|_, _| false).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn wrong_sql_blocks_a_segment_and_parks_nothing() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(7), Ledger::<1>::default());
    happen(&log, &carts, 50, &random).await;
    let wrong = log.append([carts[2].added(0)]).await.0;
    happen(&log, &carts, 50, &random).await;
    ledger.poison.lock().unwrap().wrong.insert(wrong);
    let process = Process::start(&log, ledger.clone());
    let segment = segment_of(key(&carts[2]));
    let stands = until_parked(&log, 1).await.remove(0);
    assert_eq!((stands.key, stands.segments, stands.position), (None, Some(vec![segment]), Position(wrong)));
    assert!(stands.error.contains("no_such_column"), "{}", stands.error);
    ledger.poison.lock().unwrap().wrong.clear();
    until_parked(&log, 0).await;
    assert_exact(&log, "projection_a", &|_, _| false).await;
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn too_many_parked_keys_block_the_segment() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(8), Ledger::<1>::default());
    let process = Process::start(&log, ledger.clone());
    happen(&log, &carts, 50, &random).await;
    assert_exact(&log, "projection_a", &|_, _| false).await;
    process.stop().await;
    let many = "INSERT INTO parked_key (name, build, key, position, error)
                SELECT 'ledger', 'projection_a', gen_random_uuid(), 1, 'a test' FROM generate_series(1, 1000)";
    sqlx::query(many).execute(log.store.pool()).await.unwrap();
    let poison = log.append([carts[2].added(0)]).await.0;
    ledger.poison.lock().unwrap().events.insert(poison);
    let process = Process::start(&log, ledger.clone());
    let segment = segment_of(key(&carts[2]));
    let stands = until_parked(&log, 1_001).await.into_iter().find(|parked| parked.key.is_none()).unwrap();
    assert_eq!((stands.segments, stands.position), (Some(vec![segment]), Position(poison)));
    process.stop().await;
}

/// Waits for a number of heartbeats.
async fn until_heartbeats(log: &TestLog<DomainEvent>, count: usize) {
    for _ in 0..count {
        let before: sqlx::types::time::OffsetDateTime =
            sqlx::query_scalar("SELECT max(beaten_at) FROM replica").fetch_one(log.store.pool()).await.unwrap();
        eventually("a heartbeat has come", || async {
            let later = sqlx::query_scalar("SELECT max(beaten_at) > $1 FROM replica").bind(before);
            let beat: bool = later.fetch_one(log.store.pool()).await.unwrap();
            beat.then_some(())
        })
        .await;
    }
}

async fn serving(log: &TestLog<DomainEvent>) -> String {
    sqlx::query_scalar("SELECT build FROM projection WHERE status = 'serving'").fetch_one(log.store.pool()).await.unwrap()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn switch_waits_if_the_new_build_has_more_parked_keys() {
    let (log, carts, random) = (log().await, carts(), seeded(9));
    let (old, new) = (Ledger::<1>::default(), Ledger::<2>::default());
    happen(&log, &carts, 100, &random).await;
    let poison = log.append([carts[3].added(0)]).await.0;
    let only_new = log.append([carts[4].added(0)]).await.0;
    happen(&log, &carts, 100, &random).await;
    old.poison.lock().unwrap().events.insert(poison);
    let first = Process::start(&log, old.clone());
    until_parked(&log, 1).await;
    // A rebuild by the same release fails in the same way.
    projections::rebuild_named(log.store.pool(), "ledger", Switch::WhenReady).await.unwrap();
    eventually("it is in service", || async { (serving(&log).await == "projection_b").then_some(()) }).await;
    let parked_b = until_parked(&log, 1).await.remove(0);
    assert_eq!((parked_b.build.as_str(), parked_b.key), ("projection_b", Some(key(&carts[3]))));
    first.stop().await;

    // If a new release fails on another event, the old build keeps serving.
    new.poison.lock().unwrap().events.insert(only_new);
    let second = Process::start(&log, new.clone());
    until_at_head(&log, "projection_a").await;
    let parked = until_parked(&log, 2).await;
    let in_new: Vec<_> = parked.iter().filter(|parked| parked.build == "projection_a").map(|parked| parked.key).collect();
    assert_eq!(in_new, [Some(key(&carts[4]))], "what was parked in the build before this one is not");
    until_heartbeats(&log, 3).await;
    assert_eq!(serving(&log).await, "projection_b");
    assert!(projections::switch_with_parked(log.store.pool(), "ledger").await.unwrap());
    eventually("it is in service", || async { (serving(&log).await == "projection_a").then_some(()) }).await;
    assert_exact(&log, "projection_a", &|position, cart| cart == key(&carts[4]) && position >= only_new).await;
    new.poison.lock().unwrap().events.clear();
    assert!(retry(&log).await.is_empty());
    assert_exact(&log, "projection_a", &|_, _| false).await;
    second.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn switch_follows_when_a_retry_unparks_the_keys() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(10), Ledger::<2>::default());
    happen(&log, &carts, 100, &random).await;
    let poison = log.append([carts[3].added(0)]).await.0;
    let old = Process::start(&log, Ledger::<1>::default());
    assert_exact(&log, "projection_a", &|_, _| false).await;
    old.stop().await;
    ledger.poison.lock().unwrap().events.insert(poison);
    let new = Process::start(&log, ledger.clone());
    until_parked(&log, 1).await;
    until_at_head(&log, "projection_b").await;
    until_heartbeats(&log, 3).await;
    assert_eq!(serving(&log).await, "projection_a");
    ledger.poison.lock().unwrap().events.clear();
    assert!(retry(&log).await.is_empty());
    eventually("it is in service", || async { (serving(&log).await == "projection_b").then_some(()) }).await;
    assert_exact(&log, "projection_b", &|_, _| false).await;
    new.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn query_of_a_parked_key_is_refused() {
    let (log, carts, ledger) = (log().await, carts(), Ledger::<1>::default());
    let poison = log.append([carts[0].added(0)]).await.0;
    let head = log.append([carts[1].added(0)]).await;
    ledger.poison.lock().unwrap().events.insert(poison);
    let process = Process::start(&log, ledger.clone());
    until_parked(&log, 1).await;
    until_at_head(&log, "projection_a").await;
    let count = async |key: Option<Uuid>| -> Result<i64, ProjectionError> {
        let query = Query::new("SELECT count(*) FROM {build}.ledger WHERE cart_id = $1 OR $1 IS NULL").bind(key);
        let counted: Vec<(i64,)> = process.projections.read("ledger", key, query).await?;
        Ok(counted[0].0)
    };
    let (bad, good) = (Some(key(&carts[0])), Some(key(&carts[1])));
    assert_eq!(count(good).await.unwrap(), 1);
    for asked in [bad, None] {
        let error = count(asked).await.unwrap_err();
        assert!(matches!(error, ProjectionError::Parked { key, .. } if Some(key) == bad), "{error:?}");
        // Waiting ends at once, on every replica.
        for projections in [&process.projections, &log.projections] {
            let waited = projections.wait("ledger", asked, Position(head.0 + 1), Duration::from_secs(20)).await.unwrap();
            assert_eq!(waited, Wait::Parked(bad.unwrap()));
        }
    }
    let long = Duration::from_secs(20);
    assert_eq!(process.projections.wait("ledger", good, head, long).await.unwrap(), Wait::Reached);
    let ahead = Position(head.0 + 1);
    assert_eq!(process.projections.wait("ledger", good, ahead, Duration::ZERO).await.unwrap(), Wait::TimedOut(head));
    process.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn query_never_meets_an_emptied_build() {
    let (log, carts, random, ledger) = (log().await, carts(), seeded(12), Ledger::<1>::default());
    let process = Process::start(&log, ledger.clone());
    happen(&log, &carts, 50, &random).await;
    assert_exact(&log, "projection_a", &|_, _| false).await;
    let (pool, stop) = (log.store.pool(), CancellationToken::new());
    let count = async |projections: &Projections<DomainEvent>| -> i64 {
        let counted: Vec<(i64,)> = projections.read("ledger", None, Query::new("SELECT count(*) FROM {build}.ledger")).await.unwrap();
        counted[0].0
    };
    let wanted = count(&log.projections).await;
    let reading: Vec<_> = (0..4)
        .map(|_| {
            let (projections, stop) = (log.projections.clone(), stop.clone());
            tokio::spawn(async move {
                let mut reads = 0;
                while !stop.is_cancelled() {
                    let counted: Vec<(i64,)> =
                        projections.read("ledger", None, Query::new("SELECT count(*) FROM {build}.ledger")).await.unwrap();
                    assert_eq!(counted[0].0, wanted);
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    // Each rebuild empties the build that served before.
    for round in 0..6 {
        projections::rebuild_named(pool, "ledger", Switch::WhenReady).await.unwrap();
        let build = if round % 2 == 0 { "projection_b" } else { "projection_a" };
        eventually("the new build serves", || async { (serving(&log).await == build).then_some(()) }).await;
    }
    stop.cancel();
    for reading in reading {
        assert!(reading.await.unwrap() > 10);
    }
    process.stop().await;
}

/// Enqueues a to-do per added item.
struct Asking(Arc<Mutex<BTreeSet<i64>>>);

#[async_trait]
impl Projection for Asking {
    type Log = DomainEvent;
    type Event = ArchivingStream;
    const NAME: &'static str = "asking";
    const KIND: Kind = Kind::Automation;
    const TABLES: &'static [&'static str] = &[];
    const KEYED_BY: Option<&'static str> = Some("cart_id");

    fn key(event: &ArchivingStream) -> Option<Uuid> {
        Ledger::<1>::key(event)
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<ArchivingStream>]) -> Result<(), sqlx::Error> {
        if batch.iter().any(|event| self.0.lock().unwrap().contains(&event.position.0)) {
            return Err(sqlx::Error::Encode("a total that is no number".into()));
        }
        let todos: Vec<_> = batch
            .iter()
            .map(|event| NewTodo {
                key: event.position.to_string(),
                position: event.position,
                payload: serde_json::json!({}),
                metadata: Metadata::default(),
            })
            .collect();
        todo::enqueue(transaction, Self::NAME, &todos).await
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn retry_enqueues_the_to_dos_of_a_parked_key() {
    let log = TestLog::<DomainEvent>::create().await;
    let (one, other) = (Shopping::new(), Shopping::new());
    log.append([one.added(0), other.added(0), one.added(1), other.added(1)]).await;
    let poison = Arc::new(Mutex::new(BTreeSet::from([1])));
    let process = Process::start(&log, Asking(poison.clone()));
    let asked = async || -> Vec<i64> {
        sqlx::query_scalar("SELECT position FROM todo ORDER BY position").fetch_all(log.store.pool()).await.unwrap()
    };
    let pool = log.store.pool();
    let parked = eventually("the cart is parked", || async { operations::parked(pool, Some("asking")).await.unwrap().pop() }).await;
    assert_eq!((parked.key, parked.position), (Some(key(&one)), Position(1)));
    assert!(parked.error.contains("a total that is no number"), "{}", parked.error);
    eventually("the other cart's are asked for", || async { (asked().await == [2, 4]).then_some(()) }).await;
    poison.lock().unwrap().clear();
    operations::retry_parked(pool, Some("asking"), Some(&[key(&one)])).await.unwrap();
    eventually("all are asked for", || async { (asked().await == [1, 2, 3, 4]).then_some(()) }).await;
    process.stop().await;
}
