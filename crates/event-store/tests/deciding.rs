//! Deciding on cached states: what the cache saves, and that it changes no answer.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::common::{Add, Meanwhile, blocking};
use cart_events::{CartId, CartStream, DomainEvent, Inventory, InventoryStream, ProductId, examples::Shopping};
use disintegrate::StateQuery;
use event_store::{DecideError, Decided, Decision, EventStore, Position, State, StoreSettings, View};
use test_support::{TestLog, eventually};

/// Counts how often a decision ran.
struct Counted<'a, D>(D, &'a AtomicUsize);

impl<D: Decision> Decision for Counted<'_, D> {
    type Event = D::Event;
    type StateQuery = D::StateQuery;
    type Error = D::Error;
    fn state_query(&self) -> D::StateQuery {
        self.0.state_query()
    }
    fn process(&self, state: &View<D>) -> Result<Decided<D::Event>, D::Error> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.process(state)
    }
}

/// Returns how many calls that append the server has counted. Reads are not among them: their function is part of a statement.
async fn appends(log: &TestLog<DomainEvent>) -> i64 {
    let pool = log.store.pool();
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(pool).await.unwrap();
    sqlx::query_scalar("SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_user_functions WHERE funcname = 'append_events'")
        .fetch_one(pool)
        .await
        .unwrap()
}

/// Counts a cart's items on top of a number that the caller chooses: a field that is no id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
struct Offset {
    #[id]
    cart_id: CartId,
    items: usize,
}

impl State for Offset {
    fn mutate(&mut self, _: CartStream, _: Position) {
        self.items += 1;
    }
}

/// Refuses with the count.
struct Count(Offset);

