//! One history of the clients: what each of them asked, when, and what it was answered. A checker compares it with the log.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

/// Records what clients do. They share it.
#[derive(Debug, Default)]
pub struct History {
    entries: Mutex<Entries>,
}

/// The records.
#[derive(Debug, Default, Clone)]
pub struct Entries {
    /// The commands, in the order of their answers.
    pub commands: Vec<Command>,
    /// Queries that did not show the item whose position they named. The item must have left its cart.
    pub unseen: Vec<Unseen>,
    /// The inventories that were sent to Kafka for each product, in order.
    pub inventories: BTreeMap<Uuid, Vec<Sent<u64>>>,
    /// The new prices that were sent to Kafka for each product, in order.
    pub prices: BTreeMap<Uuid, Vec<Sent<String>>>,
    /// The number of each answer.
    pub answers: BTreeMap<String, u64>,
    /// Answers that must not occur.
    pub surprises: Vec<String>,
}

/// A command, and its answer.
#[derive(Debug, Clone)]
pub struct Command {
    /// Its route, such as `additem`.
    pub route: String,
    /// Its cart.
    pub cart: Uuid,
    /// The trace that the client began for this request alone: 32 hexadecimal digits. The events of the command carry it.
    pub trace: String,
    /// When it was sent.
    pub sent: Instant,
    /// Its answer.
    pub answer: Answer,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done, and its last event is at this position.
    Done(i64),
    /// Nothing was written: a refusal by the domain, or a fault that excludes it. The text is status and code.
    NotDone(String),
    /// There was no answer, or one that does not tell.
    Unknown,
}

/// A message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent<T> {
    /// Its content.
    pub value: T,
    /// Whether the broker acknowledged it. Otherwise it may be on the topic or not.
    pub acknowledged: bool,
    /// A number if its topic had just been created again under running translators. Those may have translated a part of the messages with
    /// this number before an operator let them translate all.
    pub remade: Option<u32>,
}

/// An item that was not shown.
#[derive(Debug, Clone)]
pub struct Unseen {
    /// The item's cart.
    pub cart: Uuid,
    /// The item.
    pub item: Uuid,
    /// The request and its answer.
    pub request: String,
}

impl History {
    /// The records so far.
    #[must_use]
    pub fn entries(&self) -> Entries {
        self.lock().clone()
    }

    /// The number of commands that were done.
    #[must_use]
    pub fn done(&self) -> usize {
        self.lock().commands.iter().filter(|command| matches!(command.answer, Answer::Done(_))).count()
    }

    /// Counts the messages that a broker acknowledged and that nobody heard. `heard` is how often each product's values were.
    #[must_use]
    pub fn unheard(&self, heard: &HashMap<(Uuid, String), usize>) -> usize {
        let mut acknowledged: HashMap<(Uuid, String), usize> = HashMap::new();
        let entries = self.lock();
        let inventories = entries.inventories.iter().flat_map(|(product, sent)| sent.iter().map(move |sent| (product, text(sent))));
        let prices = entries.prices.iter().flat_map(|(product, sent)| sent.iter().map(move |sent| (product, text(sent))));
        for (product, value) in inventories.chain(prices).filter_map(|(product, value)| Some((*product, value?))) {
            *acknowledged.entry((product, value)).or_default() += 1;
        }
        acknowledged.iter().map(|(message, count)| count.saturating_sub(heard.get(message).copied().unwrap_or_default())).sum()
    }

    pub(crate) fn command(&self, command: Command) {
        self.lock().commands.push(command);
    }

    pub(crate) fn inventory(&self, product: Uuid, inventory: Sent<u64>) {
        self.lock().inventories.entry(product).or_default().push(inventory);
    }

    pub(crate) fn price(&self, product: Uuid, price: Sent<String>) {
        self.lock().prices.entry(product).or_default().push(price);
    }

    pub(crate) fn unseen(&self, unseen: Unseen) {
        self.lock().unseen.push(unseen);
    }

    pub(crate) fn surprise(&self, surprise: String) {
        self.lock().surprises.push(surprise);
    }

    pub(crate) fn answered(&self, what: &str, answer: impl Display) {
        *self.lock().answers.entry(format!("{what}: {answer}")).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(sent: &Sent<impl Display>) -> Option<String> {
    sent.acknowledged.then(|| sent.value.to_string())
}
