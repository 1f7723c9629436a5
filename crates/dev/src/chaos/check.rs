//! The comparison of tables, messages and answers with the model of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

use embedded::error::{Context, Error};
use shop::history::{Answer, Entries, Sent};
use shop::model::{self, Event, Model};
use shop::published::Received;
use sqlx::PgPool;
use uuid::Uuid;

use super::commands::{self, Loss};
use super::tables::{self, TABLES, Table};

/// Everything that is compared.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    pub(super) log: Vec<Event>,
    /// The rows of each table.
    pub(super) tables: BTreeMap<&'static str, Vec<(String, String)>>,
    /// Parked keys and blocked segments.
    pub(super) waiting: Vec<String>,
    pub(super) received: Received,
    pub(super) history: Entries,
    pub(super) losses: Vec<Loss>,
}

/// Reads parked keys and blocked segments.
const WAITING: &str = "SELECT concat(name, ' ', build, ' has parked ', key, ' before position ', position, ': ', error) FROM parked_key
    UNION ALL
    SELECT concat(name, ' ', build, ' is blocked in segment ', segment, ' before position ', blocked_at, ': ', blocked_error)
    FROM checkpoint WHERE blocked_at IS NOT NULL";

impl Evidence {
    pub(super) async fn collect(pool: &PgPool, received: Received, history: Entries, losses: Vec<Loss>) -> Result<Self, Error> {
        let mut tables = BTreeMap::new();
        for table in TABLES {
            tables.insert(table.name, table.read(pool).await?);
        }
        let waiting = sqlx::query_scalar(WAITING).fetch_all(pool).await.context(|| "read what is parked".to_owned())?;
        Ok(Self { log: model::read(pool, 0).await?, tables, waiting, received, history, losses })
    }

    /// Lists the differences, beginning with the faults in the log itself.
    pub(super) fn differences(&self, model: &Model) -> Vec<String> {
        let mut found: Vec<String> = model.faults.iter().chain(&model.unfinished()).map(|fault| format!("the log: {fault}")).collect();
        let optional = tables::optional(model);
        for (name, mut expected) in tables::expected(model) {
            let mut there = self.tables.get(name).cloned().unwrap_or_default();
            if name == "todo" {
                there.retain(|(key, row)| !tables::is_portion(key, row));
                let keys: BTreeSet<&String> = there.iter().map(|(key, _)| key).collect();
                expected.retain(|key, _| keys.contains(key) || !optional.contains(key));
            }
            found.extend(of_table(name, &expected, &there));
        }
        found.extend(self.waiting.iter().cloned());
        found.extend(self.of_messages(model));
        found.extend(self.of_answers(model));
        found
    }

    /// The number of acknowledged commands that a restore lost.
    pub(super) fn lost(&self) -> u64 {
        commands::lost(&self.log, &self.history.commands)
    }

    /// Each submitted cart is on the topic, under one id.
    fn of_messages(&self, model: &Model) -> Vec<String> {
        let mut found: Vec<String> = self.received.unreadable.iter().map(|text| format!("published-carts: {text}")).collect();
        let due: BTreeMap<&String, _> = model.submissions.values().map(|submission| (&submission.ce_id, &submission.message)).collect();
        let there: BTreeMap<&String, _> = self.received.carts.iter().collect();
        for id in due.keys().chain(there.keys()).copied().collect::<BTreeSet<_>>() {
            let (due, there) = (due.get(id), there.get(id));
            // A cart may have been published before a restore lost its submission.
            let was_lost = || there.is_some_and(|cart| self.submission_may_be_lost(cart.cart_id));
            if due.is_some() || !was_lost() {
                found.extend(differs(&format!("published-carts, ce_id {id}"), due, there));
            }
        }
        found
    }

    fn submission_may_be_lost(&self, cart: Uuid) -> bool {
        let submissions = self.history.commands.iter().filter(|command| command.route == "submitcart" && command.cart == cart);
        submissions.flat_map(|command| self.losses.iter().map(move |loss| (command, loss))).any(|(command, loss)| {
            command.sent <= loss.at
                && match command.answer {
                    Answer::Done(position) => position > loss.kept,
                    Answer::Unknown => true,
                    Answer::NotDone(_) => false,
                }
        })
    }

