//! A read model that keeps every event that it applies, and its comparison with the log.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step fails the test")]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, mpsc},
};

use async_trait::async_trait;
use cart_events::{ArchivingStream, DomainEvent, examples::Shopping};
use event_store::{Position, Recorded};
use projections::Projection;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::PgConnection;
use test_support::TestLog;
use uuid::Uuid;

/// Keeps each event of a cart, and for each change of a price every earlier cart, with the replica and the batch (n). Applying an event
/// twice violates the primary key.
#[derive(Clone, Default)]
pub(crate) struct Ledger<const VERSION: i32 = 1> {
    /// The replica.
    pub(crate) by: Uuid,
    pub(crate) poison: Arc<Mutex<Poison>>,
    /// Stops the thread in the middle of the next batch's transaction.
    pub(crate) halt: Arc<Mutex<Option<Halt>>>,
}

/// The events on which the ledger fails, by position.
#[derive(Default)]
pub(crate) struct Poison {
    /// In every segment.
    pub(crate) events: BTreeSet<i64>,
    /// Only in the segment of a cart.
    pub(crate) where_held: BTreeMap<i64, Uuid>,
    /// With SQL that does not match the table.
    pub(crate) wrong: BTreeSet<i64>,
}

/// Notifies that it is reached, and blocks the thread until it may continue.
pub(crate) type Halt = (mpsc::Sender<()>, mpsc::Receiver<()>);

#[async_trait]
impl<const VERSION: i32> Projection for Ledger<VERSION> {
    type Log = DomainEvent;
    type Event = ArchivingStream;
    const NAME: &'static str = "ledger";
    const VERSION: i32 = VERSION;
    const TABLES: &'static [&'static str] = &["ledger"];
    const KEYED_BY: Option<&'static str> = Some("cart_id");

    fn key(event: &ArchivingStream) -> Option<Uuid> {
        event.cart_id().map(|cart| cart.uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<ArchivingStream>]) -> Result<(), sqlx::Error> {
        let (mut positions, mut carts, mut changed) = (vec![], vec![], vec![]);
        for event in batch {
            let (fails, held, wrong) = {
                let poison = self.poison.lock().unwrap();
                let at = event.position.0;
                (poison.events.contains(&at), poison.where_held.get(&at).copied(), poison.wrong.contains(&at))
            };
            if fails {
                sqlx::query("SELECT 1 / 0").execute(&mut *transaction).await?;
            }
            if let Some(held) = held {
                let fails = "SELECT 1 / (CASE WHEN key_in_scope($1) THEN 0 ELSE 1 END)";
                sqlx::query(fails).bind(held).execute(&mut *transaction).await?;
            }
            if wrong {
                sqlx::query("SELECT no_such_column FROM ledger").execute(&mut *transaction).await?;
            }
            match Self::key(event) {
                Some(cart) => {
                    positions.push(event.position.0);
                    carts.push(cart);
                }
                None => changed.push(event.position.0),
            }
        }
        let n: i64 = sqlx::query_scalar("SELECT nextval('ledger_n_seq')").fetch_one(&mut *transaction).await?;
        let one = "INSERT INTO ledger (n, by, position, cart_id) SELECT $1, $2, * FROM unnest($3::bigint[], $4::uuid[])";
        sqlx::query(one).bind(n).bind(self.by).bind(positions).bind(carts).execute(&mut *transaction).await?;
        let all = "INSERT INTO ledger (n, by, position, cart_id)
                   SELECT DISTINCT $1::bigint, $2::uuid, c.position, l.cart_id
                   FROM unnest($3::bigint[]) AS c(position) JOIN ledger l ON l.position < c.position
                   WHERE key_in_scope(l.cart_id)";
        sqlx::query(all).bind(n).bind(self.by).bind(changed).execute(&mut *transaction).await?;
        if let Some((there, resume)) = self.halt.lock().unwrap().take() {
            there.send(()).unwrap();
            resume.recv().unwrap();
        }
        Ok(())
    }
}

/// Creates a log with the ledger's table.
pub(crate) async fn log() -> TestLog<DomainEvent> {
    let log = TestLog::create().await;
    log.create_table("ledger", "n bigserial, position bigint, cart_id uuid, by uuid, PRIMARY KEY (position, cart_id)").await;
    log
}

/// Whether a row must be missing although the log has its event, by event and cart.
pub(crate) type Missing<'a> = &'a dyn Fn(i64, Uuid) -> bool;

/// Compares a build's rows with a fold of the log.
pub(crate) async fn assert_rows(log: &TestLog<DomainEvent>, build: &str, missing: Missing<'_>) {
    let events: Vec<(i64, String, Option<Uuid>)> =
        sqlx::query_as("SELECT event_id, event_type, cart_id FROM event ORDER BY event_id").fetch_all(log.store.pool()).await.unwrap();
    let (mut carts, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    for (position, event_type, cart) in events {
        match (event_type.as_str(), cart) {
            ("CartCreated" | "InventoryChanged", _) => {}
            // A cart exists from its first applied event on.
            ("PriceChanged", _) => {
                wanted.extend(carts.iter().map(|cart| (position, *cart)).filter(|(position, cart)| !missing(*position, *cart)))
            }
            (_, Some(cart)) if !missing(position, cart) => {
                carts.insert(cart);
                wanted.insert((position, cart));
            }
            _ => {}
        }
    }
    let rows: Vec<(i64, Uuid)> = sqlx::query_as(&format!("SELECT position, cart_id FROM {build}.ledger ORDER BY n, position"))
        .fetch_all(log.store.pool())
        .await
        .unwrap();
    let there: BTreeSet<_> = rows.iter().copied().collect();
    assert_eq!(there.symmetric_difference(&wanted).collect::<Vec<_>>(), Vec::<&(i64, Uuid)>::new(), "rows that are too many, or missing");
    assert_eq!(rows.len(), wanted.len());
    for cart in carts {
        let positions: Vec<_> = rows.iter().filter(|row| row.1 == cart).map(|row| row.0).collect();
        assert!(positions.is_sorted(), "{cart}: {positions:?}");
    }
}

/// Appends random events: of carts, without a key, and such that the ledger does not take.
pub(crate) async fn happen(log: &TestLog<DomainEvent>, carts: &[Shopping], events: usize, random: &RefCell<StdRng>) -> Position {
    let history: Vec<_> = (0..events)
        .map(|_| {
            let mut random = random.borrow_mut();
            let cart = &carts[random.random_range(0..carts.len())];
            match random.random_range(0..12) {
                0 => cart.price_changed(0),
                1 => cart.inventory(0, 3),
                2 => cart.created(),
                3..6 => cart.removed(0),
                6 => cart.cleared(),
                _ => cart.added(random.random_range(0..4)),
            }
        })
        .collect();
    log.append(history).await
}

pub(crate) fn seeded(seed: u64) -> RefCell<StdRng> {
    RefCell::new(StdRng::seed_from_u64(seed))
}

pub(crate) fn carts() -> Vec<Shopping> {
    (0..30).map(|_| Shopping::new()).collect()
}
