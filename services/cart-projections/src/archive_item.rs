//! Archive Item: archives every item of a product that was in an unsubmitted cart before the product's price changed.
//!
//! Its projection keeps the items in unsubmitted carts, and enqueues a to-do for each item when its product's price changes.

use std::time::Duration;

use async_trait::async_trait;
use cart_events::{ArchivingStream, CartId, CartStream, DomainEvent, ItemId};
use disintegrate::StateQuery;
use event_store::{DecideError, Decided, Decision, EventStore, Metadata, Position, Recorded, State};
use projections::{
    Automation, Kind, Projection,
    todo::{Outcome, Todo},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

/// The automation.
pub(crate) struct ArchiveItemAutomation {
    pub(crate) log: EventStore<DomainEvent>,
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
        // Items that left their carts. No item: all items of the cart left.
        let (mut left_carts, mut left_items, mut left_at) = (vec![], vec![], vec![]);
        let (mut changed, mut changed_at, mut metadata) = (vec![], vec![], vec![]);
        for event in batch {
            let left = match &event.event {
                ArchivingStream::ItemAdded { cart_id, item_id, product_id, .. } => {
                    carts.push(cart_id.uuid());
                    items.push(item_id.uuid());
                    products.push(product_id.uuid());
                    positions.push(event.position.0);
                    continue;
                }
                ArchivingStream::PriceChanged { product_id, .. } => {
                    changed.push(product_id.uuid());
                    changed_at.push(event.position.0);
                    metadata.push(serde_json::json!(event.metadata));
                    continue;
                }
                ArchivingStream::ItemRemoved { cart_id, item_id } | ArchivingStream::ItemArchived { cart_id, item_id, .. } => {
                    (cart_id.uuid(), Some(item_id.uuid()))
                }
                ArchivingStream::CartCleared { cart_id } | ArchivingStream::CartSubmitted { cart_id, .. } => (cart_id.uuid(), None),
            };
            left_carts.push(left.0);
            left_items.push(left.1);
            left_at.push(event.position.0);
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
        if !changed.is_empty() {
            // Enqueues items that were added before the change and did not leave before it, also within one batch. SQL makes the to-dos,
            // because a popular product is in very many carts. A change of price has no key and comes once in each segment, which knows
            // only its own carts as they were at the change.
            sqlx::query!(
                "INSERT INTO todo (automation, key, position, payload, metadata)
                 SELECT $1, concat(o.cart_id, '/', o.item_id, '@', c.position), c.position,
                        jsonb_build_object('cart_id', o.cart_id, 'item_id', o.item_id, 'price_changed_at', c.position), c.metadata
                 FROM unnest($2::uuid[], $3::bigint[], $4::jsonb[]) AS c(product_id, position, metadata)
                 JOIN archive_item_open_item o ON o.product_id = c.product_id AND o.position < c.position
                      AND key_in_scope(o.cart_id)
                 WHERE NOT EXISTS (
                     SELECT FROM unnest($5::uuid[], $6::uuid[], $7::bigint[]) AS l(cart_id, item_id, position)
                     WHERE l.cart_id = o.cart_id AND (l.item_id IS NULL OR l.item_id = o.item_id)
                       AND l.position > o.position AND l.position < c.position)
                 ON CONFLICT DO NOTHING",
                Self::NAME,
                &changed,
                &changed_at,
                &metadata,
                &left_carts,
                &left_items as &[Option<Uuid>],
                &left_at
            )
            .execute(&mut *transaction)
            .await?;
        }
        if !left_carts.is_empty() {
            sqlx::query!(
                "DELETE FROM archive_item_open_item o USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS l(cart_id, item_id, position)
                 WHERE o.cart_id = l.cart_id AND (l.item_id IS NULL OR o.item_id = l.item_id) AND o.position < l.position",
                &left_carts,
                &left_items as &[Option<Uuid>],
                &left_at
            )
            .execute(&mut *transaction)
            .await?;
        }
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
        let command: ArchiveItem = match todo.payload() {
            Ok(command) => command,
            Err(error) => return Outcome::Failed { error: format!("cannot decode the to-do: {error}") },
        };
        let metadata = Metadata { causation_id: Some(todo.position.to_string()), ..Metadata::current() };
        match service::command(Self::NAME, self.log.decide_with(&command, metadata)).await {
            Ok(_) => Outcome::Done,
            Err(DecideError::Store(error)) => Outcome::Retry { error: error.to_string() },
            Err(DecideError::Refused(never)) => match never {},
        }
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

impl Decision for ArchiveItem {
    type Event = DomainEvent;
    type StateQuery = OpenItem;
    type Error = std::convert::Infallible;

    fn state_query(&self) -> OpenItem {
        OpenItem { cart_id: self.cart_id, item_id: self.item_id, added_at: None }
    }

    fn process(&self, state: &OpenItem) -> Result<Decided<DomainEvent>, Self::Error> {
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
    added_at: Option<Position>,
}

impl State for OpenItem {
    fn mutate(&mut self, event: CartStream, at: Position) {
        match event {
            CartStream::CartCreated { .. } => {}
            CartStream::ItemAdded { .. } => self.added_at = Some(at),
            CartStream::ItemRemoved { .. }
            | CartStream::ItemArchived { .. }
            | CartStream::CartCleared { .. }
            | CartStream::CartSubmitted { .. } => self.added_at = None,
        }
    }
}

#[cfg(test)]
mod specifications {
    use projections::Settings;
    use test_support::{TestLog, given};

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
            log.project(ArchiveItemAutomation { log: log.store.clone() }, Settings { batch, ..Settings::default() }).await;

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

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn archives_nothing_again_after_a_rebuild() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        log.append(cart.with_items(1).chain([cart.price_changed(0)])).await;
        log.project(ArchiveItemAutomation { log: log.store.clone() }, Settings::default()).await;
        let todos = async || -> i64 { sqlx::query_scalar("SELECT count(*) FROM todo").fetch_one(log.store.pool()).await.unwrap() };
        assert_eq!(todos().await, 1);
        sqlx::query("DELETE FROM todo").execute(log.store.pool()).await.unwrap();
        projections::rebuild::<crate::cart_items::CartItemsProjection>(log.store.pool()).await.unwrap();
        projections::rebuild::<ArchiveItemAutomation>(log.store.pool()).await.unwrap_err();
        log.project(crate::cart_items::CartItemsProjection, Settings::default()).await;
        log.project(crate::carts_with_products::CartsWithProducts, Settings::default()).await;
        log.project(ArchiveItemAutomation { log: log.store.clone() }, Settings::default()).await;
        assert_eq!(todos().await, 0);
    }
}