    fn of_answers(&self, model: &Model) -> Vec<String> {
        let history = &self.history;
        let mut found: Vec<String> = history.surprises.iter().map(|text| format!("HTTP: {text}")).collect();
        found.extend(commands::differences(&self.log, &history.commands, &self.losses));
        found.extend(commands::unseen(&self.log, &history.unseen, &model.left));
        found.extend(of_topic("inventories", &history.inventories, &model.inventories));
        found.extend(of_topic("price-changes", &history.prices, &model.prices));
        found
    }
}

fn of_table(name: &str, expected: &Table, there: &[(String, String)]) -> Vec<String> {
    let mut found = vec![];
    let mut rows = Table::new();
    for (key, row) in there {
        if rows.insert(key.clone(), row.clone()).is_some() {
            found.push(format!("{name}, {key}: is there twice"));
        }
    }
    let keys: BTreeSet<&String> = expected.keys().chain(rows.keys()).collect();
    for key in keys {
        found.extend(differs(&format!("{name}, {key}"), expected.get(key), rows.get(key)));
    }
    found
}

/// Compares each product's messages. Those that the broker acknowledged must be in the log once, in order. The others may be there.
fn of_topic<K: Ord + Display, V: PartialEq + Debug>(
    topic: &str,
    sent: &BTreeMap<K, Vec<Sent<V>>>,
    there: &BTreeMap<K, Vec<V>>,
) -> Vec<String> {
    let products: BTreeSet<&K> = sent.keys().chain(there.keys()).collect();
    let none = (vec![], vec![]);
    let both = products.into_iter().map(|product| (product, sent.get(product).unwrap_or(&none.0), there.get(product).unwrap_or(&none.1)));
    let wrong = both.filter(|(_, sent, there)| !follow(sent, there));
    wrong.map(|(product, sent, there)| format!("{topic} of product {product}: should be {sent:?}, and is {there:?}")).collect()
}

/// Tells whether the values in the log are those that were sent, perhaps without some that were not acknowledged. Before the messages of a
/// topic that was created again under running translators, a part of them may be there, too.
fn follow<V: PartialEq>(sent: &[Sent<V>], there: &[V]) -> bool {
    // The numbers of values of the log that the messages so far can account for.
    let mut reached: BTreeSet<usize> = [0].into();
    for messages in sent.chunk_by(|one, next| one.remade == next.remade) {
        let before = reached.clone();
        let translated_before = if messages[0].remade.is_some() { messages.len() } else { 0 };
        for first in 0..translated_before {
            let mut part = before.clone();
            for message in &messages[first..] {
                part = after(message, &part, there);
                reached.extend(&part);
            }
        }
        for message in messages {
            reached = after(message, &reached, there);
        }
    }
    reached.contains(&there.len())
}

/// Returns the numbers of values of the log that can be accounted for after one more message.
fn after<V: PartialEq>(Sent { value, acknowledged, .. }: &Sent<V>, reached: &BTreeSet<usize>, there: &[V]) -> BTreeSet<usize> {
    let taken = reached.iter().filter(|count| there.get(**count) == Some(value)).map(|count| count + 1);
    let skipped = reached.iter().copied().filter(|_| !acknowledged);
    taken.chain(skipped).collect()
}

