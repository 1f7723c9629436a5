//! Archive Item: archives every item of a product that was in an unsubmitted cart before the product's price changed.
//!
//! Its projection keeps the items in unsubmitted carts, and enqueues a to-do for each item when its product's price changes. A popular
//! product is in very many carts, so this happens in portions: if there are more items, the last to-do of a portion enqueues the next one.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use cart_events::{ArchivingStream, CartId, CartStream, DomainEvent, ItemId, ProductId};
use disintegrate::StateQuery;
use event_store::{DecideError, Decided, Decision, EventStore, Metadata, Position, Recorded, State, StoreError, connection::with_timeout};
use projections::{
    Automation, Kind, Projection,
    todo::{Outcome, Todo},
};
use serde::{Deserialize, Serialize};
use service::Refusal;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

/// The items of a portion. A transaction with 1,000 to-dos takes some 50 ms.
const PORTION: i64 = 1_000;

/// The automation.
pub(crate) struct ArchiveItemAutomation {
    log: EventStore<DomainEvent>,
    portion: i64,
}

impl ArchiveItemAutomation {
    pub(crate) fn new(log: EventStore<DomainEvent>) -> Self {
        Self { log, portion: PORTION }
    }
}

#[async_trait]
impl Projection for ArchiveItemAutomation {
    type Log = DomainEvent;
    type Event = ArchivingStream;
    const NAME: &'static str = "archive_item";
    const KIND: Kind = Kind::Automation;
    const TABLES: &'static [&'static str] = &["archive_item_open_item"];
    const KEYED_BY: Option<&'static str> = Some("cart_id");

    fn key(event: &ArchivingStream) -> Option<Uuid> {
        event.cart_id().map(|cart| cart.uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<ArchivingStream>]) -> Result<(), sqlx::Error> {
        let (mut carts, mut items, mut products, mut positions) = (vec![], vec![], vec![], vec![]);
        let (mut left_carts, mut left_items) = (vec![], vec![]);
        // All items left. The last time in a batch suffices: of many, each would look at all items of the cart.
        let mut emptied = BTreeMap::new();
        let mut changes = Changes::default();
        for event in batch {
            match &event.event {
                ArchivingStream::ItemAdded { cart_id, item_id, product_id, .. } => {
                    carts.push(cart_id.uuid());
                    items.push(item_id.uuid());
                    products.push(product_id.uuid());
                    positions.push(event.position.0);
                }
                ArchivingStream::PriceChanged { product_id, .. } => {
                    changes.push(*product_id, event.position, Position::START, &event.metadata);
                }
                ArchivingStream::ItemRemoved { cart_id, item_id } | ArchivingStream::ItemArchived { cart_id, item_id, .. } => {
                    left_carts.push(cart_id.uuid());
                    left_items.push(item_id.uuid());
                }
                ArchivingStream::CartCleared { cart_id } | ArchivingStream::CartSubmitted { cart_id, .. } => {
                    emptied.insert(cart_id.uuid(), event.position.0);
                }
            }
        }
        if !items.is_empty() {
            sqlx::query!(
                "INSERT INTO archive_item_open_item (cart_id, item_id, product_id, position)
                 SELECT unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::uuid[]), unnest($4::bigint[])",
                &carts,
                &items,
                &products,
                &positions
            )
            .execute(&mut *transaction)
            .await?;
        }
        // The order within the batch does not matter: an item_id that left its cart never returns.
        if !left_items.is_empty() {
            sqlx::query!(
                "DELETE FROM archive_item_open_item o USING unnest($1::uuid[], $2::uuid[]) AS l(cart_id, item_id)
                 WHERE o.cart_id = l.cart_id AND o.item_id = l.item_id",
                &left_carts,
                &left_items
            )
            .execute(&mut *transaction)
            .await?;
        }
        if !emptied.is_empty() {
            let (carts, positions): (Vec<_>, Vec<_>) = emptied.into_iter().unzip();
            sqlx::query!(
                "DELETE FROM archive_item_open_item o USING unnest($1::uuid[], $2::bigint[]) AS e(cart_id, position)
                 WHERE o.cart_id = e.cart_id AND o.position < e.position",
                &carts,
                &positions
            )
            .execute(&mut *transaction)
            .await?;
        }
        // Last: an item that has left, before the change or after it, needs no to-do.
        changes.enqueue(&mut *transaction, self.portion).await?;
        Ok(())
    }
}

