//! Add Item.

use std::collections::BTreeSet;

use actix_web::{post, web};
use cart_events::{CartId, CartStream, Description, DomainEvent, Image, ItemId, Price, ProductId};
use disintegrate::StateQuery;
use event_store::{Decided, Decision, EventStore, Position, State};
use serde::Deserialize;
use service::{Answer, HttpError, JsonBody, PathValue, Refusal, ensure_path_matches_body};
use uuid::Uuid;

use crate::{changes::MaxChanges, stock::Stock};

/// Adds an item to a cart. The first item creates the cart, which has room for three. The same command again answers the position of the
/// first.
#[utoipa::path(
    operation_id = "add_item",
    tag = "public",
    params(("cart_id" = CartId, Path)),
    request_body = AddItem,
    responses(
        (status = 200, description = "The cart's id, and the position of ItemAdded in the log.", body = (CartId, i64)),
        (status = 409, description = "cart_full, out_of_stock, cart_submitted, cart_exhausted, item_differs or item_gone", body = service::ErrorBody),
    )
)]
#[post("/additem/{cart_id}")]
pub(crate) async fn route(
    PathValue(cart_id): PathValue<CartId>,
    JsonBody(command): JsonBody<AddItem>,
    log: web::Data<EventStore<DomainEvent>>,
    max_changes: web::Data<MaxChanges>,
) -> Result<Answer<CartId>, HttpError> {
    ensure_path_matches_body("cart_id", &cart_id, &command.cart_id)?;
    let command = AddItem { max_changes: **max_changes, ..command };
    Ok(Answer(command.cart_id, service::command("add_item", log.decide(&command)).await?))
}

/// The command.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
pub(crate) struct AddItem {
    cart_id: CartId,
    item_id: ItemId,
    product_id: ProductId,
    description: Description,
    image: Image,
    price: Price,
    /// Made by the server.
    #[serde(skip, default = "device_fingerprint")]
    device_fingerprint: String,
    /// A setting.
    #[serde(skip)]
    max_changes: MaxChanges,
}

fn device_fingerprint() -> String {
    Uuid::new_v4().to_string()
}

/// Why an item is not added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the cart already has three items")]
    CartFull,
    #[error("the product {0} is out of stock")]
    OutOfStock(ProductId),
    #[error("the cart has been submitted; a submitted cart never changes")]
    CartSubmitted,
    #[error("the cart has taken all its changes; submit it, or use a new cart")]
    CartExhausted,
    #[error("the item {0} is already in the cart with other content")]
    ItemDiffers(ItemId),
    #[error("the item {0} has left the cart; use a new item_id")]
    ItemGone(ItemId),
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::CartFull => "cart_full",
            Self::OutOfStock(_) => "out_of_stock",
            Self::CartSubmitted => "cart_submitted",
            Self::CartExhausted => "cart_exhausted",
            Self::ItemDiffers(_) => "item_differs",
            Self::ItemGone(_) => "item_gone",
        }
    }
}

impl Decision for AddItem {
    type Event = DomainEvent;
    type StateQuery = (Cart, Stock);
    type Error = Refused;

    fn state_query(&self) -> (Cart, Stock) {
        (Cart::new(self.cart_id), Stock::of(self.product_id))
    }

