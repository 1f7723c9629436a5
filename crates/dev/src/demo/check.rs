//! The comparison of the day's result with the log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;

use rust_decimal::Decimal;

use embedded::error::Error;
use shop::catalogue::Catalogue;
use shop::ledger::Entries;
use shop::model::{Cart, Model, sum};
use shop::published::{PublishedCart, Received};
use uuid::Uuid;

/// The table at the end.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    events: BTreeMap<String, u64>,
    refusals: BTreeMap<String, u64>,
    messages_again: u64,
    requests_again: BTreeMap<String, u64>,
    rows: Vec<Check>,
    surprises: Vec<String>,
}

#[derive(Debug)]
struct Check {
    what: &'static str,
    expected: String,
    found: String,
    holds: bool,
}

/// The results of the day, apart from the log.
#[derive(Debug)]
pub(crate) struct Outcome<'a> {
    pub(crate) catalogue: &'a Catalogue,
    /// The number of inventories that the suppliers sent.
    pub(crate) inventories_sent: usize,
    pub(crate) answered: &'a Entries,
    pub(crate) received: &'a Received,
    pub(crate) lost: Lost,
    /// The requests that shoppers sent again because an answer asked for it, by its error code.
    pub(crate) requests_again: BTreeMap<String, u64>,
}

/// The number of lost answers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lost {
    /// Answers may be lost, because processes are killed.
    Expected(u64),
    /// No answer may be lost.
    Unexpected(u64),
}

impl Checks {
    pub(crate) fn of(model: &Model, outcome: &Outcome<'_>) -> Self {
        let Outcome { catalogue, inventories_sent, answered, received, lost, requests_again } = outcome;
        let mut checks = Self {
            events: model.events.clone(),
            refusals: answered.refusals.clone(),
            messages_again: received.repeated,
            requests_again: requests_again.clone(),
            ..Self::default()
        };
        // A cart that was submitted before the day may be published during it.
        let of_today: BTreeSet<Uuid> = model.submissions.values().map(|submission| submission.message.cart_id).collect();
        let messages: BTreeMap<&str, &PublishedCart> =
            received.carts.iter().filter(|(_, cart)| of_today.contains(&cart.cart_id)).map(|(id, cart)| (id.as_str(), cart)).collect();

        checks.equal("inventories sent, and in the log", inventories_sent, heard(model, catalogue));
        let shoppers_carts = || model.carts.iter().filter(|(cart, _)| answered.carts.contains(cart)).map(|(_, cart)| cart);
        let total = |count: fn(&Cart) -> u64| shoppers_carts().map(count).sum::<u64>();
        checks.equal("items the shoppers added, and in the log", answered.added, total(|cart| cart.added));
        let removed = answered.removed..=answered.removed + answered.perhaps_removed;
        checks.within("items the shoppers removed, and in the log", &removed, total(|cart| cart.removed));
        let cleared = answered.cleared..=answered.cleared + answered.perhaps_cleared;
        checks.within("carts the shoppers cleared, and in the log", &cleared, total(|cart| cart.cleared));
        let submitted = total(|cart| u64::from(cart.submitted_at.is_some()));
        checks.equal("carts the shoppers submitted, and in the log", answered.submitted, submitted);

        let most = model.carts.values().map(|cart| cart.most_items).max().unwrap_or_default();
        checks.note("the most items a cart ever held", "at most 3", most, most <= 3);
        checks.equal("events that break a rule of the shop", 0, model.faults.len());
        let unfinished = model.unfinished();
        checks.equal("items not archived, and carts not published", 0, unfinished.len());

        checks.equal("carts submitted, and different messages read", model.submissions.len(), messages.len());
        let differ = model.submissions.values().filter(|due| messages.get(due.ce_id.as_str()) != Some(&&due.message));
        checks.equal("messages that are missing or differ from the log", 0, differ.count());
        let decimal = |text: &str| text.parse::<Decimal>().unwrap_or_default();
        let logged: Decimal = model.submissions.values().map(|submission| decimal(&submission.message.total_price)).sum();
        let totals: Decimal = messages.values().map(|message| decimal(&message.total_price)).sum();
        let lines: Decimal = messages.values().filter_map(|message| sum(&message.ordered_product)).sum();
        checks.equal("turnover in the log, and in the messages' totals", format!("{logged:.2}"), format!("{totals:.2}"));
        checks.equal("turnover in the log, and in the messages' lines", format!("{logged:.2}"), format!("{lines:.2}"));

        let surprises = answered.surprises.iter().chain(&received.unreadable);
        checks.equal("faults and surprises", 0, surprises.clone().count());
        checks.surprises = surprises.chain(&model.faults).chain(&unfinished).cloned().collect();
        match lost {
            Lost::Expected(lost) => checks.note("answers that were lost, and asked for again", "any", lost, true),
            Lost::Unexpected(lost) => checks.equal("answers that were lost", 0, lost),
        }
        checks
    }

    /// Fails if a comparison fails.
    ///
    /// # Errors
    /// The comparisons that fail.
    pub(crate) fn verdict(&self) -> Result<(), Error> {
        let broken: Vec<String> =
            self.rows.iter().filter(|row| !row.holds).map(|row| format!("{}: {} and {}", row.what, row.expected, row.found)).collect();
        if broken.is_empty() {
            return Ok(());
        }
        Err(Error::Refused(format!("the result differs from the log (the services' own logs may say why): {}", broken.join("; "))))
    }

    fn equal<A: Display, B: Display>(&mut self, what: &'static str, expected: A, found: B) {
        let (expected, found) = (expected.to_string(), found.to_string());
        let holds = expected == found;
        self.rows.push(Check { what, expected, found, holds });
    }

    fn within(&mut self, what: &'static str, expected: &RangeInclusive<u64>, found: u64) {
        let (least, most) = (expected.start(), expected.end());
        let words = if least == most { least.to_string() } else { format!("{least} to {most}") };
        self.note(what, &words, found, expected.contains(&found));
    }

    fn note(&mut self, what: &'static str, expected: &str, found: impl Display, holds: bool) {
        self.rows.push(Check { what, expected: expected.to_owned(), found: found.to_string(), holds });
    }
}

/// The number of inventories of the shop's products in the log.
fn heard(model: &Model, catalogue: &Catalogue) -> usize {
    let own = catalogue.all().iter().filter_map(|product| model.inventories.get(&product.id));
    own.map(Vec::len).sum()
}

impl Display for Checks {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  Events of the day")?;
        for (event_type, count) in &self.events {
            writeln!(f, "    {event_type:<48} {count:>12}")?;
        }
        writeln!(f, "\n  Refusals by the domain")?;
        for (code, count) in &self.refusals {
            writeln!(f, "    {code:<48} {count:>12}")?;
        }
        if !self.requests_again.is_empty() {
            writeln!(f, "\n  Requests that were sent again, as the answer asked")?;
            for (code, count) in &self.requests_again {
                writeln!(f, "    {code:<48} {count:>12}")?;
            }
        }
        if self.messages_again > 0 {
            writeln!(f, "\n  Messages sent again with the same ce_id: {}", self.messages_again)?;
        }
        writeln!(f, "\n  Compared with the log")?;
        for Check { what, expected, found, holds } in &self.rows {
            let verdict = if *holds { "ok" } else { "WRONG" };
            writeln!(f, "    {what:<48} {expected:>12} {found:>12}  {verdict}")?;
        }
        for surprise in self.surprises.iter().take(10) {
            writeln!(f, "    {surprise}")?;
        }
        Ok(())
    }
}
