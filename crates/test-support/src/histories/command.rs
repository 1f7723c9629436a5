//! Commands of a history. A seed makes them, and they decide only on what they see.

use std::sync::{Mutex, PoisonError};

use event_store::{DecideError, Decided, Decision, Dependent, EventStore, Position, States, StoreError, View};

use super::{
    domain::{
        By, CommandId, Folded, Happened, Key, Look, NewestCount, NewestOfCart, Of, OfCart, OfCartAndItem, OfCartAndProduct, OfItem,
        OfNotes, OfProduct, Saw, id,
    },
    record::Outcome,
};

/// The process number of the one that appends without a condition, like a translator.
pub const TRANSLATOR: u32 = u32::MAX;

/// The states that a command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// No states.
    Nothing,
    Cart,
    CartAndItem,
    /// The states of Add Item.
    CartAndCount,
    /// The states of Submit Cart.
    CartThenCounts,
    Products,
    /// States with one id, with two, and with none.
    Wide,
    /// The newest event of a cart names a product and another cart.
    NewestThenOthers,
    /// Three stages.
    CartThenCountThenItems,
}

const SHAPES: [Shape; 8] = [
    Shape::Cart,
    Shape::CartAndItem,
    Shape::CartAndCount,
    Shape::CartThenCounts,
    Shape::Products,
    Shape::Wide,
    Shape::NewestThenOthers,
    Shape::CartThenCountThenItems,
];

/// Tasks of each process that share carts and products. Every further task has its own, except the hot ones. If all tasks waited for each
/// other, a process would never have many appends at once.
const TOGETHER: u32 = 6;

/// A command.
#[derive(Debug, Clone)]
pub struct Spec {
    id: CommandId,
    shape: Shape,
    cart: u32,
    item: u32,
    product: u32,
    salt: u8,
    seed: u64,
}

/// The decision of a command on what it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decides {
    /// These events happen.
    Events(Vec<Happened>),
    /// The command was done before, at this position.
    AlreadyDone(i64),
    /// There is nothing to do.
    Nothing,
    /// The command is refused.
    Refused,
}

/// Random numbers that are the same on every machine (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound.max(1))).unwrap_or_default()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The ids that commands use: the same for a while, then others.
fn named(folded: &Folded, from: u32) -> u32 {
    from + u32::try_from(folded.count / 3 % 4).unwrap_or_default()
}

impl Spec {
    /// Makes a command of a history. Its carts and products change slowly with its number. So states are new, then cached, then
    /// evicted. Some stay hot all the time.
    pub fn of(seed: u64, id: CommandId) -> Self {
        let mut chance = Chance(mix(seed ^ mix(u64::from(id.process) << 32 | u64::from(id.task)) ^ mix(u64::from(id.number))));
        let era = id.number / 8;
        // A translator writes mostly about hot ids. Their states become larger than one answer of the log.
        let hot = |one_in: u32| if id.process == TRANSLATOR { 2 } else { one_in };
        let apart = if id.task < TOGETHER || id.process == TRANSLATOR { 0 } else { 10_000 * (1_000 * id.process + id.task) };
        let mut near = |hot_one_in: u32, others: u32| {
            let hot_one_in = if apart == 0 { hot_one_in } else { 4 * hot_one_in };
            if chance.one_in(hot(hot_one_in)) { 0 } else { apart + 1 + era * 2 + chance.below(others) }
        };
        let (cart, item, product) = (near(8, 4), near(12, 6), near(6, 4));
        let shape = match chance.below(20) {
            _ if id.process == TRANSLATOR => Shape::Nothing,
            0 => Shape::Nothing,
            n => SHAPES.get(n as usize % SHAPES.len()).copied().unwrap_or(Shape::Cart),
        };
        Self { id, shape, cart, item, product, salt: u8::from(chance.one_in(3)), seed: chance.next() }
    }

