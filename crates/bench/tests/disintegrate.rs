//! Reads our log with disintegrate-postgres.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use cart_events::{DomainEvent, examples::Shopping};
use disintegrate::{EventStore, StreamItem, query, serde::json::Json};
use disintegrate_postgres::PgEventStore;
use futures::StreamExt;
use test_support::TestLog;

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn disintegrate_postgres_reads_the_log() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    log.append(cart.with_items(2).chain([cart.submitted(2)])).await;
    let theirs = PgEventStore::new_uninitialized(log.database.pool().await, Json::<DomainEvent>::default());
    let all = query!(DomainEvent);
    let read: Vec<_> = theirs.stream(&all).map(|item| item.unwrap()).collect().await;
    let mut events = vec![];
    for item in read {
        match item {
            StreamItem::Event(event) => events.push((event.id(), event.into_inner())),
            StreamItem::End(epoch) => assert_eq!(epoch, 4),
        }
    }
    let expected: Vec<_> = (1..).zip(cart.with_items(2).chain([cart.submitted(2)])).collect();
    assert_eq!(events, expected);
}
