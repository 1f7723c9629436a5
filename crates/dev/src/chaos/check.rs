//! What there is, compared with what the log says there must be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

use sqlx::PgPool;

use embedded::error::{Context, Error};
use shop::fold::{self, Event, Expected, Table};
use shop::load::Entries;
use shop::published::Received;

/// A table, and how each of its rows reads: a key, and the rest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) name: &'static str,
    /// The projection whose build in service it belongs to; none where it has no builds.
    projection: Option<&'static str>,
    key: &'static str,
    rest: &'static str,
}

const ITEM: &str = "concat(cart_id, '/', item_id)";

pub(super) const TABLES: [Source; 6] = [
    Source { name: "cart_items_cart", projection: Some("cart_items"), key: "cart_id::text", rest: "''" },
    Source {
        name: "cart_items_item",
        projection: Some("cart_items"),
        key: ITEM,
        rest: "concat_ws('|', product_id, description, image, price, fingerprint, position)",
    },
    Source {
        name: "carts_with_products",
        projection: Some("carts_with_products"),
        key: ITEM,
        rest: "concat_ws('|', product_id, position)",
    },
    Source { name: "inventories", projection: Some("inventories"), key: "product_id::text", rest: "concat_ws('|', inventory, position)" },
    Source { name: "archive_item_open_item", projection: Some("archive_item"), key: ITEM, rest: "concat_ws('|', product_id, position)" },
    Source { name: "todo", projection: None, key: "concat(automation, ' ', key)", rest: "concat_ws('|', position, status)" },
];

impl Source {
    /// Its name with the schema that it stands in now.
    pub(super) async fn qualified(&self, pool: &PgPool) -> Result<String, Error> {
        let schema: String = match self.projection {
            None => "public".to_owned(),
            Some(projection) => sqlx::query_scalar("SELECT build FROM projection WHERE name = $1 AND status = 'serving'")
                .bind(projection)
                .fetch_one(pool)
                .await
                .context(|| format!("find the build of {projection} that is in service"))?,
        };
        Ok(format!("{schema}.{}", self.name))
    }

    async fn read(&self, pool: &PgPool) -> Result<Vec<(String, String)>, Error> {
        let sql = format!("SELECT {}, {} FROM {}", self.key, self.rest, self.qualified(pool).await?);
        sqlx::query_as(&sql).fetch_all(pool).await.context(|| format!("read {}", self.name))
    }
}

/// All that is compared.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    pub(super) log: Vec<Event>,
    /// The tables' rows, as they were read.
    pub(super) tables: BTreeMap<&'static str, Vec<(String, String)>>,
    /// What waits for an operator.
    pub(super) waiting: Vec<String>,
    pub(super) received: Received,
    pub(super) told: Entries,
}

/// Keys that are parked, and segments that stand before an event.
const WAITING: &str = "SELECT concat(name, ' ', build, ' has parked ', key, ' before position ', position, ': ', error) FROM parked_key
    UNION ALL
    SELECT concat(name, ' ', build, ' has stopped segment ', segment, ' before position ', blocked_at, ': ', blocked_error)
    FROM checkpoint WHERE blocked_at IS NOT NULL";

impl Evidence {
    pub(super) async fn collect(pool: &PgPool, received: Received, told: Entries) -> Result<Self, Error> {
        let mut tables = BTreeMap::new();
        for table in TABLES {
            tables.insert(table.name, table.read(pool).await?);
        }
        let waiting = sqlx::query_scalar(WAITING).fetch_all(pool).await.context(|| "read what is parked".to_owned())?;
        Ok(Self { log: fold::read(pool).await?, tables, waiting, received, told })
    }