    /// Returns what the command sees, stage by stage. `see` returns what a state has folded.
    pub(crate) fn boundary(&self, mut see: impl FnMut(Key) -> Folded) -> Vec<Saw> {
        let (cart, item, product, salt) = (self.cart, self.item, self.product, self.salt);
        let mut saw = vec![];
        let mut look = |of: Of| {
            let key = Key { of, salt };
            let folded = see(key);
            saw.push(Saw { key, folded });
            folded
        };
        match self.shape {
            Shape::Nothing => {}
            Shape::Cart => {
                look(Of::Cart(cart));
            }
            Shape::CartAndItem => {
                look(Of::CartAndItem(cart, item));
            }
            Shape::CartAndCount => {
                look(Of::Cart(cart));
                look(Of::NewestCount(product));
            }
            Shape::CartThenCounts => {
                let seen = look(Of::Cart(cart));
                for product in counts(&seen, cart) {
                    look(Of::NewestCount(product));
                }
            }
            Shape::Products => {
                look(Of::Product(product));
                look(Of::Product(product + 1));
            }
            Shape::Wide => {
                look(Of::CartAndProduct(cart, product));
                look(Of::Item(item));
                look(Of::Notes);
            }
            Shape::NewestThenOthers => {
                let seen = look(Of::NewestOfCart(cart));
                let (product, other) = others(&seen, cart);
                look(Of::Product(product));
                look(Of::Cart(other));
            }
            Shape::CartThenCountThenItems => {
                let of_cart = look(Of::Cart(cart));
                let count = look(Of::NewestCount(named(&of_cart, cart)));
                for item in items(&of_cart, &count, cart) {
                    look(Of::CartAndItem(cart, item));
                }
            }
        }
        saw
    }

    /// Decides on what was seen: at random, but always the same on the same.
    pub fn decide(&self, saw: &[Saw]) -> Decides {
        let mut chance = Chance(saw.iter().fold(self.seed, |seed, saw| mix(seed ^ saw.folded.digest)));
        // A translator and an unconditional command always write.
        if self.shape != Shape::Nothing {
            match chance.below(20) {
                0..4 => return Decides::Refused,
                4..6 => return Decides::Nothing,
                6 => return Decides::AlreadyDone(saw.first().map_or(0, |saw| saw.folded.last)),
                7 => return Decides::Events(vec![]),
                _ => {}
            }
        }
        let of = 1 + chance.below(3) as usize;
        let events = (0..of).map(|n| {
            let by = By { command: self.id, n, of, saw: if n == 0 { saw.to_vec() } else { vec![] } };
            let elsewhere = chance.below(6);
            let shift = |at: u32, near: u32| if elsewhere == at { near.saturating_sub(1) } else { near };
            let (cart_id, item_id, product_id) = (id(shift(0, self.cart)), id(shift(1, self.item)), id(shift(2, self.product)));
            match chance.below(30) {
                0..5 => Happened::Opened { cart_id, by },
                5..14 => Happened::Put { cart_id, item_id, product_id, by },
                14..20 => Happened::Taken { cart_id, item_id, by },
                20..23 => {
                    let text = "word ".repeat(if chance.one_in(10) { 1_000 } else { chance.below(20) as usize });
                    Happened::Described { cart_id, text, by }
                }
                23..29 => Happened::Counted { product_id, by },
                _ => Happened::Noted { by },
            }
        });
        Decides::Events(events.collect())
    }

    /// Runs the command. Returns its outcome, and how often it decided to write events.
    pub async fn run(&self, store: &EventStore<Happened>) -> (Outcome, u32) {
        let (cart, item, product, salt) = (self.cart, self.item, self.product, self.salt);
        let of_cart = OfCart::new(cart, salt);
        match self.shape {
            Shape::Nothing => self.run_on(store, ()).await,
            Shape::Cart => self.run_on(store, of_cart).await,
            Shape::CartAndItem => self.run_on(store, OfCartAndItem::new(cart, item, salt)).await,
            Shape::CartAndCount => self.run_on(store, (of_cart, NewestCount::new(product, salt))).await,
            Shape::CartThenCounts => {
                let names = |seen: &OfCart| match looked(seen).as_slice() {
                    [Saw { key: Key { of: Of::Cart(cart), salt }, folded }] => {
                        counts(folded, *cart).into_iter().map(|product| NewestCount::new(product, *salt)).collect()
                    }
                    _ => vec![],
                };
                self.run_on(store, Dependent::new(of_cart, names)).await
            }
            Shape::Products => self.run_on(store, vec![OfProduct::new(product, salt), OfProduct::new(product + 1, salt)]).await,
            Shape::Wide => {
                let states = (OfCartAndProduct::new(cart, product, salt), OfItem::new(item, salt), OfNotes::new(salt));
                self.run_on(store, states).await
            }
            Shape::NewestThenOthers => {
                let names = |seen: &NewestOfCart| match looked(seen).as_slice() {
                    [Saw { key: Key { of: Of::NewestOfCart(cart), salt }, folded }] => {
                        let (product, other) = others(folded, *cart);
                        (OfProduct::new(product, *salt), OfCart::new(other, *salt))
                    }
                    saw => unreachable!("one state was looked at: {saw:?}"),
                };
                self.run_on(store, Dependent::new(NewestOfCart::new(cart, salt), names)).await
            }
            Shape::CartThenCountThenItems => {
                let first = |seen: &OfCart| match looked(seen).as_slice() {
                    [Saw { key: Key { of: Of::Cart(cart), salt }, folded }] => NewestCount::new(named(folded, *cart), *salt),
                    saw => unreachable!("one state was looked at: {saw:?}"),
                };
                let second = |seen: &(OfCart, NewestCount)| match looked(seen).as_slice() {
                    [Saw { key: Key { of: Of::Cart(cart), salt }, folded }, count] => {
                        items(folded, &count.folded, *cart).into_iter().map(|item| OfCartAndItem::new(*cart, item, *salt)).collect()
                    }
                    _ => vec![],
                };
                self.run_on(store, Dependent::new(Dependent::new(of_cart, first), second)).await
            }
        }
    }

