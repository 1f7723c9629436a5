//! Appends that the database refuses, whatever a service's role sends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use cart_events::{DomainEvent, examples::Shopping};
use disintegrate::{Event as _, IdentifierValue};
use sqlx::{Connection, PgConnection};
use test_support::TestLog;
use uuid::Uuid;

use crate::roles::{REFUSED, SERVICES, log, tried};

/// PostgreSQL's "invalid parameter value", with which `check_events` refuses an event.
const INVALID: &str = "22023";

const METADATA: &str = r#"{"append_id":"01980000-0000-7000-8000-00000000000a"}"#;

/// The event columns of an append, as SQL.
#[derive(Clone)]
struct Row {
    event_type: String,
    payload: String,
    metadata: String,
    ids: [Option<Uuid>; 3],
}

impl Row {
    /// An event as a service writes it.
    fn of(event: &DomainEvent) -> Self {
        let payload = serde_json::to_string(event).unwrap();
        Self { event_type: event.name().to_owned(), payload, metadata: METADATA.to_owned(), ids: ids(event) }
    }

    /// Calls both functions that append. Returns PostgreSQL's code if they refused it.
    async fn appended(&self, session: &mut PgConnection) -> Option<String> {
        let mut outcomes = vec![];
        for call in [
            "append_events('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{0}', ",
            "append_events_from_source('test', gen_random_uuid()::text, 0, NULL, 1, NULL, ",
        ] {
            let sql = format!("SELECT FROM {call} ARRAY[$1], ARRAY[convert_to($2, 'UTF8')], ARRAY[$3], ARRAY[$4], ARRAY[$5], ARRAY[$6])");
            let [cart_id, item_id, product_id] = self.ids;
            let query = sqlx::query(&sql).bind(&self.event_type).bind(&self.payload).bind(&self.metadata);
            let outcome = query.bind(cart_id).bind(item_id).bind(product_id).execute(&mut *session).await;
            outcomes.push(outcome.err().map(|error| error.as_database_error().unwrap().code().unwrap().into_owned()));
        }
        // Only the translator may call the second one.
        if outcomes[1].as_deref() != Some(REFUSED) {
            assert_eq!(outcomes[0], outcomes[1], "{self:?}");
        }
        outcomes.swap_remove(0)
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:.300} {:.300} {:?}", self.event_type, self.payload, self.metadata, self.ids)
    }
}

/// Each type of event as it is stored.
fn committed() -> impl Iterator<Item = DomainEvent> {
    include_str!("../../cart-events/events.jsonl").lines().map(|line| serde_json::from_str(line).unwrap())
}

