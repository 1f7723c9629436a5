//! The log: found by id, type, correlation id, position or time; and one event with its causes and effects.

use actix_web::{HttpRequest, get, middleware::from_fn, web::Data};
use askama::Template;
use cart_events::DomainEvent;
use disintegrate::Event as _;
use event_store::{EventStore, Position};
use operations::{SEARCHED, Search, flow, search, text};
use service::{ErrorCode, HttpError, PathValue};
use uuid::Uuid;

use crate::{
    events::Shown,
    model::grouped,
    page::{Frame, Page, framed},
    query::Query,
};

/// The events of a page.
const PAGE: i64 = 50;
/// The ids of the log, with the parameter that names each.
const IDS: [(&str, &str); 3] = [("cart", "cart_id"), ("product", "product_id"), ("item", "item_id")];

#[derive(Template)]
#[template(path = "log.html")]
pub(crate) struct LogPage {
    frame: Frame,
    types: &'static [&'static str],
    query: Query,
    events: Vec<Shown>,
    /// The query of the next page.
    older: Option<String>,
    index: String,
    searched: String,
    has_id: bool,
}

/// Answers events of the log, the newest first: a page.
#[utoipa::path(
    operation_id = "log", tag = "internal",
    params(
        ("type" = Option<String>, Query), ("cart" = Option<Uuid>, Query), ("product" = Option<Uuid>, Query), ("item" = Option<Uuid>, Query),
        ("correlation" = Option<String>, Query), ("from" = Option<i64>, Query, description = "The first position."),
        ("to" = Option<i64>, Query, description = "The last position."), ("since" = Option<String>, Query, description = "A time, or a span such as 15m."),
    ),
    responses((status = 200, body = String, content_type = "text/html"))
)]
#[get("/console/log", wrap = "from_fn(framed)")]
pub(crate) async fn route(request: HttpRequest, log: Data<EventStore<DomainEvent>>) -> Result<Page<LogPage>, HttpError> {
    let query = Query::of(&request);
    let mut ids = vec![];
    for (parameter, id) in IDS {
        ids.extend(query.read::<Uuid>(parameter)?.map(|value| (id, value)));
    }
    if ids.len() > 1 {
        return Err(HttpError::new(ErrorCode::InvalidQuery, "give one of cart, product and item: an index serves one"));
    }
    let from = query.read::<i64>("from")?.map(|from| Position(from.max(1) - 1)).unwrap_or_default();
    let since = match query.read_with("since", text::since)? {
        Some(since) => operations::before(&log, since).await?,
        None => Position::START,
    };
    let to = query.read::<i64>("to")?;
    let types: Vec<String> = Some(query.text("type").to_owned()).filter(|one| !one.is_empty()).into_iter().collect();
    let correlation = Some(query.text("correlation")).filter(|correlation| !correlation.is_empty());
    let wanted = Search {
        id: ids.first().copied(),
        types: &types,
        correlation_id: correlation,
        after: from.max(since),
        until: Position(to.unwrap_or(i64::MAX)),
    };
    let found = search(&log, wanted, PAGE).await?;
    Ok(Page(LogPage {
        // An older page does not change.
        frame: if to.is_none() { Frame::live("Log", "Log") } else { Frame::still("Log", "Log") },
        types: DomainEvent::SCHEMA.events,
        events: found.events.iter().map(Shown::of).collect(),
        older: found.continue_at.map(|at| query.with("to", at)),
        index: found.index,
        searched: grouped(SEARCHED),
        has_id: !ids.is_empty(),
        query,
    }))
}

#[derive(Template)]
#[template(path = "event.html")]
pub(crate) struct EventPage {
    frame: Frame,
    event: Shown,
    stored: String,
    metadata: String,
    flow: Vec<(String, Shown)>,
    searched_to: i64,
}

/// Answers an event with its causes and effects: a page.
#[utoipa::path(operation_id = "event", tag = "internal", params(("position" = i64, Path)), responses((status = 200, body = String, content_type = "text/html"), (status = 404, description = "unknown_event", body = service::ErrorBody)))]
#[get("/console/log/{position}", wrap = "from_fn(framed)")]
pub(crate) async fn event_route(
    PathValue(position): PathValue<i64>,
    log: Data<EventStore<DomainEvent>>,
) -> Result<Page<EventPage>, HttpError> {
    let found = flow(&log, Position(position)).await?;
    let entry = found.as_ref().and_then(|flow| flow.steps.iter().find(|step| step.event.position.0 == position));
    let (Some(flow), Some(entry)) = (&found, entry.map(|step| &step.event)) else {
        let message = format!("the log has no event at position {position}; its head is {}", log.head().await?);
        return Err(HttpError::refusal(actix_web::http::StatusCode::NOT_FOUND, "unknown_event", message));
    };
    let pretty = |json: &[u8]| match serde_json::from_slice::<serde_json::Value>(json) {
        Ok(value) => format!("{value:#}").lines().map(text::clean).collect::<Vec<_>>().join("\n"),
        Err(_) => text::clean(&text::bytes(json)).into_owned(),
    };
    Ok(Page(EventPage {
        frame: Frame::live("Log", format!("{} at {position}", entry.event_type)),
        event: Shown::whole(entry),
        stored: pretty(&entry.payload),
        metadata: pretty(entry.metadata.get().as_bytes()),
        flow: flow.steps.iter().map(|step| ("\u{2003}".repeat(step.depth), Shown::of(&step.event))).collect(),
        searched_to: flow.searched_to.0,
    }))
}

