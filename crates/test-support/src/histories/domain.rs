//! What happens in a history, and the states that its decisions fold.
//!
//! The ids are named as the log's columns are; nothing here means a cart. A state is of no use but to tell exactly which events it has
//! folded, so that a decision made on anything else is seen.
#![allow(missing_docs, reason = "the derives make public items without docs")]

use disintegrate::{Event, StateQuery};
use event_store::{Position, State};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Which command of a history: with the seed, it says all about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CommandId {
    /// Of which process.
    pub process: u32,
    /// Of which of its tasks.
    pub task: u32,
    /// Which of the task's.
    pub number: u32,
}

/// Which append an event came with. The first event of an append also says what its decision saw, so that the log itself tells
/// whether its condition held, also where nobody lived to record the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    pub command: CommandId,
    /// Its number among the append's events, from 0.
    pub n: usize,
    /// How many events the append has.
    pub of: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saw: Vec<Saw>,
}

/// Everything that happens.
#[derive(Debug, Clone, PartialEq, Eq, Event, Serialize, Deserialize)]
#[stream(CartStream, [Opened, Put, Taken, Described])]
#[stream(NewestCartStream, [Opened, Taken])]
#[stream(ItemStream, [Put, Taken])]
#[stream(ProductStream, [Put, Counted])]
#[stream(CountStream, [Counted])]
#[stream(CartAndProductStream, [Opened, Put, Counted])]
#[stream(NoteStream, [Noted])]
pub enum Happened {
    Opened {
        #[id]
        cart_id: Uuid,
        by: By,
    },
    Put {
        #[id]
        cart_id: Uuid,
        #[id]
        item_id: Uuid,
        #[id]
        product_id: Uuid,
        by: By,
    },
    Taken {
        #[id]
        cart_id: Uuid,
        #[id]
        item_id: Uuid,
        by: By,
    },
    /// Large now and then.
    Described {
        #[id]
        cart_id: Uuid,
        text: String,
        by: By,
    },
    Counted {
        #[id]
        product_id: Uuid,
        by: By,
    },
    /// Carries no id.
    Noted { by: By },
}

/// What states take from an event, whatever its stream.
trait Told {
    fn by(&self) -> &By;
    fn text(&self) -> Option<&str>;
}

macro_rules! told {
    ($stream:ident, $($event:ident)|*) => {
        impl Told for $stream {
            fn by(&self) -> &By {
                match self {
                    $(Self::$event { by, .. })|* => by,
                }
            }
            fn text(&self) -> Option<&str> {
                None
            }
        }
    };
    (texts $stream:ident, $($event:ident)|*) => {
        impl Told for $stream {
            fn by(&self) -> &By {
                match self {
                    $(Self::$event { by, .. })|* => by,
                }
            }
            fn text(&self) -> Option<&str> {
                match self {
                    Self::Described { text, .. } => Some(text),
                    _ => None,
                }
            }
        }
    };
}
told!(texts Happened, Opened | Put | Taken | Described | Counted | Noted);
told!(texts CartStream, Opened | Put | Taken | Described);
told!(NewestCartStream, Opened | Taken);
told!(ItemStream, Put | Taken);
told!(ProductStream, Put | Counted);
told!(CountStream, Counted);
told!(CartAndProductStream, Opened | Put | Counted);
told!(NoteStream, Noted);

impl Happened {
    /// Which append it came with.
    pub fn by(&self) -> &By {
        Told::by(self)
    }

    fn cart(&self) -> Option<u32> {
        match self {
            Self::Opened { cart_id, .. } | Self::Put { cart_id, .. } | Self::Taken { cart_id, .. } | Self::Described { cart_id, .. } => {
                Some(number(*cart_id))
            }
            Self::Counted { .. } | Self::Noted { .. } => None,
        }
    }

    fn item(&self) -> Option<u32> {
        match self {
            Self::Put { item_id, .. } | Self::Taken { item_id, .. } => Some(number(*item_id)),
            _ => None,
        }
    }

    fn product(&self) -> Option<u32> {
        match self {
            Self::Put { product_id, .. } | Self::Counted { product_id, .. } => Some(number(*product_id)),
            _ => None,
        }
    }
}

/// Ids are numbers; the column tells what of.
pub(crate) fn id(number: u32) -> Uuid {
    Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0000 | u128::from(number))
}

fn number(id: Uuid) -> u32 {
    let [.., a, b, c, d] = *id.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Exactly which events a state has folded: how many, the last one's position, and a digest over all of them in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Folded {
    pub count: u64,
    pub last: i64,
    pub digest: u64,
}

impl Folded {
    fn fold(&mut self, salt: u8, at: i64, name: &str, by: &By) {
        *self = Self { count: self.count + 1, last: at, digest: digest(self.digest, salt, at, name, by) };
    }

    /// Where the newest event suffices, the others leave no trace.
    fn only(&mut self, salt: u8, at: i64, name: &str, by: &By) {
        *self = Self { count: 1, last: at, digest: digest(0, salt, at, name, by) };
    }
}