impl Decision for Count {
    type Event = DomainEvent;
    type StateQuery = Offset;
    type Error = usize;
    fn state_query(&self) -> Offset {
        self.0.clone()
    }
    fn process(&self, state: &Offset) -> Result<Decided<DomainEvent>, usize> {
        Err(state.items)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn states_that_differ_in_a_field_that_is_no_id_are_kept_apart() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    log.append(cart.with_items(2)).await;
    for _ in 0..2 {
        for start in [0, 10, 100] {
            let refused = log.store.decide(&Count(Offset { cart_id: cart.cart_id, items: start })).await;
            assert!(matches!(refused, Err(DecideError::Refused(counted)) if counted == start + 3), "{refused:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_command_on_fresh_states_decides_once_on_stale_ones_twice() {
    let log = TestLog::<DomainEvent>::create().await;
    let other = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    let (cart, decided) = (Shopping::new(), AtomicUsize::new(0));
    let add = async |store: &EventStore<DomainEvent>| {
        decided.store(0, Ordering::SeqCst);
        store.decide(&Counted(Add::to(&cart), &decided)).await.unwrap();
        decided.load(Ordering::SeqCst)
    };
    assert_eq!(add(&log.store).await, 1, "a new cart");
    assert_eq!(add(&log.store).await, 1, "a cached cart");
    assert_eq!(add(&other).await, 2, "another process missed both, and gets them with the conflict");
    let full = log.store.decide(&Counted(Add::to(&cart), &decided)).await;
    assert!(matches!(full, Err(DecideError::Refused(3))), "{full:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_refusal_never_rests_on_the_cache_alone() {
    let log = TestLog::<DomainEvent>::create().await;
    let other = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    let cart = Shopping::new();
    for _ in 0..3 {
        log.store.decide(&Emptied(Add::to(&cart))).await.unwrap();
    }
    let full = log.store.decide(&Emptied(Add::to(&cart))).await;
    assert!(matches!(full, Err(DecideError::Refused(3))), "{full:?}");
    // The cache says full, but another process has cleared the cart since.
    other.decide(&Clear(cart.cleared())).await.unwrap();
    log.store.decide(&Emptied(Add::to(&cart))).await.unwrap();
}

/// Like `Add`, on a cart that can be cleared.
struct Emptied(Add);

#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(CartStream)]
struct Room {
    #[id]
    cart_id: CartId,
    items: usize,
}

impl State for Room {
    fn mutate(&mut self, event: CartStream, _: Position) {
        match event {
            CartStream::ItemAdded { .. } => self.items += 1,
            CartStream::CartCleared { .. } => self.items = 0,
            _ => {}
        }
    }
}

impl Decision for Emptied {
    type Event = DomainEvent;
    type StateQuery = Room;
    type Error = usize;
    fn state_query(&self) -> Room {
        Room { cart_id: self.0.state_query().cart_id, items: 0 }
    }
    fn process(&self, state: &Room) -> Result<Decided<DomainEvent>, usize> {
        if state.items < 3 { Ok(Decided::Events(vec![self.0.0.clone()])) } else { Err(state.items) }
    }
}

struct Clear(DomainEvent);

impl Decision for Clear {
    type Event = DomainEvent;
    type StateQuery = ();
    type Error = usize;
    fn state_query(&self) {}
    fn process(&self, (): &()) -> Result<Decided<DomainEvent>, usize> {
        Ok(Decided::Events(vec![self.0.clone()]))
    }
}

/// Always adds.
struct Always(Add);

impl Decision for Always {
    type Event = DomainEvent;
    type StateQuery = Room;
    type Error = usize;
    fn state_query(&self) -> Room {
        Room { cart_id: self.0.state_query().cart_id, items: 0 }
    }
    fn process(&self, _: &Room) -> Result<Decided<DomainEvent>, usize> {
        Ok(Decided::Events(vec![self.0.0.clone()]))
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn commands_on_one_cart_in_one_process_do_not_conflict() {
    let log = TestLog::<DomainEvent>::create().await;
    let (cart, decided) = (Shopping::new(), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..300)
        .map(|_| {
            let (store, add, decided) = (log.store.clone(), Always(Add::to(&cart)), decided.clone());
            tokio::spawn(async move { store.decide(&Counted(add, &decided)).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(log.store.head().await.unwrap(), Position(300));
    // Once on the state cached when it came, and once on what the command before it left.
    let decided = decided.load(Ordering::SeqCst);
    assert!(decided <= 600, "decided {decided} times");
}

/// Each process has its own lock for the cart, so they contend only in the log.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn two_processes_that_contend_for_a_cart_both_finish() {
    let log = TestLog::<DomainEvent>::create().await;
    let store = || EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default());
    let (stores, cart) = ([store(), store()], Shopping::new());
    // Connects both first: otherwise one may finish before the other has begun.
    for store in &stores {
        store.decide(&Always(Add::to(&Shopping::new()))).await.unwrap();
    }
    let tasks: Vec<_> = (0..800)
        .map(|number| {
            let (store, add) = (stores[number % 2].clone(), Always(Add::to(&cart)));
            tokio::spawn(async move { store.decide(&add).await.unwrap() })
        })
        .collect();
    eventually("both have begun", || async { (log.store.head().await.unwrap() > Position(2)).then_some(()) }).await;
    for store in &stores {
        let position = store.decide(&Always(Add::to(&Shopping::new()))).await.unwrap();
        assert!(position < Position(804), "the other cart waited for all of them");
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(log.store.head().await.unwrap(), Position(804));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_busy_cart_holds_up_no_other() {
    let log = TestLog::<DomainEvent>::create().await;
    let hot = Shopping::new();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (store, add) = (log.store.clone(), Always(Add::to(&hot)));
        waiting.spawn(async move { store.decide(&add).await.unwrap() });
    }
    // The first one is done, so the others wait for the cart's lock, each for a call of its own.
    waiting.join_next().await.unwrap().unwrap();
    for _ in 0..10 {
        log.store.decide(&Always(Add::to(&Shopping::new()))).await.unwrap();
    }
    // Ten calls take about as long as ten of the waiting commands.
    let done = std::iter::from_fn(|| waiting.try_join_next()).count();
    assert!(done < 250, "{done} of those in line were done before");
    while let Some(added) = waiting.join_next().await {
        added.unwrap();
    }
    assert_eq!(log.store.head().await.unwrap(), Position(510));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_cancelled_command_releases_its_lock() {
    let log = TestLog::<DomainEvent>::create().await;
    let cart = Shopping::new();
    let mut holding = log.store.pool().begin().await.unwrap();
    sqlx::query("SELECT lock_log()").execute(&mut *holding).await.unwrap();
    let reached = Arc::new(tokio::sync::Semaphore::new(0));
    let (store, told) = (log.store.clone(), reached.clone());
    let add = Meanwhile::new(Add::to(&cart), move || told.add_permits(1));
    let given_up = tokio::spawn(async move { store.decide(&add).await });
    drop(reached.acquire().await.unwrap());
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    let store = log.store.clone();
    let next = tokio::spawn(async move { store.decide(&Add::to(&cart)).await });
    holding.rollback().await.unwrap();
    next.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn evicted_states_change_no_answer() {
    let log = TestLog::<DomainEvent>::create().await;
    let settings = StoreSettings { state_cache_bytes: 20_000, ..StoreSettings::default() };
    let store = EventStore::<DomainEvent>::new(log.database.options(), settings);
    let carts: Vec<Shopping> = (0..200).map(|_| Shopping::new()).collect();
    for _ in 0..3 {
        for cart in &carts {
            store.decide(&Add::to(cart)).await.unwrap();
        }
    }
    let decided = AtomicUsize::new(0);
    for cart in &carts {
        let full = store.decide(&Counted(Add::to(cart), &decided)).await;
        assert!(matches!(full, Err(DecideError::Refused(3))), "{full:?}");
    }
    // An evicted state starts empty, so the command adds, conflicts, and decides again: two decisions. A cached state says full at once
    // and is read: two decisions as well. Most states are evicted.
    assert_eq!(decided.load(Ordering::SeqCst), 400);
    assert_eq!(log.store.head().await.unwrap(), Position(600));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn cached_states_of_an_emptied_log_are_forgotten() {
    let log = TestLog::<DomainEvent>::create().await;
    let (cart, pool) = (Shopping::new(), log.store.pool().clone());
    for _ in 0..3 {
        log.store.decide(&Add::to(&cart)).await.unwrap();
    }
    blocking(async { sqlx::query("TRUNCATE event").execute(&pool).await.unwrap() });
    // The cached state says full. The command decides again on the empty log.
    assert_eq!(log.store.decide(&Add::to(&cart)).await.unwrap(), Position(1));
    assert_eq!(log.store.decide(&Add::to(&cart)).await.unwrap(), Position(2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_read_reads_only_what_came_after_the_cached_state() {
    let log = TestLog::<DomainEvent>::create().await;
    let store = EventStore::<DomainEvent>::new(log.database.options(), StoreSettings::default());
    let (cart, pool) = (Shopping::new(), log.store.pool().clone());
    let count = async |store: &EventStore<DomainEvent>| {
        let (state, at) = store.read(Offset { cart_id: cart.cart_id, items: 0 }).await.unwrap();
        (state.items, at)
    };
    log.append(cart.with_items(2)).await;
    assert_eq!(count(&store).await, (3, Position(3)));
    // No event until here can be decoded any more.
    sqlx::query("UPDATE event SET payload = ''").execute(&pool).await.unwrap();
    assert_eq!(count(&store).await, (3, Position(3)));
    log.append([cart.added(2)]).await;
    assert_eq!(count(&store).await, (4, Position(4)), "another process's event");
    assert_eq!(
        store.read_at(Offset { cart_id: cart.cart_id, items: 0 }, Position(0)).await.unwrap().0.items,
        0,
        "the past is no cached state"
    );
    // Another log: the cached states are not its.
    sqlx::query("TRUNCATE event").execute(&pool).await.unwrap();
    assert_eq!(count(&store).await, (0, Position(0)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_command_on_a_cached_state_is_one_call() {
    let log = TestLog::<DomainEvent>::create().await;
    // The server counts calls on connections that are opened from here on.
    let counting = log.database.options().options([("track_functions", "pl")]);
    let store = EventStore::<DomainEvent>::new(counting, StoreSettings::default());
    let cart = Shopping::new();
    for _ in 0..50 {
        store.decide(&Always(Add::to(&cart))).await.unwrap();
    }
    store.close().await;
    test_support::eventually("the server has counted", || async { (appends(&log).await == 50).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_command_reads_nothing_and_a_conflict_brings_what_it_missed() {
    let log = TestLog::<DomainEvent>::create().await;
    // A role that cannot call this function cannot read. Appending still works, because it runs as the owner.
    sqlx::query("REVOKE EXECUTE ON FUNCTION read_by_cart_id FROM cartlog_commands").execute(log.store.pool()).await.unwrap();
    let [store, other] =
        [(); 2].map(|()| EventStore::<DomainEvent>::new(log.database.options_as("cartlog_commands"), StoreSettings::default()));
    let (cart, decided) = (Shopping::new(), AtomicUsize::new(0));
    let add = async |store: &EventStore<DomainEvent>| {
        decided.store(0, Ordering::SeqCst);
        let at = store.decide(&Counted(Always(Add::to(&cart)), &decided)).await.unwrap();
        (at, decided.load(Ordering::SeqCst))
    };
    assert_eq!(add(&store).await, (Position(1), 1), "a new cart");
    assert_eq!(add(&store).await, (Position(2), 1), "a cached cart");
    assert_eq!(add(&other).await, (Position(3), 2), "new to this process, which missed both");
    assert_eq!(add(&store).await, (Position(4), 2), "cached, but the other process's event was missed");
    // A refusal does read.
    let refused = format!("{:?}", store.decide(&Emptied(Add::to(&cart))).await.unwrap_err());
    assert!(refused.contains("permission denied for function read_by_cart_id"), "{refused}");
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(InventoryStream)]
struct Stock {
    #[id]
    product_id: ProductId,
    inventory: Option<Inventory>,
}

impl State for Stock {
    const NEWEST_SUFFICES: bool = true;
    fn mutate(&mut self, event: InventoryStream, _: Position) {
        let InventoryStream::InventoryChanged { inventory, .. } = event;
        self.inventory = Some(inventory);
    }
}

/// Adds an item of a product, on what its inventory is.
struct AddInStock(Always, ProductId);

impl Decision for AddInStock {
    type Event = DomainEvent;
    type StateQuery = (Room, Stock);
    type Error = usize;
    fn state_query(&self) -> (Room, Stock) {
        (self.0.state_query(), Stock { product_id: self.1, inventory: None })
    }
    fn process(&self, (room, _): &(Room, Stock)) -> Result<Decided<DomainEvent>, usize> {
        self.0.process(room)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_thousand_adds_of_a_product_succeed_while_its_stock_changes() {
    let log = TestLog::<DomainEvent>::create().await;
    let product = Shopping::new();
    let changes = Arc::new(AtomicUsize::new(0));
    let changing = {
        let (store, product_id, changes) = (log.store.clone(), product.product(0), changes.clone());
        tokio::spawn(async move {
            loop {
                let inventory = 1 + i64::try_from(changes.fetch_add(1, Ordering::SeqCst)).unwrap() % 1_000;
                let changed = DomainEvent::InventoryChanged { product_id, inventory: Inventory::try_from(inventory).unwrap() };
                store.decide(&Clear(changed)).await.unwrap();
            }
        })
    };
    test_support::eventually("it changes", || async { (changes.load(Ordering::SeqCst) > 3).then_some(()) }).await;
    let mut adding = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (store, add) = (log.store.clone(), AddInStock(Always(Add::to(&Shopping::new())), product.product(0)));
        adding.spawn(async move { store.decide(&add).await });
    }
    while let Some(added) = adding.join_next().await {
        added.unwrap().unwrap();
    }
    changing.abort();
}