    fn process(&self, (cart, stock): &(Cart, Stock)) -> Result<Decided<DomainEvent>, Refused> {
        // Before every other check: a client that lost the reply must learn that its item was added, whatever happened to the cart since.
        if let Some(item) = cart.items.iter().find(|item| item.item_id == self.item_id) {
            let is_same = item.content == self.content();
            return if is_same { Ok(Decided::AlreadyDone(item.added_at)) } else { Err(Refused::ItemDiffers(self.item_id)) };
        }
        if cart.gone.contains(&self.item_id) {
            return Err(Refused::ItemGone(self.item_id));
        }
        if cart.submitted {
            return Err(Refused::CartSubmitted);
        }
        if self.max_changes.are_reached(cart.changes) {
            return Err(Refused::CartExhausted);
        }
        if cart.items.len() >= 3 {
            return Err(Refused::CartFull);
        }
        if stock.is_out() {
            return Err(Refused::OutOfStock(self.product_id));
        }
        let created = (!cart.exists).then_some(DomainEvent::CartCreated { cart_id: self.cart_id });
        let added = DomainEvent::ItemAdded {
            cart_id: self.cart_id,
            item_id: self.item_id,
            product_id: self.product_id,
            description: self.description.clone(),
            image: self.image.clone(),
            price: self.price,
            device_fingerprint: self.device_fingerprint.clone(),
        };
        Ok(Decided::Events(created.into_iter().chain([added]).collect()))
    }
}

impl AddItem {
    fn content(&self) -> Content {
        (self.product_id, self.description.clone(), self.image.clone(), self.price)
    }
}

type Content = (ProductId, Description, Image, Price);

/// The part of a cart that Add Item depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
pub(crate) struct Cart {
    #[id]
    cart_id: CartId,
    exists: bool,
    submitted: bool,
    changes: u32,
    items: Vec<Item>,
    /// Removed, cleared or archived.
    gone: BTreeSet<ItemId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Item {
    item_id: ItemId,
    content: Content,
    added_at: Position,
}

impl Cart {
    fn new(cart_id: CartId) -> Self {
        Self { cart_id, exists: false, submitted: false, changes: 0, items: vec![], gone: BTreeSet::new() }
    }
}

impl State for Cart {
    fn mutate(&mut self, event: CartStream, at: Position) {
        self.changes += 1;
        match event {
            CartStream::CartCreated { .. } => self.exists = true,
            CartStream::ItemAdded { item_id, product_id, description, image, price, .. } => {
                self.items.push(Item { item_id, content: (product_id, description, image, price), added_at: at });
            }
            CartStream::ItemRemoved { item_id, .. } | CartStream::ItemArchived { item_id, .. } => {
                self.items.retain(|item| item.item_id != item_id);
                self.gone.insert(item_id);
            }
            CartStream::CartCleared { .. } => self.gone.extend(self.items.drain(..).map(|item| item.item_id)),
            CartStream::CartSubmitted { .. } => self.submitted = true,
        }
    }
}

#[cfg(test)]
mod specifications {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use event_store::{DecideError, StoreSettings};
    use test_support::{Meanwhile, TestLog, blocking, eventually, given};

    use super::*;
    use cart_events::examples::Shopping;

    fn add_item(cart: &Shopping, item: usize) -> AddItem {
        let DomainEvent::ItemAdded { cart_id, item_id, product_id, description, image, price, device_fingerprint } = cart.added(item)
        else {
            unreachable!("`added` makes ItemAdded")
        };
        AddItem { cart_id, item_id, product_id, description, image, price, device_fingerprint, max_changes: MaxChanges::default() }
    }

    #[test]
    fn creates_the_cart() {
        let cart = Shopping::new();
        given([]).when(&add_item(&cart, 0)).then([cart.created(), cart.added(0)]);
    }

    #[test]
    fn adds_to_a_cart_with_room() {
        let cart = Shopping::new();
        given(cart.with_items(1)).when(&add_item(&cart, 1)).then([cart.added(1)]);
        given(cart.with_items(2)).when(&add_item(&cart, 2)).then([cart.added(2)]);
    }

    #[test]
    fn refuses_a_fourth_item() {
        let cart = Shopping::new();
        given(cart.with_items(3)).when(&add_item(&cart, 3)).then_refused(Refused::CartFull);
    }

    #[test]
    fn ignores_items_that_left() {
        let cart = Shopping::new();
        given(cart.with_items(3).chain([cart.removed(0)])).when(&add_item(&cart, 3)).then([cart.added(3)]);
        given(cart.with_items(3).chain([cart.archived(1)])).when(&add_item(&cart, 3)).then([cart.added(3)]);
        given(cart.with_items(3).chain([cart.cleared()])).when(&add_item(&cart, 3)).then([cart.added(3)]);
    }