#[async_trait]
impl Automation for ArchiveItemAutomation {
    fn longest_attempt(&self) -> Duration {
        self.log.settings().command_timeout
    }

    fn max_backoff(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn attempt(&self, todo: Todo) -> Outcome {
        let command = match todo.payload() {
            Ok(Work::ArchiveItem(command)) => command,
            Ok(Work::NextPortion(next)) => {
                return match next.enqueue(&self.log, &todo.metadata, self.portion).await {
                    Ok(()) => Outcome::Done,
                    Err(error) => Outcome::Retry { error: error.to_string() },
                };
            }
            Err(error) => return Outcome::Failed { error: format!("cannot decode the to-do: {error}") },
        };
        let metadata = Metadata { causation_id: Some(todo.position.to_string()), ..Metadata::current() };
        match service::command(Self::NAME, self.log.decide_with(&command, metadata)).await {
            Ok(_) => Outcome::Done,
            Err(DecideError::Store(error)) => Outcome::Retry { error: error.to_string() },
            Err(DecideError::Refused(refused)) => Outcome::Retry { error: refused.to_string() },
        }
    }
}

/// The payload of a to-do.
#[derive(Deserialize)]
#[serde(untagged)]
enum Work {
    ArchiveItem(ArchiveItem),
    NextPortion(NextPortion),
}

/// Changes of price, each with the position after which its next portion of items begins.
#[derive(Default)]
struct Changes {
    products: Vec<Uuid>,
    changed_at: Vec<i64>,
    after: Vec<i64>,
    metadata: Vec<serde_json::Value>,
}

impl Changes {
    fn push(&mut self, product: ProductId, changed_at: Position, after: Position, metadata: &Metadata) {
        self.products.push(product.uuid());
        self.changed_at.push(changed_at.0);
        self.after.push(after.0);
        self.metadata.push(serde_json::json!(metadata));
    }

    /// Enqueues a to-do for each item of the next portions. A change whose portion is full gets a to-do for the portion after it.
    ///
    /// A change of price has no key: it comes once in each segment, which knows only its own carts as they were at the change. So a portion
    /// is one of the transaction's segments, or of the parked cart that is retried. The limit counts the items of other carts too: it bounds
    /// the statement.
    async fn enqueue(&self, transaction: &mut PgConnection, portion: i64) -> Result<(), sqlx::Error> {
        if self.products.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "WITH scope AS (
                 SELECT coalesce(current_setting('projection.segments', true), '') AS segments,
                        nullif(current_setting('projection.key', true), '')::uuid AS cart_id
             ), change AS (
                 SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::jsonb[]) AS c(product_id, position, after, metadata)
             ), looked_at AS (
                 SELECT c.product_id, c.position, c.metadata, o.cart_id, o.item_id, o.position AS added_at
                 FROM scope CROSS JOIN change c CROSS JOIN LATERAL (
                     SELECT o.cart_id, o.item_id, o.position FROM archive_item_open_item o
                     WHERE o.product_id = c.product_id AND o.position > c.after AND o.position < c.position
                     ORDER BY o.product_id, o.position LIMIT $6
                 ) o
                 WHERE scope.cart_id IS NULL
             ), of_parked_cart AS (
                 SELECT c.position, c.metadata, o.cart_id, o.item_id
                 FROM scope JOIN archive_item_open_item o USING (cart_id) JOIN change c USING (product_id)
                 WHERE o.position < c.position
             )
             INSERT INTO todo (automation, key, position, payload, metadata)
             SELECT $1, concat(i.cart_id, '/', i.item_id, '@', i.position), i.position,
                    jsonb_build_object('cart_id', i.cart_id, 'item_id', i.item_id, 'price_changed_at', i.position), i.metadata
             FROM (SELECT position, metadata, cart_id, item_id FROM looked_at WHERE key_in_scope(cart_id)
                   UNION ALL SELECT * FROM of_parked_cart) i
             UNION ALL
             SELECT $1, concat(l.product_id, '@', l.position, ' after ', max(l.added_at), ' in ', scope.segments), l.position,
                    jsonb_build_object('product_id', l.product_id, 'price_changed_at', l.position, 'after', max(l.added_at),
                                       'segments', scope.segments),
                    l.metadata
             FROM looked_at l CROSS JOIN scope
             GROUP BY l.product_id, l.position, l.metadata, scope.segments HAVING count(*) = $6
             ON CONFLICT DO NOTHING",
            ArchiveItemAutomation::NAME,
            &self.products,
            &self.changed_at,
            &self.after,
            &self.metadata,
            portion
        )
        .execute(transaction)
        .await?;
        Ok(())
    }
}

