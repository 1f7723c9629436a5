//! The events of a history, and the states that its decisions fold.
//!
//! The ids have the names of the log's columns, but nothing here is a cart. A state only identifies exactly which events it has folded. So
//! the checker sees a decision that was made on anything else.
#![allow(missing_docs, reason = "the derives make public items without docs")]

use disintegrate::{Event, StateQuery};
use event_store::{Position, State};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identifies a command of a history. With the seed it determines the whole command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CommandId {
    /// The process.
    pub process: u32,
    /// The task of the process.
    pub task: u32,
    /// The number of the command in the task.
    pub number: u32,
}

/// The append that wrote an event. Its first event also contains what the decision saw. So the log alone tells whether the condition held,
/// even if the process died before it recorded the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    pub command: CommandId,
    /// The event's number in the append, from 0.
    pub n: usize,
    /// How many events the append has.
    pub of: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saw: Vec<Saw>,
}

/// The events of a history.
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
    /// Some are large.
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
    /// An event without an id.
    Noted { by: By },
}

/// The fields that states take from an event of any stream.
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
    /// Returns the append that wrote the event.
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

/// Makes an id of a number. The column says what kind of id it is.
pub(crate) fn id(number: u32) -> Uuid {
    Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0000 | u128::from(number))
}

fn number(id: Uuid) -> u32 {
    let [.., a, b, c, d] = *id.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Identifies the events that a state has folded: their number, the last position, and a digest over all of them in order.
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

    /// If the newest event suffices, the others leave no trace.
    fn only(&mut self, salt: u8, at: i64, name: &str, by: &By) {
        *self = Self { count: 1, last: at, digest: digest(0, salt, at, name, by) };
    }
}

/// Computes FNV-1a, which is the same in every build, unlike the standard library's hasher.
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

/// Identifies a state: its type and ids, and the salt of its digest. The salt is a part of the initial value that is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    pub of: Of,
    pub salt: u8,
}

/// The type and the ids of a state.
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
    /// Returns whether the state folds an event. Written by hand, because the store's own matching is under test.
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

    /// Folds an event.
    pub(crate) fn fold(&self, folded: &mut Folded, at: i64, event: &Happened) {
        if self.wants(event) {
            match self.of {
                Of::NewestOfCart(_) | Of::NewestCount(_) => folded.only(self.salt, at, event.name(), event.by()),
                _ => folded.fold(self.salt, at, event.name(), event.by()),
            }
        }
    }
}

/// Lists what a decision sees.
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
            /// Makes states differ in size.
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