    /// What is not as the log says, beginning with the log itself.
    pub(super) fn differences(&self, expected: &Expected) -> Vec<String> {
        let mut found: Vec<String> = expected.faults.iter().map(|fault| format!("the log: {fault}")).collect();
        // A table that is empty is compared, too.
        let empty = Table::new();
        for name in TABLES.map(|table| table.name) {
            let expected = expected.tables.get(name).unwrap_or(&empty);
            found.extend(of_table(name, expected, self.tables.get(name).map_or(&[], Vec::as_slice)));
        }
        found.extend(self.waiting.iter().cloned());
        found.extend(self.of_messages(expected));
        found.extend(self.of_answers(expected));
        found
    }

    fn of_messages(&self, expected: &Expected) -> Vec<String> {
        let mut found: Vec<String> = self.received.unreadable.iter().map(|text| format!("published-carts: {text}")).collect();
        let (due, there) = (&expected.messages, &self.received.carts);
        let ids: BTreeSet<i64> = due.keys().chain(there.keys()).copied().collect();
        for id in ids {
            found.extend(differs(&format!("published-carts, ce_id {id}"), due.get(&id), there.get(&id)));
        }
        found
    }

    fn of_answers(&self, expected: &Expected) -> Vec<String> {
        let told = &self.told;
        let mut found: Vec<String> = told.surprises.iter().map(|text| format!("HTTP: {text}")).collect();
        for (position, cart) in &told.acknowledged {
            let there = expected.carts.get(position);
            found.extend(differs(&format!("the command acknowledged with position {position}"), Some(cart), there));
        }
        for unseen in told.unseen.iter().filter(|unseen| !expected.left.contains(&(unseen.cart, unseen.item))) {
            found.push(format!("HTTP: item {} of cart {} was not shown: {}", unseen.item, unseen.cart, unseen.request));
        }
        found.extend(of_topic("inventories", &told.inventories, &expected.inventories));
        found.extend(of_topic("price-changes", &told.prices, &expected.prices));
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

/// A product's messages are in the log in their order, and each once.
fn of_topic<K: Ord + Display, V: PartialEq + Debug>(topic: &str, sent: &BTreeMap<K, Vec<V>>, there: &BTreeMap<K, Vec<V>>) -> Vec<String> {
    let products: BTreeSet<&K> = sent.keys().chain(there.keys()).collect();
    let all =
        products.into_iter().filter_map(|product| differs(&format!("{topic} of product {product}"), sent.get(product), there.get(product)));
    all.collect()
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
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use shop::load::Unseen;
    use shop::published::{Line, PublishedCart};

    struct Day {
        evidence: Evidence,
        carts: [Uuid; 2],
        items: [Uuid; 3],
        product: Uuid,
    }

    fn event(position: i64, event_type: &str, fields: Value) -> Event {
        Event { position, event_type: event_type.to_owned(), payload: json!({ event_type: fields }).to_string().into_bytes() }
    }

    fn rows<const N: usize>(rows: [(&str, &str); N]) -> Vec<(String, String)> {
        rows.map(|(key, row)| (key.to_owned(), row.to_owned())).into()
    }

    /// A cart with an item that is archived and one that was added after, and a cart that is submitted and published.
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
        let log = (1..).zip(log).map(|(position, (event_type, fields))| event(position, event_type, fields)).collect();
        let open = rows([(&format!("{left}/{second}"), &format!("{product}|5"))]);
        let tables = [
            ("inventories", rows([(&product.to_string(), "3|1")])),
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
        let received = Received { carts: [(9, message)].into(), repeated: 1, unreadable: vec![] };
        let told = Entries {
            acknowledged: [(3, left), (9, sold)].into(),
            unseen: vec![Unseen { cart: left, item: first, request: "GET".into() }],
            inventories: [(product, vec![3])].into(),
            prices: [(product, vec!["2.00".into()])].into(),
            ..Entries::default()
        };
        let evidence = Evidence { log, tables: tables.into(), waiting: vec![], received, told };
        Day { evidence, carts: [left, sold], items: [first, second, third], product }
    }

    fn differences(evidence: &Evidence) -> Vec<String> {
        evidence.differences(&Expected::fold(&evidence.log).unwrap())
    }

    #[test]
    fn what_is_as_the_log_says_is_no_difference() {
        assert_eq!(differences(&day().evidence), Vec::<String>::new());
    }

    /// Plants one difference, and holds that it is the one that is found.
    fn planted(what: &str, plant: impl FnOnce(&mut Day)) {
        let mut day = day();
        plant(&mut day);
        let found = differences(&day.evidence);
        assert!(matches!(found.as_slice(), [one] if one.contains(what)), "{what}: {found:#?}");
    }

    #[test]
    fn a_row_that_is_missing_differs_is_too_many_or_doubled_is_found() {
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
    fn a_todo_that_is_open_or_failed_is_found() {
        for status in ["open", "failed"] {
            planted("todo, ", |day| day.evidence.tables.get_mut("todo").unwrap()[0].1 = format!("4|{status}"));
        }
    }

    #[test]
    fn an_item_archived_twice_or_for_no_reason_is_found() {
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
    fn an_item_that_was_not_archived_is_found() {
        let mut day = day();
        let change = json!({"product_id": day.product, "old_price": "2.00", "new_price": "3.00"});
        day.evidence.log.push(event(11, "PriceChanged", change));
        let found = differences(&day.evidence);
        assert!(found.iter().any(|found| found.contains("should have been archived")), "{found:#?}");
        assert!(found.iter().any(|found| found.contains("todo, archive_item") && found.contains("is missing")), "{found:#?}");
        assert!(found.iter().any(|found| found.contains("price-changes of product")), "{found:#?}");
    }

    #[test]
    fn a_cart_published_twice_or_not_at_all_or_given_up_is_found() {
        planted("or published before", |day| day.evidence.log.push(event(11, "CartPublished", json!({"cart_id": day.carts[1]}))));
        planted("there is no CartPublished", |day| drop(day.evidence.log.pop()));
        planted("CartPublicationFailed", |day| {
            day.evidence.log.push(event(11, "CartPublicationFailed", json!({"cart_id": day.carts[1], "reason": "away"})));
        });
    }

    #[test]
    fn a_message_that_is_missing_differs_or_is_too_many_is_found() {
        planted("published-carts, ce_id 9: is missing", |day| day.evidence.received.carts.clear());
        planted("published-carts, ce_id 9: should be", |day| {
            day.evidence.received.carts.get_mut(&9).unwrap().total_price = "1.51".into();
        });
        planted("published-carts, ce_id 8: should not be there", |day| {
            let message = day.evidence.received.carts[&9].clone();
            day.evidence.received.carts.insert(8, message);
        });
        planted("two different", |day| day.evidence.received.unreadable.push("two different messages".into()));
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_is_found() {
        planted("acknowledged with position 11", |day| day.evidence.told.acknowledged.extend([(11, day.carts[0])]));
        planted("acknowledged with position 3", |day| day.evidence.told.acknowledged.extend([(3, day.carts[1])]));
        planted("inventories of product", |day| day.evidence.told.inventories.get_mut(&day.product).unwrap().push(4));
        planted("price-changes of product", |day| drop(day.evidence.told.prices.remove(&day.product)));
    }

    #[test]
    fn an_answer_without_what_it_waited_for_is_found() {
        planted("was not shown", |day| day.evidence.told.unseen[0].item = day.items[1]);
        planted("HTTP: ", |day| day.evidence.told.surprises.push("500".into()));
    }

    #[test]
    fn what_waits_for_an_operator_is_found() {
        planted("has parked", |day| day.evidence.waiting.push("cart_items has parked a cart".into()));
    }

    #[test]
    fn a_log_with_a_gap_is_found() {
        let mut day = day();
        day.evidence.log.remove(4);
        assert!(differences(&day.evidence).iter().any(|found| found.contains("the log has position 6 there")));
    }
}