/// The next portion of the items of a product whose price has changed.
///
/// The checkpoint is past the change by then, and some of the items have left their carts. Their rows are gone, and they need no to-do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct NextPortion {
    product_id: ProductId,
    price_changed_at: Position,
    /// The position of the last item that was looked at.
    after: Position,
    /// The segments of the transaction that applied the change.
    segments: String,
}

impl NextPortion {
    /// Enqueues the portion's to-dos and the to-do for the portion after it, all or none. Enqueues no to-do twice.
    async fn enqueue(&self, log: &EventStore<DomainEvent>, metadata: &Metadata, portion: i64) -> Result<(), StoreError> {
        let mut changes = Changes::default();
        changes.push(self.product_id, self.price_changed_at, self.after, metadata);
        with_timeout(async {
            let mut connection = log.connection().await?;
            let mut transaction = connection.begin().await?;
            sqlx::query!(
                "SELECT set_config('search_path', 'automation, public', true) AS search_path,
                        set_config('projection.segments', $1, true) AS segments",
                self.segments
            )
            .fetch_one(&mut *transaction)
            .await?;
            changes.enqueue(&mut transaction, portion).await?;
            transaction.commit().await?;
            connection.done();
            Ok(())
        })
        .await
    }
}

/// The command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ArchiveItem {
    cart_id: CartId,
    item_id: ItemId,
    /// The position of the PriceChanged.
    price_changed_at: Position,
}

/// Why an item is not archived.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the log does not contain the item that the to-do is about: it is an older one, such as that of a server before a failover")]
    UnknownItem,
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownItem => "unknown_item",
        }
    }
}

impl Decision for ArchiveItem {
    type Event = DomainEvent;
    type StateQuery = OpenItem;
    type Error = Refused;

    fn state_query(&self) -> OpenItem {
        OpenItem { cart_id: self.cart_id, item_id: self.item_id, is_known: false, added_at: None }
    }

    fn process(&self, state: &OpenItem) -> Result<Decided<DomainEvent>, Refused> {
        // A to-do exists only for an item that was added. "Not there" is not "gone".
        if !state.is_known {
            return Err(Refused::UnknownItem);
        }
        Ok(match state.added_at {
            Some(added_at) if added_at < self.price_changed_at => Decided::Events(vec![DomainEvent::ItemArchived {
                cart_id: self.cart_id,
                item_id: self.item_id,
                price_changed_at: self.price_changed_at.0,
            }]),
            _ => Decided::Nothing,
        })
    }
}

/// The position since which an item is in an unsubmitted cart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
pub(crate) struct OpenItem {
    #[id]
    cart_id: CartId,
    #[id]
    item_id: ItemId,
    is_known: bool,
    added_at: Option<Position>,
}

impl State for OpenItem {
    fn mutate(&mut self, event: CartStream, at: Position) {
        match event {
            CartStream::CartCreated { .. } => {}
            CartStream::ItemAdded { .. } => (self.is_known, self.added_at) = (true, Some(at)),
            CartStream::ItemRemoved { .. }
            | CartStream::ItemArchived { .. }
            | CartStream::CartCleared { .. }
            | CartStream::CartSubmitted { .. } => self.added_at = None,
        }
    }
}