/// FNV-1a: the same in every build, unlike the standard library's hasher.
fn digest(before: u64, salt: u8, at: i64, name: &str, by: &By) -> u64 {
    let CommandId { process, task, number } = by.command;
    before
        .to_be_bytes()
        .into_iter()
        .chain([salt])
        .chain(at.to_be_bytes())
        .chain(name.bytes())
        .chain([process, task, number].into_iter().flat_map(u32::to_be_bytes))
        .chain((by.n as u64).to_be_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Which state: of what, and the salt it digests with, a part of its initial value that is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    pub of: Of,
    pub salt: u8,
}

/// What a state is of: its type and its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Of {
    Cart(u32),
    NewestOfCart(u32),
    CartAndItem(u32, u32),
    Item(u32),
    Product(u32),
    NewestCount(u32),
    CartAndProduct(u32, u32),
    Notes,
}

/// A state as a decision saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saw {
    pub key: Key,
    pub folded: Folded,
}

impl Key {
    /// Whether its state folds an event. Written out by hand: what the store makes of a state's query is what is checked.
    fn wants(&self, event: &Happened) -> bool {
        match self.of {
            Of::Cart(cart) => event.cart() == Some(cart),
            Of::NewestOfCart(cart) => matches!(event, Happened::Opened { .. } | Happened::Taken { .. }) && event.cart() == Some(cart),
            Of::CartAndItem(cart, item) => event.cart() == Some(cart) && event.item() == Some(item),
            Of::Item(item) => event.item() == Some(item),
            Of::Product(product) => event.product() == Some(product),
            Of::NewestCount(product) => matches!(event, Happened::Counted { .. }) && event.product() == Some(product),
            // Every id that both carry is equal.
            Of::CartAndProduct(cart, product) => match event {
                Happened::Opened { .. } => event.cart() == Some(cart),
                Happened::Put { .. } => event.cart() == Some(cart) && event.product() == Some(product),
                Happened::Counted { .. } => event.product() == Some(product),
                _ => false,
            },
            Of::Notes => matches!(event, Happened::Noted { .. }),
        }
    }

    /// Takes an event into what its state has folded.
    pub(crate) fn fold(&self, folded: &mut Folded, at: i64, event: &Happened) {
        if self.wants(event) {
            match self.of {
                Of::NewestOfCart(_) | Of::NewestCount(_) => folded.only(self.salt, at, event.name(), event.by()),
                _ => folded.fold(self.salt, at, event.name(), event.by()),
            }
        }
    }
}

/// What a decision sees, as a list.
pub(crate) trait Look {
    fn look(&self, saw: &mut Vec<Saw>);
}

macro_rules! state {
    ($name:ident, $stream:ident, { $($id:ident),* }, $of:expr, $newest:literal) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
        #[state_query($stream)]
        pub(crate) struct $name {
            $(#[id] $id: Uuid,)*
            salt: u8,
            folded: Folded,
            /// Weight, so that states are of different sizes.
            kept: Vec<String>,
        }

        impl $name {
            pub(crate) fn new($($id: u32,)* salt: u8) -> Self {
                Self { $($id: id($id),)* salt, folded: Folded::default(), kept: vec![] }
            }
        }

        impl State for $name {
            const NEWEST_SUFFICES: bool = $newest;

            fn mutate(&mut self, event: $stream, at: Position) {
                if Self::NEWEST_SUFFICES {
                    self.folded.only(self.salt, at.0, event.name(), event.by());
                } else {
                    self.folded.fold(self.salt, at.0, event.name(), event.by());
                }
                if let Some(text) = event.text()
                    && self.kept.len() < 20
                {
                    self.kept.push(text.to_owned());
                }
            }
        }

        impl Look for $name {
            fn look(&self, saw: &mut Vec<Saw>) {
                let of: fn(&Self) -> Of = $of;
                saw.push(Saw { key: Key { of: of(self), salt: self.salt }, folded: self.folded });
            }
        }
    };
}
state!(OfCart, CartStream, { cart_id }, |s| Of::Cart(number(s.cart_id)), false);
state!(NewestOfCart, NewestCartStream, { cart_id }, |s| Of::NewestOfCart(number(s.cart_id)), true);
state!(OfCartAndItem, ItemStream, { cart_id, item_id }, |s| Of::CartAndItem(number(s.cart_id), number(s.item_id)), false);
state!(OfItem, ItemStream, { item_id }, |s| Of::Item(number(s.item_id)), false);
state!(OfProduct, ProductStream, { product_id }, |s| Of::Product(number(s.product_id)), false);
state!(NewestCount, CountStream, { product_id }, |s| Of::NewestCount(number(s.product_id)), true);
state!(
    OfCartAndProduct,
    CartAndProductStream,
    { cart_id, product_id },
    |s| Of::CartAndProduct(number(s.cart_id), number(s.product_id)),
    false
);
state!(OfNotes, NoteStream, {}, |_| Of::Notes, false);

impl Look for () {
    fn look(&self, _: &mut Vec<Saw>) {}
}

impl<T: Look> Look for Vec<T> {
    fn look(&self, saw: &mut Vec<Saw>) {
        self.iter().for_each(|one| one.look(saw));
    }
}

impl<A: Look, B: Look> Look for (A, B) {
    fn look(&self, saw: &mut Vec<Saw>) {
        self.0.look(saw);
        self.1.look(saw);
    }
}

impl<A: Look, B: Look, C: Look> Look for (A, B, C) {
    fn look(&self, saw: &mut Vec<Saw>) {
        self.0.look(saw);
        self.1.look(saw);
        self.2.look(saw);
    }
}