#[cfg(test)]
mod tests {
    use cart_events::{DomainEvent, examples::Shopping};
    use event_store::{Metadata, SourcePartition};

    use crate::testing::Console;

    fn positions(page: &str) -> Vec<i64> {
        page.split("<td class=\"number\"><a href=\"/console/log/")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect()
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn log_is_searched_by_id_type_position_and_time() {
        let console = Console::start().await;
        let cart = Shopping::new();
        // Positions 1 to 5.
        console.log.append(cart.with_items(1).chain([cart.inventory(0, 7), cart.inventory(1, 7), cart.removed(0)])).await;
        let found = async |query: String| positions(&console.read(&format!("/console/log?{query}")).await);
        assert_eq!(found(String::new()).await, [5, 4, 3, 2, 1]);
        assert_eq!(found(format!("cart={}&type=&product=", cart.cart_id)).await, [5, 2, 1]);
        assert_eq!(found(format!("product={}", cart.product(0))).await, [3, 2]);
        assert_eq!(found(format!("product={}&type=InventoryChanged", cart.product(0))).await, [3]);
        assert_eq!(found(format!("item={}", cart.item(0))).await, [5, 2]);
        assert_eq!(found("type=InventoryChanged".into()).await, [4, 3]);
        assert_eq!(found("from=2&to=4".into()).await, [4, 3, 2]);
        assert_eq!(found(format!("cart={}&from=2&to=4", cart.cart_id)).await, [2]);
        assert_eq!(found("since=1h".into()).await, [5, 4, 3, 2, 1]);
        assert!(found("since=2200-01-01T00:00:00Z".into()).await.is_empty());
        let (status, _) = console.get(&format!("/console/log?cart={}&item={}", cart.cart_id, cart.item(0))).await;
        assert_eq!(status, 400);
        for wrong in ["cart=7", "from=x", "since=soon"] {
            let (status, page) = console.get(&format!("/console/log?{wrong}")).await;
            assert!(status == 400 && page.contains("in the query"), "{wrong}: {page}");
        }
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn log_has_pages() {
        let console = Console::start().await;
        let cart = Shopping::new();
        console.log.append((0..120).map(|stock| cart.inventory(0, stock))).await;
        for start in ["/console/log".to_owned(), format!("/console/log?product={}", cart.product(0))] {
            let (mut next, mut all) = (Some(start), vec![]);
            while let Some(path) = next {
                let page = console.read(&path).await;
                all.extend(positions(&page));
                let older = page.split("rel=\"next\" href=\"").nth(1).and_then(|rest| rest.split('"').next());
                next = older.map(|path| path.replace("&#38;", "&"));
            }
            assert_eq!(all, (1..=120).rev().collect::<Vec<_>>());
        }
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn event_shows_its_causes_and_effects() {
        let console = Console::start().await;
        let cart = Shopping::new();
        let by = |cause: Option<&str>| Metadata {
            correlation_id: Some("order-7".into()),
            causation_id: cause.map(str::to_owned),
            ..Metadata::default()
        };
        let events: Vec<(DomainEvent, Metadata)> = vec![
            (cart.created(), by(None)),
            (cart.added(0), by(None)),
            (cart.inventory(0, 1), Metadata::default()),
            (cart.submitted(1), by(Some("2"))),
            (DomainEvent::CartPublished { cart_id: cart.cart_id }, by(Some("4"))),
        ];
        let source = SourcePartition { consumer: "test", topic: "flow", partition: 0 };
        console.log.store.append_from(source, None, 1, &events).await.unwrap();
        for position in [2, 4, 5] {
            let page = console.read(&format!("/console/log/{position}")).await;
            let flow = page.split("id=\"flow\"").nth(1).unwrap();
            let (submitted, published) = (flow.find("CartSubmitted").unwrap(), flow.find("CartPublished").unwrap());
            assert!(submitted < published && flow.contains("ItemAdded") && !flow.contains("InventoryChanged"), "{position}: {flow}");
            assert!(flow.contains("\u{2003}\u{2003}"), "{position}");
            assert!(page.contains("order-7"));
        }
        assert_eq!(positions(&console.read("/console/log?correlation=order-7").await), [5, 4, 2, 1]);
        assert!(console.read("/console/log/3").await.contains("InventoryChanged"));
        assert_eq!(console.get("/console/log/6").await.0, 404);
        assert_eq!(console.get("/console/log/x").await.0, 400);
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn text_from_outside_is_shown_as_text() {
        let console = Console::start().await;
        let cart = Shopping::new();
        let DomainEvent::ItemAdded { cart_id, item_id, product_id, image, price, .. } = cart.added(0) else { panic!() };
        let description = "<script>alert(1)</script>\u{202e}\u{200b}".to_owned().try_into().unwrap();
        let device_fingerprint = "\"><img src=x>".to_owned();
        console
            .log
            .append([
                cart.created(),
                DomainEvent::ItemAdded { cart_id, item_id, product_id, description, image, price, device_fingerprint },
            ])
            .await;
        for path in
            ["/console/log".to_owned(), "/console/log/2".to_owned(), format!("/console/carts/{cart_id}"), "/console/slices/add-item".into()]
        {
            let page = console.read(&path).await;
            assert!(!page.contains("<script>alert") && !page.contains("<img"), "{path}");
            assert!(page.contains("&#60;script&#62;alert(1)"), "{path}");
            assert!(!page.contains('\u{202e}') && !page.contains('\u{200b}') && page.contains("\\u{202e}\\u{200b}"), "{path}");
        }
    }
}