#[cfg(test)]
mod specifications {
    use std::collections::BTreeSet;

    use projections::Settings;
    use service::CancellationToken;
    use test_support::{TestLog, eventually, given};

    use super::*;
    use cart_events::examples::Shopping;

    fn archive(cart: &Shopping, item: usize, price_changed_at: i64) -> ArchiveItem {
        ArchiveItem { cart_id: cart.cart_id, item_id: cart.item(item), price_changed_at: Position(price_changed_at) }
    }

    fn archived(cart: &Shopping, item: usize, price_changed_at: i64) -> DomainEvent {
        DomainEvent::ItemArchived { cart_id: cart.cart_id, item_id: cart.item(item), price_changed_at }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn enqueues_items_added_before_the_change() {
        for batch in [1_000, 1] {
            let log = TestLog::<DomainEvent>::create().await;
            let cart = Shopping::new();
            let [other, removed, cleared, submitted, later] = std::array::from_fn(|_| cart.other_cart());
            log.append(cart.with_items(2)).await;
            for cart in [&other, &removed, &cleared, &submitted] {
                log.append(cart.with_items(1)).await;
            }
            log.append([removed.removed(0), cleared.cleared(), submitted.submitted(1)]).await;
            let changed_at = log.append([cart.price_changed(0)]).await;
            log.append(later.with_items(1)).await;
            log.project(ArchiveItemAutomation::new(log.store.clone()), Settings { batch, ..Settings::default() }).await;

            let mut asked: Vec<ArchiveItem> =
                sqlx::query_scalar("SELECT payload FROM todo WHERE automation = 'archive_item' ORDER BY position, key")
                    .fetch_all(log.store.pool())
                    .await
                    .unwrap()
                    .into_iter()
                    .map(|payload: serde_json::Value| serde_json::from_value(payload).unwrap())
                    .collect();
            asked.sort_by_key(|todo| todo.cart_id);
            assert_eq!(asked, [archive(&cart, 0, changed_at.0), archive(&other, 0, changed_at.0)]);
        }
    }

    #[test]
    fn archives_an_item_added_before_the_change() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.price_changed(0)])).when(&archive(&cart, 0, 3)).then([archived(&cart, 0, 3)]);
    }

    #[test]
    fn keeps_an_item_added_after_the_change() {
        let cart = Shopping::new();
        given([cart.created(), cart.price_changed(0), cart.added(0)]).when(&archive(&cart, 0, 2)).then_nothing();
    }

    #[test]
    fn archives_both_items_of_a_product() {
        let cart = Shopping::new();
        let history = || cart.with_items(1).chain([cart.added_again(1, 0), cart.price_changed(0)]);
        given(history()).when(&archive(&cart, 0, 4)).then([archived(&cart, 0, 4)]);
        given(history().chain([archived(&cart, 0, 4)])).when(&archive(&cart, 1, 4)).then([archived(&cart, 1, 4)]);
    }

    #[test]
    fn keeps_a_submitted_cart() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.price_changed(0), cart.submitted(1)])).when(&archive(&cart, 0, 3)).then_nothing();
    }

    #[test]
    fn ignores_an_item_that_left() {
        let cart = Shopping::new();
        for gone in [cart.removed(0), cart.cleared(), archived(&cart, 0, 3)] {
            given(cart.with_items(1).chain([cart.price_changed(0), gone])).when(&archive(&cart, 0, 3)).then_nothing();
        }
    }

    #[test]
    fn retries_an_item_that_the_log_does_not_contain() {
        let cart = Shopping::new();
        given([]).when(&archive(&cart, 0, 3)).then_refused(Refused::UnknownItem);
        given(cart.with_items(1)).when(&archive(&cart, 1, 3)).then_refused(Refused::UnknownItem);
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn enqueues_in_portions_each_item_once() {
        const ITEMS: i64 = 200_000;
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let automation = || ArchiveItemAutomation { log: log.store.clone(), portion: 5_000 };
        log.append(cart.with_items(1).chain([cart.price_changed(0)])).await;
        // Registers it and creates its checkpoints.
        log.project(automation(), Settings::default()).await;
        sqlx::query("TRUNCATE todo").execute(log.store.pool()).await.unwrap();
        // As if the log had so many items of the product before the next change.
        sqlx::query(
            "INSERT INTO automation.archive_item_open_item SELECT uuidv7(), uuidv7(), $1, 10 + n FROM generate_series(1, $2::bigint) n",
        )
        .bind(cart.product(0).uuid())
        .bind(ITEMS)
        .execute(log.store.pool())
        .await
        .unwrap();
        sqlx::query("UPDATE event SET event_id = $1 WHERE event_id = 3").bind(ITEMS + 20).execute(log.store.pool()).await.unwrap();
        log.project(automation(), Settings::default()).await;

        let (mut done, mut killed) = (BTreeSet::new(), 0);
        loop {
            let portions = "SELECT key, payload FROM todo WHERE payload ? 'after'";
            let portions: Vec<(String, serde_json::Value)> = sqlx::query_as(portions).fetch_all(log.store.pool()).await.unwrap();
            let next = portions.into_iter().find(|(key, _)| !done.contains(key)).map(|(key, payload)| {
                let Ok(Work::NextPortion(next)) = serde_json::from_value(payload) else { panic!("{key} is no portion") };
                (key, next)
            });
            let Some((key, next)) = next else { break };
            // Some attempts end in the middle, as if the process were killed. The to-do is attempted again, also after one that succeeded.
            let metadata = Metadata::default();
            let attempt = next.enqueue(&log.store, &metadata, 5_000);
            if done.len() % 3 == 0 {
                let pause = Duration::from_millis(done.len() as u64);
                killed += i32::from(tokio::time::timeout(pause, attempt).await.is_err());
                next.enqueue(&log.store, &metadata, 5_000).await.unwrap();
            } else {
                attempt.await.unwrap();
            }
            done.insert(key);
        }
        assert!(killed > 0 && done.len() >= 40, "{killed} killed, {} portions", done.len());
        let items = "SELECT count(*), count(DISTINCT (payload ->> 'cart_id', payload ->> 'item_id')), min(position), max(position)
                     FROM todo WHERE payload ? 'item_id'";
        let items: (i64, i64, i64, i64) = sqlx::query_as(items).fetch_one(log.store.pool()).await.unwrap();
        // With the item in the log.
        assert_eq!(items, (200_001, 200_001, ITEMS + 20, ITEMS + 20));
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn archives_the_items_of_every_portion() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let carts: Vec<_> = std::iter::once(cart.cart_id).chain((1..10).map(|_| cart.other_cart().cart_id)).collect();
        for cart_id in &carts {
            log.append(Shopping { cart_id: *cart_id, items: cart.items }.with_items(1)).await;
        }
        let changed_at = log.append([cart.price_changed(0)]).await;
        let (stop, automation) = (CancellationToken::new(), ArchiveItemAutomation { log: log.store.clone(), portion: 2 });
        let running = tokio::spawn(log.projections.run_automation(automation, Settings::default(), stop.clone()));
        let archived = "SELECT count(*), count(DISTINCT cart_id) FROM event WHERE event_type = 'ItemArchived' AND event_id > $1";
        let closed = "SELECT NOT EXISTS (SELECT FROM todo WHERE status <> 'done') AND EXISTS (SELECT FROM todo)";
        eventually("every to-do is done", || async {
            sqlx::query_scalar::<_, bool>(closed).fetch_one(log.store.pool()).await.unwrap().then_some(())
        })
        .await;
        stop.cancel();
        running.await.unwrap().unwrap();
        let counts: (i64, i64) = sqlx::query_as(archived).bind(changed_at.0).fetch_one(log.store.pool()).await.unwrap();
        assert_eq!(counts, (10, 10));
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn archives_nothing_again_after_a_rebuild() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        log.append(cart.with_items(1).chain([cart.price_changed(0)])).await;
        log.project(ArchiveItemAutomation::new(log.store.clone()), Settings::default()).await;
        let todos = async || -> i64 { sqlx::query_scalar("SELECT count(*) FROM todo").fetch_one(log.store.pool()).await.unwrap() };
        assert_eq!(todos().await, 1);
        sqlx::query("DELETE FROM todo").execute(log.store.pool()).await.unwrap();
        projections::rebuild::<crate::cart_items::CartItemsProjection>(log.store.pool()).await.unwrap();
        projections::rebuild::<ArchiveItemAutomation>(log.store.pool()).await.unwrap_err();
        log.project(crate::cart_items::CartItemsProjection, Settings::default()).await;
        log.project(crate::carts_with_products::CartsWithProducts, Settings::default()).await;
        log.project(ArchiveItemAutomation::new(log.store.clone()), Settings::default()).await;
        assert_eq!(todos().await, 0);
    }

    /// Runs the automation until every to-do is done.
    async fn work(log: &TestLog<DomainEvent>) {
        let stop = CancellationToken::new();
        let head = log.store.head().await.unwrap();
        let running =
            tokio::spawn(log.projections.run_automation(ArchiveItemAutomation::new(log.store.clone()), Settings::default(), stop.clone()));
        let left = "SELECT count(*) FROM todo WHERE status <> 'done'";
        eventually("every to-do is done", || async {
            let applied = log.projections.wait("archive_item", None, head, Duration::ZERO).await.unwrap() == projections::Wait::Reached;
            (applied && sqlx::query_scalar::<_, i64>(left).fetch_one(log.store.pool()).await.unwrap() == 0).then_some(())
        })
        .await;
        stop.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn rebuild_brings_a_wrong_state_right() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let [early, late, left] = std::array::from_fn(|_| cart.other_cart());
        log.append(cart.with_items(2).chain(early.with_items(1)).chain([cart.price_changed(0)])).await;
        work(&log).await;
        log.append(late.with_items(2).chain(left.with_items(1)).chain([left.removed(0), cart.price_changed(0)])).await;
        log.project(ArchiveItemAutomation::new(log.store.clone()), Settings::default()).await;

        let pool = log.store.pool();
        let state = async || -> Vec<(Uuid, Uuid, i64)> {
            let rows = "SELECT cart_id, item_id, position FROM automation.archive_item_open_item ORDER BY position";
            sqlx::query_as(rows).fetch_all(pool).await.unwrap()
        };
        let open = async || -> Vec<String> {
            sqlx::query_scalar("SELECT key FROM todo WHERE status = 'open' ORDER BY key").fetch_all(pool).await.unwrap()
        };
        let (right_state, right_todos) = (state().await, open().await);
        assert_eq!((right_state.len(), right_todos.len()), (3, 1));
        // Rows that are missing and rows too many, a to-do that was lost to a server that was behind, and one about nothing.
        sqlx::raw_sql(
            "DELETE FROM automation.archive_item_open_item WHERE position > 10;
             INSERT INTO automation.archive_item_open_item SELECT cart_id, uuidv7(), product_id, position FROM automation.archive_item_open_item;
             UPDATE todo SET status = 'done', finished_at = clock_timestamp();
             INSERT INTO todo (automation, key, position, payload, metadata) SELECT automation, 'wrong', position, '{}', '{}' FROM todo LIMIT 1",
        )
        .execute(pool)
        .await
        .unwrap();

        projections::rebuild_automation(pool, "archive_item").await.unwrap();
        log.project(ArchiveItemAutomation::new(log.store.clone()), Settings::default()).await;
        assert_eq!(state().await, right_state);
        // Items that have left since, archived or not, have none.
        assert_eq!(open().await, right_todos);
        work(&log).await;
        let archived: Vec<(Uuid, Uuid)> =
            sqlx::query_as("SELECT cart_id, item_id FROM event WHERE event_type = 'ItemArchived' ORDER BY event_id")
                .fetch_all(pool)
                .await
                .unwrap();
        let wanted = [&cart, &early, &late].map(|cart| (cart.cart_id.uuid(), cart.item(0).uuid()));
        assert_eq!((archived.len(), archived.iter().copied().collect::<BTreeSet<_>>()), (3, wanted.into_iter().collect()));
    }
}