    async fn run_on<Q>(&self, store: &EventStore<Happened>, states: Q) -> (Outcome, u32)
    where
        Q: States<Happened>,
        Q::View: Look,
    {
        let asked = Asked { spec: self, states, last: Mutex::new(Last::default()) };
        let answer = store.decide(&asked).await;
        let last = asked.last.into_inner().unwrap_or_else(PoisonError::into_inner);
        let outcome = match (answer, last.decided) {
            (Ok(at), Some(Decides::Events(events))) if !events.is_empty() => Outcome::Written { at: at.0 },
            (Ok(at), Some(Decides::AlreadyDone(_))) => Outcome::AlreadyDone { at: at.0, saw: last.saw },
            (Ok(at), _) => Outcome::Nothing { at: at.0, saw: last.saw },
            (Err(DecideError::Refused(saw)), _) => Outcome::Refused { saw },
            (Err(DecideError::Store(error)), _) => match &error {
                // These say that nothing was done.
                StoreError::Unavailable(_) | StoreError::NoAnswer(_) | StoreError::Busy => Outcome::Undone { error: error.to_string() },
                StoreError::OutcomeUnknown | StoreError::Closed => Outcome::Unknown { error: error.to_string() },
                _ => Outcome::Fault { error: format!("{error:?}") },
            },
        };
        (outcome, last.happens)
    }
}

/// Returns the products whose counts a cart names.
fn counts(cart: &Folded, from: u32) -> Vec<u32> {
    let first = named(cart, from);
    if cart.count.is_multiple_of(5) { vec![first] } else { vec![first, first + 1] }
}

/// Returns the product and the other cart that the newest event of a cart names.
fn others(newest: &Folded, cart: u32) -> (u32, u32) {
    let n = u32::try_from(newest.digest % 3).unwrap_or_default();
    (cart + n, cart + 1 + n)
}

/// Returns the items that a cart and a count name together.
fn items(cart: &Folded, count: &Folded, from: u32) -> Vec<u32> {
    let n = u32::try_from(count.digest % 4).unwrap_or_default();
    (0..n).map(|n| named(cart, from) + n).collect()
}

fn looked(seen: &impl Look) -> Vec<Saw> {
    let mut saw = vec![];
    seen.look(&mut saw);
    saw
}

/// A command while it decides. It remembers what it saw last.
struct Asked<'a, Q> {
    spec: &'a Spec,
    states: Q,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    saw: Vec<Saw>,
    decided: Option<Decides>,
    happens: u32,
}

impl<Q> Decision for Asked<'_, Q>
where
    Q: States<Happened>,
    Q::View: Look,
{
    type Event = Happened;
    type StateQuery = Q;
    type Error = Vec<Saw>;

    fn state_query(&self) -> Q {
        self.states.clone()
    }

    fn process(&self, state: &View<Self>) -> Result<Decided<Happened>, Vec<Saw>> {
        let saw = looked(state);
        let decided = self.spec.decide(&saw);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.happens += u32::from(matches!(&decided, Decides::Events(events) if !events.is_empty()));
        last.saw.clone_from(&saw);
        last.decided = Some(decided.clone());
        match decided {
            Decides::Events(events) => Ok(Decided::Events(events)),
            Decides::AlreadyDone(at) => Ok(Decided::AlreadyDone(Position(at))),
            Decides::Nothing => Ok(Decided::Nothing),
            Decides::Refused => Err(saw),
        }
    }
}