    #[test]
    fn refuses_a_product_out_of_stock() {
        let cart = Shopping::new();
        let refused = || Refused::OutOfStock(cart.product(0));
        given([cart.inventory(0, 0)]).when(&add_item(&cart, 0)).then_refused(refused());
        given([cart.inventory(0, 5), cart.inventory(0, 0)]).when(&add_item(&cart, 0)).then_refused(refused());
        given([cart.inventory(0, 0), cart.inventory(0, 1)]).when(&add_item(&cart, 0)).then([cart.created(), cart.added(0)]);
        given([cart.inventory(1, 0)]).when(&add_item(&cart, 0)).then([cart.created(), cart.added(0)]);
    }

    #[test]
    fn accepts_a_product_never_reported() {
        let cart = Shopping::new();
        given([]).when(&add_item(&cart, 0)).then([cart.created(), cart.added(0)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn decides_again_when_stock_runs_out_meanwhile() {
        let log = Arc::new(TestLog::<DomainEvent>::create().await);
        let cart = Shopping::new();
        log.append([cart.inventory(0, 5)]).await;
        let (meanwhile, out) = (log.clone(), cart.inventory(0, 0));
        let add = Meanwhile::new(add_item(&cart, 0), move || {
            blocking(meanwhile.append([out]));
        });
        let Err(DecideError::Refused(refused)) = log.store.decide(&add).await else { panic!("it is added") };
        assert_eq!(refused, Refused::OutOfStock(cart.product(0)));
        assert!(add.decided() > 1);
        assert_eq!(log.store.head().await.unwrap(), Position(2), "the change of inventory is the last event, and there is no cart");
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn reads_only_the_newest_inventory() {
        let log = TestLog::<DomainEvent>::create().await;
        let cart = Shopping::new();
        let newest = log.append((1..1_000).map(|_| cart.inventory(0, 7)).chain([cart.inventory(0, 0)])).await;
        // No older event can be decoded any more.
        sqlx::query("UPDATE event SET payload = '' WHERE event_id < $1").bind(newest.0).execute(log.store.pool()).await.unwrap();
        // Without a state cache the store reads before deciding, with one it gets the newest event with the conflict.
        for state_cache_bytes in [0, 1 << 20] {
            let settings = StoreSettings { state_cache_bytes, ..StoreSettings::default() };
            let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), settings);
            let refused = store.decide(&add_item(&cart, 0)).await.unwrap_err();
            let out = matches!(refused, DecideError::Refused(Refused::OutOfStock(product)) if product == cart.product(0));
            assert!(out, "{state_cache_bytes}: {refused:?}");
        }
    }

    #[test]
    fn refuses_a_submitted_cart() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1)])).when(&add_item(&cart, 1)).then_refused(Refused::CartSubmitted);
    }

    #[test]
    fn refuses_a_cart_with_all_its_changes() {
        let cart = Shopping::new();
        // The cart's creation, an item, and 998 clearings.
        let changes = |n| cart.with_items(1).chain((2..n).map(|_| cart.cleared()));
        given(changes(999)).when(&add_item(&cart, 1)).then([cart.added(1)]);
        given(changes(1_000)).when(&add_item(&cart, 1)).then_refused(Refused::CartExhausted);
        given(cart.with_items(3)).when(&AddItem { max_changes: MaxChanges(4), ..add_item(&cart, 3) }).then_refused(Refused::CartExhausted);
    }

    /// A cart with so many changes, as a log may have it from before the limit.
    async fn old_cart(changes: usize) -> (TestLog<DomainEvent>, Shopping) {
        let (log, cart) = (TestLog::<DomainEvent>::create().await, Shopping::new());
        let history = (0..changes / 2).flat_map(|_| {
            let item = Shopping { cart_id: cart.cart_id, ..Shopping::new() };
            [item.added(0), item.removed(0)]
        });
        let history: Vec<_> = history.collect();
        for part in history.chunks(1_000) {
            log.append(part.to_vec()).await;
        }
        (log, cart)
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn refusal_of_an_old_cart_grows_with_its_changes_only() {
        let mut cost = vec![];
        for changes in [1_000, 10_000] {
            let (log, cart) = old_cart(changes).await;
            let mut fastest = Duration::MAX;
            for _ in 0..3 {
                let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
                store.ready().await.unwrap();
                let started = Instant::now();
                let refused = store.decide(&add_item(&cart, 0)).await.unwrap_err();
                fastest = fastest.min(started.elapsed());
                assert!(matches!(refused, DecideError::Refused(Refused::CartExhausted)), "{refused:?}");
            }
            // A session reports its counts at its end.
            let pool = log.store.pool();
            let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'cartlog_commands' AND datname = current_database()";
            eventually("the stores are gone", || async {
                (sqlx::query_scalar::<_, i64>(sessions).fetch_one(pool).await.unwrap() == 0).then_some(())
            })
            .await;
            let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'event_cart_id'";
            let read: i64 = sqlx::query_scalar(read).fetch_one(pool).await.unwrap();

            // Once it is known, no old event is read again: none can be decoded any more.
            let store = EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
            store.decide(&add_item(&cart, 0)).await.unwrap_err();
            sqlx::query("UPDATE event SET payload = ''").execute(pool).await.unwrap();
            let refused = store.decide(&add_item(&cart, 1)).await.unwrap_err();
            assert!(matches!(refused, DecideError::Refused(Refused::CartExhausted)), "{refused:?}");
            cost.push((read, fastest));
        }
        let ((few, fast), (many, slow)) = (cost[0], cost[1]);
        println!("1,000 changes: {few} entries, {fast:?}; 10,000: {many} entries, {slow:?}");
        assert!(many <= 11 * few, "entries of the index: {few}, {many}");
        // A hundred times, if each change cost as much as there are changes.
        assert!(slow < 40 * fast, "{fast:?}, {slow:?}");
    }

    #[test]
    fn answers_a_resend_with_the_first_position() {
        let cart = Shopping::new();
        let again = AddItem { device_fingerprint: "another".into(), ..add_item(&cart, 0) };
        given(cart.with_items(1)).when(&again).then_already_done(2);
    }

    #[test]
    fn answers_a_resend_before_every_other_check() {
        let cart = Shopping::new();
        let again = add_item(&cart, 0);
        given(cart.with_items(3)).when(&again).then_already_done(2);
        given(cart.with_items(1).chain([cart.submitted(1)])).when(&again).then_already_done(2);
        given(cart.with_items(1).chain([cart.inventory(0, 0)])).when(&again).then_already_done(2);
        given(cart.with_items(1)).when(&AddItem { max_changes: MaxChanges(2), ..again }).then_already_done(2);
    }

    #[test]
    fn refuses_another_item_under_the_same_id() {
        let cart = Shopping::new();
        let refused = || Refused::ItemDiffers(cart.item(0));
        let other_price = AddItem { price: "1.23".parse().unwrap(), ..add_item(&cart, 0) };
        given(cart.with_items(1)).when(&other_price).then_refused(refused());
        let other_product = AddItem { product_id: cart.product(1), ..add_item(&cart, 0) };
        given(cart.with_items(3)).when(&other_product).then_refused(refused());
    }

    #[test]
    fn refuses_an_item_id_that_left() {
        let cart = Shopping::new();
        for gone in [cart.removed(0), cart.cleared(), cart.archived(0)] {
            given(cart.with_items(1).chain([gone])).when(&add_item(&cart, 0)).then_refused(Refused::ItemGone(cart.item(0)));
        }
    }
}