/// Returns an event's cart_id, item_id and product_id.
fn ids(event: &DomainEvent) -> [Option<Uuid>; 3] {
    let ids = event.domain_ids();
    ["cart_id", "item_id", "product_id"].map(|name| {
        ids.iter().find(|(ident, _)| ident.into_inner() == name).map(|(_, value)| match value {
            IdentifierValue::Uuid(id) => *id,
            other => panic!("{name} is {other:?}"),
        })
    })
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn each_role_appends_its_own_types_only() {
    let (log, owner) = log().await;
    let own = |event_type: &str| match event_type {
        "CartCreated" | "ItemAdded" | "ItemRemoved" | "CartCleared" | "CartSubmitted" => "cartlog_commands",
        "InventoryChanged" | "PriceChanged" => "cartlog_translator",
        "ItemArchived" => "cartlog_projections",
        "CartPublished" | "CartPublicationFailed" => "cartlog_publisher",
        other => panic!("nobody appends {other}: add it here, and to event_types in a new migration"),
    };
    for role in SERVICES {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        for event in committed() {
            let refused = Row::of(&event).appended(&mut session).await;
            assert_eq!(refused.as_deref(), (own(event.name()) != role).then_some(REFUSED), "{role}: {event:?}");
        }
        let unheard = Row { event_type: "Unheard".into(), payload: r#"{"Unheard":{}}"#.into(), metadata: METADATA.into(), ids: [None; 3] };
        assert_eq!(unheard.appended(&mut session).await.as_deref(), Some(REFUSED), "{role}");
    }
    // A role of an administrator may append what the service may whose member it is.
    let role = format!("member_{}", log.database.options().get_database().unwrap());
    let create = format!("CREATE ROLE {role} LOGIN; GRANT EXECUTE ON FUNCTION append_events TO {role}");
    sqlx::raw_sql(&create).execute(&owner).await.unwrap();
    let event = Row::of(&Shopping::new().created());
    let mut session = PgConnection::connect_with(&log.database.options_as(&role)).await.unwrap();
    assert_eq!(event.appended(&mut session).await.as_deref(), Some(REFUSED), "a member of nothing");
    sqlx::query(&format!("GRANT cartlog_commands TO {role}")).execute(&owner).await.unwrap();
    assert_eq!(event.appended(&mut session).await, None);
    let of_another = committed().find(|event| event.name() == "CartPublished").unwrap();
    assert_eq!(Row::of(&of_another).appended(&mut session).await.as_deref(), Some(REFUSED));
}

/// Every type of event can be appended as the services write it: its ids come first, and `event_ids` knows them.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn every_committed_event_can_be_appended() {
    let log = TestLog::<DomainEvent>::create().await;
    log.append(committed()).await;
    assert_eq!(log.store.head().await.unwrap().0, committed().count() as i64);
    let owner = log.database.pool().await;
    for event in committed() {
        let known: Option<Vec<bool>> = sqlx::query_scalar("SELECT event_ids($1)").bind(event.name()).fetch_one(&owner).await.unwrap();
        assert_eq!(known, Some(ids(&event).map(|id| id.is_some()).to_vec()), "event_ids (0004_roles.sql): {}", event.name());
    }
}

/// An id that is missing from the row would hide the event from every condition.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_has_exactly_the_ids_of_its_type() {
    let (log, owner) = log().await;
    for role in SERVICES {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        for event in committed() {
            let whole = Row::of(&event);
            if whole.appended(&mut session).await.is_some() {
                continue;
            }
            for others in 1_u8..8 {
                // Takes ids out, and puts others in.
                let ids = std::array::from_fn(|n| if others & (1 << n) == 0 { whole.ids[n] } else { whole.ids[n].xor(Some(Uuid::nil())) });
                let row = Row { ids, ..whole.clone() };
                assert_eq!(row.appended(&mut session).await.as_deref(), Some(INVALID), "{row:?}");
            }
        }
    }
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&owner).await.unwrap();
    // The first event, each type once, and those of the translator twice.
    assert_eq!(written, 1 + committed().count() as i64 + 2);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_takes_no_payload_that_contradicts_its_row() {
    let (log, owner) = log().await;
    let cart = Shopping::new();
    let added = Row::of(&cart.added(0));
    let priced = Row::of(&committed().find(|event| event.name() == "PriceChanged").unwrap());
    for (role, whole, id, text) in
        [("cartlog_commands", added, "cart_id", "description"), ("cartlog_translator", priced, "product_id", "old_price")]
    {
        let mut session = PgConnection::connect_with(&log.database.options_as(role)).await.unwrap();
        let before: i64 = sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&owner).await.unwrap();
        let payload = |payload: String| Row { payload, ..whole.clone() };
        let (key, escaped) = (format!(r#""{id}":"#), format!(r#""{}":"#, id.replace('_', r"\u005f")));
        let first = format!(r#"{{"{}":{{"#, whole.event_type);
        let body = whole.payload.strip_prefix(&first).unwrap().strip_suffix("}}").unwrap();
        let other = format!(r#""{}""#, Uuid::nil());
        let padded = |bytes: usize| {
            whole.payload.replace(&format!(r#""{text}":""#), &format!(r#""{text}":"{}"#, "x".repeat(bytes - whole.payload.len())))
        };
        let metadata = |metadata: &str| Row { metadata: metadata.to_owned(), ..whole.clone() };
        let long = |bytes: usize| metadata(&format!("{METADATA}{}", " ".repeat(bytes - METADATA.len())));
        let ids = |ids| Row { ids, ..whole.clone() };
        let first_id = whole.ids[0].or(whole.ids[2]).unwrap().to_string();
        let append_id = "01980000-0000-7000-8000-00000000000a";
        for (what, row, code) in [
            ("as it is", whole.clone(), None),
            ("64 KiB", payload(padded(65_536)), None),
            ("more than 64 KiB", payload(padded(65_537)), Some(INVALID)),
            ("other ids", ids(whole.ids.map(|id| id.and(Some(Uuid::nil())))), Some(INVALID)),
            ("an id in capitals", payload(whole.payload.replace(&first_id, &first_id.to_uppercase())), Some(INVALID)),
            ("an escaped id only", payload(whole.payload.replacen(&key, &escaped, 1)), Some(INVALID)),
            ("an id twice", payload(format!("{first}{body},{key}{other}}}}}")), Some(INVALID)),
            ("an id twice, escaped", payload(format!("{first}{body},{escaped}{other}}}}}")), Some(INVALID)),
            ("another key twice", payload(format!(r#"{first}{body},"{text}":"1"}}}}"#)), Some(INVALID)),
            ("a key twice further down", payload(format!(r#"{first}{body},"more":[{{"a":1,"a":2}}]}}}}"#)), Some(INVALID)),
            ("a second type", payload(format!(r#"{first}{body}}},"CartCleared":{{"cart_id":{other}}}}}"#)), Some(INVALID)),
            ("the same type twice", payload(format!("{first}{body}}},{}}}}}", first[1..].to_owned() + body)), Some(INVALID)),
            ("another type's name", payload(whole.payload.replacen(&whole.event_type, "CartCleared", 1)), Some(INVALID)),
            ("a body that is no object", payload(format!(r#"{{"{}":[{{{body}}}]}}"#, whole.event_type)), Some(INVALID)),
            ("no end", payload(whole.payload[..whole.payload.len() - 1].to_owned()), Some(INVALID)),
            ("more behind it", payload(format!("{}}}", whole.payload)), Some(INVALID)),
            ("a space behind it", payload(format!("{} ", whole.payload)), Some(INVALID)),
            ("a NUL character", payload(format!(r#"{first}{body},"more":"\u0000"}}}}"#)), Some(INVALID)),
            ("half of a surrogate pair", payload(format!(r#"{first}{body},"more":"\ud800"}}}}"#)), Some(INVALID)),
            ("no number", payload(format!(r#"{first}{body},"more":NaN}}}}"#)), Some(INVALID)),
            ("nested without end", payload(format!("{first}{body},\"more\":{}", "[".repeat(60_000))), Some("54001")),
            ("no payload", payload(String::new()), Some(INVALID)),
            ("a type alone", payload(format!(r#"{{"{}":"#, whole.event_type)), Some(INVALID)),
            ("no metadata", metadata(""), Some(INVALID)),
            ("metadata without an append id", metadata("{}"), Some(INVALID)),
            ("metadata that is no JSON", metadata(&METADATA[..METADATA.len() - 1]), Some(INVALID)),
            ("metadata that is no object", metadata(&format!("[{METADATA}]")), Some(INVALID)),
            ("an append id that is none", metadata(&METADATA.replace('0', "z")), Some("22P02")),
            ("a longer append id", metadata(&METADATA.replace("\"}", "0\"}")), Some(INVALID)),
            ("an append id twice", metadata(&format!(r#"{{"append_id":"{append_id}","append_id":null}}"#)), Some(INVALID)),
            ("an append id twice, escaped", metadata(&format!(r#"{{"append_id":"{append_id}","append\u005fid":null}}"#)), Some(INVALID)),
            (
                "a NUL character in metadata",
                metadata(&format!(r#"{{"append_id":"{append_id}","correlation_id":"\u0000"}}"#)),
                Some(INVALID),
            ),
            ("a number without end in metadata", metadata(&format!(r#"{{"append_id":"{append_id}","more":1e1000000}}"#)), Some("22003")),
            ("8 KiB of metadata", long(8192), None),
            ("more than 8 KiB of metadata", long(8193), Some(INVALID)),
        ] {
            assert_eq!(row.appended(&mut session).await.as_deref(), code, "{what}: {row:?}");
        }
        let after: i64 = sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&owner).await.unwrap();
        assert_eq!(after - before, if role == "cartlog_translator" { 6 } else { 3 });
        // No UTF-8, which a text parameter cannot carry.
        let spoiled = format!(
            "SELECT FROM append_events('{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{0}}', ARRAY['{}'], ARRAY['\\xff'::bytea], ARRAY['{METADATA}'], '{{NULL}}', '{{NULL}}', ARRAY['{}'::uuid])",
            whole.event_type,
            Uuid::nil()
        );
        assert!(tried(&mut session, &spoiled).await.is_some_and(|code| code.starts_with("22")));
    }
}

/// `check_events` finds elements by their number, and the INSERT by their order. What differs between the two would pass unchecked.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_takes_no_arrays_of_another_shape() {
    let (log, owner) = log().await;
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_translator")).await.unwrap();
    let product = Uuid::now_v7();
    let payload = format!(r#"convert_to('{{"InventoryChanged":{{"product_id":"{product}","inventory":3}}}}', 'UTF8')"#);
    let query = [("integer", "0"), ("text", "'PriceChanged'"), ("bigint", "0"), ("boolean", "false"), ("uuid", "NULL"), ("uuid", "NULL")];
    let mut columns: Vec<(&str, String)> = query.map(|(of, element)| (of, element.to_owned())).to_vec();
    columns.push(("uuid", format!("'{product}'")));
    let conditions = columns.len();
    columns.extend([
        ("integer", "0".to_owned()),
        ("text", "'InventoryChanged'".to_owned()),
        ("bytea", payload),
        ("text", format!("'{METADATA}'")),
        ("uuid", "NULL".to_owned()),
        ("uuid", "NULL".to_owned()),
        ("uuid", format!("'{product}'")),
    ]);
    let whole: Vec<String> = columns.iter().map(|(of, element)| format!("ARRAY[{element}::{of}]")).collect();
    let calls = |arrays: &[String]| {
        [
            format!("SELECT FROM append_events({})", arrays.join(", ")),
            format!("SELECT FROM append_events_from_source('test', 'mine', 0, NULL, 1, NULL, {})", arrays[conditions + 1..].join(", ")),
        ]
    };
    for call in calls(&whole) {
        assert_eq!(tried(&mut session, &call).await, None, "{call}");
    }
    for (n, (of, element)) in columns.iter().enumerate() {
        let is_event = n >= conditions;
        let (element, is_null) = (format!("{element}::{of}"), element == "NULL");
        for (what, form, is_refused) in [
            ("two elements", format!("ARRAY[{element}, {element}]"), true),
            ("an element before the first", format!("array_fill({element}, ARRAY[2], ARRAY[0])"), true),
            ("no element", format!("'{{}}'::{of}[]"), true),
            ("no array", format!("NULL::{of}[]"), true),
            // Query items are read by their order, except the number of their append.
            ("begins at 0", format!("array_fill({element}, ARRAY[1], ARRAY[0])"), is_event || n == 0),
            ("two dimensions", format!("ARRAY[ARRAY[{element}]]"), is_event || n < 4),
            // Without its only id, a query item would read the log.
            ("a NULL", format!("ARRAY[NULL::{of}]"), !is_null && (is_event || n < 4 || n == conditions - 1)),
        ] {
            let mut arrays = whole.clone();
            arrays[n] = form;
            let [call, from_source] = calls(&arrays);
            let codes = [tried(&mut session, &call).await, tried(&mut session, &from_source).await];
            let is_error = |code: &Option<String>| code.as_deref().is_some_and(|code| ["22", "42", "0A"].contains(&&code[..2]));
            assert_eq!(is_error(&codes[0]), is_refused, "{what}: {call}: {codes:?}");
            assert_eq!(is_error(&codes[1]), is_refused && n > conditions, "{what}: {from_source}: {codes:?}");
        }
    }
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM event").fetch_one(&owner).await.unwrap();
    assert_eq!(written, 1);
}

/// PostgreSQL's "program limit exceeded".
const TOO_MUCH: &str = "54000";

/// All appends wait for a call, so what one call may ask has a bound.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_holds_the_lock_for_a_bounded_work_only() {
    let (log, owner) = log().await;
    let cart = Shopping::new();
    log.append([cart.created()]).await;
    let id = cart.cart_id.uuid();
    let query = |items: i32, types: &str, ids: [&str; 3]| {
        let [of, item, product] = ids.map(|id| format!("array_fill({id}::uuid, ARRAY[{items}])"));
        format!(
            "array_fill(0, ARRAY[{items}]), array_fill({types}::text, ARRAY[{items}]), array_fill(0::bigint, ARRAY[{items}]),
             array_fill(false, ARRAY[{items}]), {of}, {item}, {product}"
        )
    };
    let events = |number: i32, bytes: i32| {
        let row = Row::of(&cart.cleared());
        let payload = format!("convert_to(replace('{}', '}}}}', ',\"more\":\"' || repeat('x', {bytes}) || '\"}}}}'), 'UTF8')", row.payload);
        format!(
            "array_fill(0, ARRAY[{number}]), array_fill('{}'::text, ARRAY[{number}]), array_fill({payload}, ARRAY[{number}]),
             array_fill('{METADATA}'::text, ARRAY[{number}]), array_fill('{id}'::uuid, ARRAY[{number}]),
             array_fill(NULL::uuid, ARRAY[{number}]), array_fill(NULL::uuid, ARRAY[{number}])",
            row.event_type
        )
    };
    let none = "'{}', '{}', '{}', '{}', '{}', '{}', '{}'".to_owned();
    let of_cart = format!("'{id}'");
    let (of_cart, of_none) = ([of_cart.as_str(), "NULL", "NULL"], ["NULL", "NULL", "NULL"]);
    let unheard = "'Unheard'";
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_commands")).await.unwrap();
    for (what, conditions, appended, refused) in [
        ("many events", none.clone(), events(10_000, 1), None),
        ("too many events", none.clone(), events(10_001, 1), Some(TOO_MUCH)),
        ("too large events", none.clone(), events(1_100, 62_000), Some(TOO_MUCH)),
        ("many query items", query(10_000, unheard, of_cart), events(1, 1), None),
        ("too many query items", query(10_001, unheard, of_cart), events(1, 1), Some(TOO_MUCH)),
        ("too many types", query(10, "repeat('Unheard,', 60000)", of_cart), events(1, 1), Some(TOO_MUCH)),
        // It would read the log from its beginning.
        ("a condition without an id", query(1, unheard, of_none), events(1, 1), Some(REFUSED)),
    ] {
        let append = format!("SELECT FROM append_events({conditions}, {appended})");
        assert_eq!(tried(&mut session, &append).await.as_deref(), refused, "{what}");
    }
    // Behind a conflict, too.
    let conflict = format!(
        "SELECT FROM append_events('{{0,0}}', '{{CartCreated,Unheard}}', '{{0,0}}', '{{f,f}}', '{{{id},NULL}}', '{{NULL,NULL}}', '{{NULL,NULL}}', {})",
        events(1, 1)
    );
    assert_eq!(tried(&mut session, &conflict).await.as_deref(), Some(REFUSED));
    // The owner of a log may have decisions on all events of a type.
    let mut session = owner.acquire().await.unwrap();
    for append in [format!("SELECT FROM append_events({}, {})", query(1, unheard, of_none), events(1, 1)), conflict] {
        assert_eq!(tried(&mut session, &append).await, None);
    }
}

/// `ce_id` of a published cart is the id of the append that submitted it.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_cart_is_not_submitted_with_the_append_id_of_another_one() {
    let (log, _) = log().await;
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_commands")).await.unwrap();
    let submitted = |cart: &Shopping, append_id: &str| Row {
        metadata: METADATA.replace("01980000-0000-7000-8000-00000000000a", append_id),
        ..Row::of(&cart.submitted(0))
    };
    let (one, other) = (Shopping::new(), Shopping::new());
    let id = "01980000-0000-7000-8000-00000000000b";
    assert_eq!(submitted(&one, id).appended(&mut session).await, None);
    let again = submitted(&other, id).appended(&mut session).await;
    assert_eq!(again.as_deref(), Some("23505"));
    assert_eq!(submitted(&other, "01980000-0000-7000-8000-00000000000c").appended(&mut session).await, None);
    // An append has other events, too.
    assert_eq!(Row { metadata: submitted(&one, id).metadata, ..Row::of(&one.created()) }.appended(&mut session).await, None);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn a_stored_offset_moves_forwards_only() {
    let (log, _) = log().await;
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_translator")).await.unwrap();
    let append = |from: &str, to: &str, last: &str| {
        format!(
            "SELECT FROM append_events_from_source('test', 'mine', 0, {from}, {to}, {last}, '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}')"
        )
    };
    let long = format!(r#"jsonb_build_object('sha256', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, {}) n))"#, 300);
    for (from, to, last, code) in [
        ("NULL", "0", "NULL", None),
        ("NULL", "7", r#"'{"offset": 6}'"#, None),
        ("7", "7", "NULL", None),
        ("NULL", "-1", "NULL", Some(INVALID)),
        ("7", "6", "NULL", Some(INVALID)),
        ("NULL", "NULL", "NULL", Some(INVALID)),
        ("NULL", "7", long.as_str(), Some(INVALID)),
        ("NULL", "9223372036854775808", "NULL", Some("42883")),
    ] {
        assert_eq!(tried(&mut session, &append(from, to, last)).await.as_deref(), code, "{from} {to} {last}");
    }
}

/// A role that may create objects somewhere puts them before those that the functions of the log use.
#[tokio::test]
#[ignore = "needs PostgreSQL: cargo dev test"]
async fn an_append_uses_nothing_from_the_search_path_of_its_caller() {
    let (log, owner) = log().await;
    let cart = Shopping::new();
    log.append([cart.created(), cart.added(0)]).await;
    sqlx::query("CREATE SCHEMA mine AUTHORIZATION cartlog_commands").execute(&owner).await.unwrap();
    let mut session = PgConnection::connect_with(&log.database.options_as("cartlog_commands")).await.unwrap();
    let shadows = "
        CREATE FUNCTION mine.yes(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;
        CREATE FUNCTION mine.no(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN false;
        CREATE FUNCTION mine.yes(integer, integer) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;
        CREATE FUNCTION mine.no(bigint, bigint) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN false;
        CREATE FUNCTION mine.yes(text[], text[]) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;
        CREATE FUNCTION mine.yes(boolean[], boolean[]) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;
        CREATE OPERATOR mine.<> (FUNCTION = mine.no, LEFTARG = text, RIGHTARG = text);
        CREATE OPERATOR mine.~~ (FUNCTION = mine.yes, LEFTARG = text, RIGHTARG = text);
        CREATE OPERATOR mine.<= (FUNCTION = mine.yes, LEFTARG = integer, RIGHTARG = integer);
        CREATE OPERATOR mine.> (FUNCTION = mine.no, LEFTARG = bigint, RIGHTARG = bigint);
        CREATE OPERATOR mine.<@ (FUNCTION = mine.yes, LEFTARG = text[], RIGHTARG = text[]);
        CREATE OPERATOR mine.= (FUNCTION = mine.yes, LEFTARG = boolean[], RIGHTARG = boolean[]);
        CREATE FUNCTION mine.starts_with(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;
        CREATE FUNCTION mine.octet_length(bytea) RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1;
        CREATE FUNCTION mine.current_setting(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'read committed';
        CREATE FUNCTION mine.string_to_array(text, text) RETURNS text[] LANGUAGE sql IMMUTABLE RETURN '{}'::text[];
        CREATE FUNCTION mine.clock_timestamp() RETURNS timestamptz LANGUAGE sql IMMUTABLE RETURN 'infinity'::timestamptz;
        CREATE TABLE mine.event (LIKE public.event);
        CREATE TABLE mine.event_log (id uuid);
        GRANT USAGE ON SCHEMA mine TO PUBLIC;
        GRANT ALL ON ALL TABLES IN SCHEMA mine TO PUBLIC;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA mine TO PUBLIC;
        SET search_path = mine, pg_catalog, public";
    sqlx::raw_sql(shadows).execute(&mut session).await.unwrap();
    let starts: bool = sqlx::query_scalar("SELECT starts_with('a', 'b')").fetch_one(&mut session).await.unwrap();
    assert!(starts, "the session does not find its own function");
    // Another role's event, a foreign payload, and an id that is missing.
    let mut foreign = Row::of(&committed().find(|event| event.name() == "PriceChanged").unwrap());
    assert_eq!(foreign.appended(&mut session).await.as_deref(), Some(REFUSED));
    foreign.event_type = "ItemAdded".into();
    assert_eq!(foreign.appended(&mut session).await.as_deref(), Some(INVALID));
    assert_eq!(Row { ids: [None; 3], ..Row::of(&cart.added(1)) }.appended(&mut session).await.as_deref(), Some(INVALID));
    // A condition on two types, which has a conflict.
    let conditional = format!(
        "SELECT count(*) FROM append_events('{{0}}', '{{ItemRemoved,ItemAdded}}', '{{0}}', '{{f}}', '{{{cart}}}', '{{NULL}}', '{{NULL}}',
                                            '{{0}}', '{{CartCleared}}', ARRAY[convert_to('{payload}', 'UTF8')], ARRAY['{METADATA}'],
                                            '{{{cart}}}', '{{NULL}}', '{{NULL}}')",
        cart = cart.cart_id.uuid(),
        payload = serde_json::to_string(&cart.cleared()).unwrap(),
    )
    .replace("'{ItemRemoved,ItemAdded}'", "ARRAY['ItemRemoved,ItemAdded']");
    let rows: i64 = sqlx::query_scalar(&conditional).fetch_one(&mut session).await.unwrap();
    assert_eq!(rows, 2, "the head and the missed event");
    assert_eq!(Row::of(&cart.removed(0)).appended(&mut session).await, None);
    let (written, of_mine): (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM public.event), (SELECT count(*) FROM mine.event)").fetch_one(&owner).await.unwrap();
    assert_eq!((written, of_mine), (1 + 2 + 1, 0));
    // Nor does any other function that runs with the rights of its owner.
    let unpinned: Vec<String> = sqlx::query_scalar(
        "SELECT oid::regprocedure::text FROM pg_proc
         WHERE prosecdef AND pronamespace IN ('public'::regnamespace, 'automation'::regnamespace, 'projection_a'::regnamespace, 'projection_b'::regnamespace)
           -- The names of a body in standard SQL are bound when the function is created.
           AND prosqlbody IS NULL AND NOT coalesce(proconfig, '{}') @> ARRAY['search_path=pg_catalog, pg_temp']",
    )
    .fetch_all(&owner)
    .await
    .unwrap();
    assert_eq!(unpinned, [] as [&str; 0], "SECURITY DEFINER needs SET search_path = pg_catalog, pg_temp");
}