fn differs<T: PartialEq + Debug>(what: &str, expected: Option<&T>, there: Option<&T>) -> Option<String> {
    match (expected, there) {
        (Some(expected), Some(there)) if expected == there => None,
        (Some(expected), Some(there)) => Some(format!("{what}: should be {expected:?}, and is {there:?}")),
        (Some(expected), None) => Some(format!("{what}: is missing, and should be {expected:?}")),
        (None, Some(there)) => Some(format!("{what}: should not be there, and is {there:?}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};
    use shop::history::{Command, Unseen};
    use shop::published::{Line, PublishedCart};

    use super::*;

    struct Day {
        evidence: Evidence,
        carts: [Uuid; 2],
        items: [Uuid; 3],
        product: Uuid,
    }

    fn event(position: i64, event_type: &str, fields: Value) -> Event {
        Event {
            position,
            event_type: event_type.to_owned(),
            payload: json!({ event_type: fields }).to_string().into_bytes(),
            append_id: format!("append-{position}"),
            trace: format!("trace-{position}"),
        }
    }

    fn rows<const N: usize>(rows: [(&str, &str); N]) -> Vec<(String, String)> {
        rows.map(|(key, row)| (key.to_owned(), row.to_owned())).into()
    }

    /// A cart with an archived item and a later one, and a cart that is submitted and published.
    fn day() -> Day {
        let ([product, left, sold], [first, second, third]) = ([(); 3].map(|()| Uuid::now_v7()), [(); 3].map(|()| Uuid::now_v7()));
        let added = |cart: Uuid, item: Uuid| {
            json!({"cart_id": cart, "item_id": item, "product_id": product, "description": "A pot", "image": "i", "price": "1.50",
                "device_fingerprint": "f"})
        };
        let ordered = json!([{"product_id": product, "price": "1.50"}]);
        let log = [
            ("InventoryChanged", json!({"product_id": product, "inventory": 3})),
            ("CartCreated", json!({"cart_id": left})),
            ("ItemAdded", added(left, first)),
            ("PriceChanged", json!({"product_id": product, "old_price": "1.50", "new_price": "2.00"})),
            ("ItemAdded", added(left, second)),
            ("ItemArchived", json!({"cart_id": left, "item_id": first, "price_changed_at": 4})),
            ("CartCreated", json!({"cart_id": sold})),
            ("ItemAdded", added(sold, third)),
            ("CartSubmitted", json!({"cart_id": sold, "ordered_products": ordered, "total_price": "1.50"})),
            ("CartPublished", json!({"cart_id": sold})),
        ];
        let mut log: Vec<Event> = (1..).zip(log).map(|(position, (event_type, fields))| event(position, event_type, fields)).collect();
        // One append.
        for (first, second) in [(1, 2), (6, 7)] {
            (log[first].append_id, log[first].trace) = (log[second].append_id.clone(), log[second].trace.clone());
        }
        let open = rows([(&format!("{left}/{second}"), &format!("{product}|5"))]);
        let tables = [
            ("inventories", rows([(&product.to_string(), "3|1")])),
            ("changed_prices", rows([(&product.to_string(), "1.50|2.00|4")])),
            ("cart_items_cart", rows([(&left.to_string(), ""), (&sold.to_string(), "")])),
            (
                "cart_items_item",
                rows([
                    (&format!("{left}/{second}"), &format!("{product}|A pot|i|1.50|f|5")),
                    (&format!("{sold}/{third}"), &format!("{product}|A pot|i|1.50|f|8")),
                ]),
            ),
            ("carts_with_products", open.clone()),
            ("archive_item_open_item", open),
            ("todo", rows([(&format!("archive_item {left}/{first}@4"), "4|done"), (&format!("publish_cart {sold}"), "9|done")])),
        ];
        let ordered_product = vec![Line { product_id: product, price: "1.50".into() }];
        let message = PublishedCart { cart_id: sold, ordered_product, total_price: "1.50".into() };
        let received = Received { carts: [("append-9".into(), message)].into(), repeated: 1, unreadable: vec![] };
        let done = |position: i64, cart| Command {
            route: if position == 9 { "submitcart".into() } else { "additem".into() },
            cart,
            trace: format!("trace-{position}"),
            sent: Instant::now(),
            answer: Answer::Done(position),
        };
        let history = Entries {
            commands: vec![done(3, left), done(5, left), done(8, sold), done(9, sold)],
            unseen: vec![Unseen { cart: left, item: first, request: "GET".into() }],
            inventories: [(product, vec![Sent { value: 3, acknowledged: true, remade: None }])].into(),
            prices: [(product, vec![Sent { value: "2.00".into(), acknowledged: true, remade: None }])].into(),
            ..Entries::default()
        };
        let evidence = Evidence { log, tables: tables.into(), waiting: vec![], received, history, losses: vec![] };
        Day { evidence, carts: [left, sold], items: [first, second, third], product }
    }

    fn differences(evidence: &Evidence) -> Vec<String> {
        evidence.differences(&Model::of(&evidence.log, 0).unwrap())
    }

    #[test]
    fn matching_evidence_has_no_difference() {
        assert_eq!(differences(&day().evidence), Vec::<String>::new());
    }

    /// Plants one difference, and checks that exactly this one is found.
    fn planted(what: &str, plant: impl FnOnce(&mut Day)) {
        let mut day = day();
        plant(&mut day);
        let found = differences(&day.evidence);
        assert!(matches!(found.as_slice(), [one] if one.contains(what)), "{what}: {found:#?}");
    }

    #[test]
    fn missing_wrong_extra_and_double_rows_are_found() {
        for table in TABLES.map(|table| table.name) {
            planted(&format!("{table}, "), |day| drop(day.evidence.tables.get_mut(table).unwrap().pop()));
            planted("and is \"wrong\"", |day| day.evidence.tables.get_mut(table).unwrap()[0].1 = "wrong".into());
            planted("should not be there", |day| day.evidence.tables.get_mut(table).unwrap().push(("new".into(), "row".into())));
            planted("is there twice", |day| {
                let rows = day.evidence.tables.get_mut(table).unwrap();
                rows.push(rows[0].clone());
            });
        }
    }

    #[test]
    fn open_and_failed_todos_are_found() {
        for status in ["open", "failed"] {
            planted("todo, ", |day| day.evidence.tables.get_mut("todo").unwrap()[0].1 = format!("4|{status}"));
        }
    }

    #[test]
    fn archiving_twice_or_without_cause_is_found() {
        planted("which is not in cart", |day| {
            let again = json!({"cart_id": day.carts[0], "item_id": day.items[0], "price_changed_at": 4});
            day.evidence.log.push(event(11, "ItemArchived", again));
        });
        // Added after the change.
        let mut day = day();
        let wrongly = json!({"cart_id": day.carts[0], "item_id": day.items[1], "price_changed_at": 4});
        day.evidence.log.push(event(11, "ItemArchived", wrongly));
        assert!(differences(&day.evidence).iter().any(|found| found.contains("which is no reason")));
    }

    #[test]
    fn missing_archiving_is_found() {
        let mut day = day();
        let change = json!({"product_id": day.product, "old_price": "2.00", "new_price": "3.00"});
        day.evidence.log.push(event(11, "PriceChanged", change));
        let found = differences(&day.evidence);
        assert!(found.iter().any(|found| found.contains("should have been archived")), "{found:#?}");
        assert!(found.iter().any(|found| found.contains("todo, archive_item") && found.contains("is missing")), "{found:#?}");
        assert!(found.iter().any(|found| found.contains("price-changes of product")), "{found:#?}");
    }

    #[test]
    fn todo_of_an_item_that_left_may_be_missing() {
        let mut day = day();
        let removed = json!({"cart_id": day.carts[0], "item_id": day.items[1]});
        let change = json!({"product_id": day.product, "old_price": "2.00", "new_price": "3.00"});
        day.evidence.log.extend([event(11, "PriceChanged", change), event(12, "ItemRemoved", removed)]);
        let found = differences(&day.evidence);
        assert!(!found.iter().any(|found| found.contains("todo, ")), "{found:#?}");
    }

    #[test]
    fn wrong_publications_are_found() {
        planted("or published before", |day| day.evidence.log.push(event(11, "CartPublished", json!({"cart_id": day.carts[1]}))));
        planted("there is no CartPublished", |day| drop(day.evidence.log.pop()));
        planted("CartPublicationFailed", |day| {
            day.evidence.log.push(event(11, "CartPublicationFailed", json!({"cart_id": day.carts[1], "reason": "away"})));
        });
    }

    #[test]
    fn missing_wrong_and_extra_messages_are_found() {
        planted("published-carts, ce_id append-9: is missing", |day| day.evidence.received.carts.clear());
        planted("published-carts, ce_id append-9: should be", |day| {
            day.evidence.received.carts.get_mut("append-9").unwrap().total_price = "1.51".into();
        });
        planted("published-carts, ce_id append-8: should not be there", |day| {
            let message = day.evidence.received.carts["append-9"].clone();
            day.evidence.received.carts.insert("append-8".into(), message);
        });
        planted("two different", |day| day.evidence.received.unreadable.push("two different messages".into()));
    }

    #[test]
    fn cart_may_be_published_before_a_restore_loses_it() {
        let published_twice = |kept| {
            let mut day = day();
            let message = day.evidence.received.carts["append-9"].clone();
            day.evidence.received.carts.insert("before".into(), message);
            // The shopper got no answer before the restore, and submitted again after it.
            let before = Command { answer: Answer::Done(9), trace: "lost".into(), ..day.evidence.history.commands[3].clone() };
            day.evidence.history.commands.insert(0, before);
            day.evidence.losses.push(Loss { at: Instant::now(), kept });
            differences(&day.evidence)
        };
        assert_eq!(published_twice(8), Vec::<String>::new());
        assert_eq!(published_twice(9).len(), 2, "the message, and the command");
    }

    #[test]
    fn lost_acknowledged_writes_are_found() {
        planted("is missing", |day| {
            let lost = Command { trace: "lost".into(), answer: Answer::Done(11), ..day.evidence.history.commands[0].clone() };
            day.evidence.history.commands.push(lost);
        });
        planted("inventories of product", |day| {
            let sent = Sent { value: 4, acknowledged: true, remade: None };
            day.evidence.history.inventories.get_mut(&day.product).unwrap().push(sent);
        });
        planted("price-changes of product", |day| drop(day.evidence.history.prices.remove(&day.product)));
    }

    #[test]
    fn messages_are_in_the_log_once_and_in_order() {
        let sent = |values: &[(u64, bool)]| -> Vec<Sent<u64>> {
            values.iter().map(|(value, acknowledged)| Sent { value: *value, acknowledged: *acknowledged, remade: None }).collect()
        };
        for (values, there, right) in [
            (vec![(1, true), (2, true)], vec![1, 2], true),
            (vec![(1, true), (2, true)], vec![2, 1], false),
            (vec![(1, true), (2, true)], vec![1, 2, 2], false),
            (vec![(1, true), (2, true)], vec![1], false),
            (vec![(1, true), (2, false), (3, true)], vec![1, 3], true),
            (vec![(1, true), (2, false), (3, true)], vec![1, 2, 3], true),
            (vec![(0, false), (0, true)], vec![0], true),
            (vec![(0, false), (0, true)], vec![0, 0, 0], false),
            (vec![], vec![1], false),
        ] {
            assert_eq!(follow(&sent(&values), &there), right, "{values:?} {there:?}");
        }
    }

    #[test]
    fn messages_of_a_recreated_topic_may_be_there_in_part() {
        let sent = |value: u64, remade| Sent { value, acknowledged: true, remade };
        let messages = [sent(1, None), sent(2, Some(7)), sent(3, Some(7)), sent(4, Some(7)), sent(5, None)];
        for (there, right) in [
            (vec![1, 2, 3, 4, 5], true),
            (vec![1, 4, 2, 3, 4, 5], true),
            (vec![1, 3, 4, 2, 3, 4, 5], true),
            (vec![1, 2, 3, 2, 3, 4, 5], true),
            (vec![1, 4, 5], false),
            (vec![1, 2, 3, 4, 4, 5], false),
            (vec![1, 3, 2, 3, 2, 3, 4, 5], false),
            (vec![1, 1, 2, 3, 4, 5], false),
            (vec![1, 2, 3, 4, 5, 2, 3, 4], false),
        ] {
            assert_eq!(follow(&messages, &there), right, "{there:?}");
        }
    }

    #[test]
    fn answers_without_the_awaited_item_are_found() {
        planted("was not shown", |day| day.evidence.history.unseen[0].item = day.items[1]);
        planted("HTTP: ", |day| day.evidence.history.surprises.push("500".into()));
    }

    #[test]
    fn parked_keys_are_found() {
        planted("has parked", |day| day.evidence.waiting.push("cart_items has parked a cart".into()));
    }

    #[test]
    fn gap_in_the_log_is_found() {
        let mut day = day();
        day.evidence.log.remove(4);
        assert!(differences(&day.evidence).iter().any(|found| found.contains("the log has position 6 there")));
    }
}
