//! A cart: its timeline, and what it was at each position.

use actix_web::{Either, HttpRequest, HttpResponse, get, middleware::from_fn, web::Data};
use askama::Template;
use cart_events::{CartId, DomainEvent, ItemId, Price, ProductId, Total};
use event_store::{EventStore, Position};
use operations::{Entry, RowsOf, Search, TodoEntry, rows_of, search, text, todos_of};
use service::{ErrorCode, HttpError, PathValue};

use crate::{
    events::Shown,
    page::{Frame, Page, framed, see},
    query::Query,
};

/// The newest carts that the list shows.
const NEWEST: i64 = 30;
/// The newest events of a cart that its page shows. A cart takes 1,000 changes unless the settings say otherwise.
const EVENTS: i64 = 1_100;
/// The newest events of each product that a cart's page shows.
const OF_PRODUCT: i64 = 3;

#[derive(Template)]
#[template(path = "carts.html")]
pub(crate) struct Carts {
    frame: Frame,
    carts: Vec<Shown>,
}

/// Answers the newest carts, or leads to the cart that the query names: a page.
#[utoipa::path(operation_id = "carts", tag = "internal", params(("cart_id" = Option<CartId>, Query)), responses((status = 200, body = String, content_type = "text/html")))]
#[get("/console/carts", wrap = "from_fn(framed)")]
pub(crate) async fn list_route(
    request: HttpRequest,
    log: Data<EventStore<DomainEvent>>,
) -> Result<Either<HttpResponse, Page<Carts>>, HttpError> {
    if let Some(cart_id) = Query::of(&request).read::<CartId>("cart_id")? {
        return Ok(Either::Left(see(&format!("/console/carts/{cart_id}"))));
    }
    let types = ["CartCreated".to_owned()];
    let created = search(&log, Search { types: &types, ..Search::default() }, NEWEST).await?;
    Ok(Either::Right(Page(Carts { frame: Frame::live("Carts", "Carts"), carts: created.events.iter().map(Shown::of).collect() })))
}

#[derive(Template)]
#[template(path = "cart.html")]
pub(crate) struct CartPage {
    frame: Frame,
    cart_id: CartId,
    /// The position at which the cart is shown.
    at: i64,
    /// The number of events up to there, and of all.
    step: usize,
    steps: usize,
    is_newest: bool,
    older_are_missing: bool,
    cart: Cart,
    rows: Vec<RowsOf>,
    todos: Vec<TodoEntry>,
    /// The newest events of its products at that position.
    products: Vec<Shown>,
    timeline: Vec<Moment>,
}

/// An event of the timeline.
struct Moment {
    event: Shown,
    /// `now` for the event at the position, `future` for later ones.
    class: &'static str,
    effects: Vec<Effect>,
}

struct Effect {
    text: String,
    link: String,
}

/// Answers a cart as it is, or as it was after an event: a page.
#[utoipa::path(
    operation_id = "cart", tag = "internal",
    params(("cart_id" = CartId, Path), ("at" = Option<i64>, Query, description = "A position."), ("step" = Option<usize>, Query, description = "The number of events.")),
    responses((status = 200, body = String, content_type = "text/html"), (status = 404, description = "unknown_cart", body = service::ErrorBody))
)]
#[get("/console/carts/{cart_id}", wrap = "from_fn(framed)")]
pub(crate) async fn route(
    PathValue(cart_id): PathValue<CartId>,
    request: HttpRequest,
    log: Data<EventStore<DomainEvent>>,
) -> Result<Page<CartPage>, HttpError> {
    let query = Query::of(&request);
    let (at, step) = (query.read::<i64>("at")?, query.read::<usize>("step")?);
    let of_cart = Search { id: Some(("cart_id", cart_id.uuid())), ..Search::default() };
    let found = search(&log, of_cart, EVENTS).await?;
    let events: Vec<Entry<DomainEvent>> = found.events.into_iter().rev().collect();
    let Some((first, last)) = events.first().zip(events.last()) else {
        let status = actix_web::http::StatusCode::NOT_FOUND;
        return Err(HttpError::refusal(status, "unknown_cart", format!("the log has no event of the cart {cart_id}")));
    };
    let steps = events.len();
    let (step, at) = match (step, at) {
        (Some(step), _) => {
            let step = step.clamp(1, steps);
            (step, events.get(step - 1).map_or(last.position, |event| event.position))
        }
        (None, Some(at)) if at < first.position.0 => {
            return Err(HttpError::new(ErrorCode::InvalidQuery, format!("the cart begins at position {}", first.position)));
        }
        (None, Some(at)) => (events.iter().filter(|event| event.position.0 <= at).count(), Position(at)),
        (None, None) => (steps, last.position),
    };
    let is_newest = step == steps;
    let cart = Cart::of(events.iter().take(step).filter_map(|entry| entry.event.as_ref().ok()));
    let mut products = vec![];
    let stock = ["InventoryChanged".to_owned(), "PriceChanged".to_owned()];
    for product in cart.products() {
        let until = if is_newest { Position(i64::MAX) } else { at };
        let of_product = Search { id: Some(("product_id", product.uuid())), types: &stock, until, ..Search::default() };
        products.extend(search(&log, of_product, OF_PRODUCT).await?.events);
    }
    products.sort_by_key(|event| event.position);
    let todos = todos_of(log.pool(), &keys(cart_id, &events, &products)).await?;
    Ok(Page(CartPage {
        frame: Frame::live("Carts", format!("Cart {cart_id}")),
        cart_id,
        at: at.0,
        step,
        steps,
        is_newest,
        older_are_missing: found.continue_at.is_some(),
        cart,
        rows: rows_of(log.pool(), "cart_id", cart_id.uuid()).await?,
        timeline: timeline(&events, step, &todos),
        todos,
        products: products.iter().map(Shown::of).collect(),
    }))
}

/// The keys of the to-dos that may be about a cart: its publication, and the archiving of its items.
fn keys(cart_id: CartId, events: &[Entry<DomainEvent>], products: &[Entry<DomainEvent>]) -> Vec<String> {
    let mut keys = vec![cart_id.to_string()];
    let item = |item_id: &ItemId, position: i64| format!("{cart_id}/{item_id}@{position}");
    for event in events.iter().filter_map(|entry| entry.event.as_ref().ok()) {
        match event {
            DomainEvent::ItemArchived { item_id, price_changed_at, .. } => keys.push(item(item_id, *price_changed_at)),
            DomainEvent::ItemAdded { item_id, product_id: of, .. } => {
                let changes = products
                    .iter()
                    .filter(|change| matches!(&change.event, Ok(DomainEvent::PriceChanged { product_id, .. }) if product_id == of));
                keys.extend(changes.map(|change| item(item_id, change.position.0)));
            }
            _ => {}
        }
    }
    keys
}

fn timeline(events: &[Entry<DomainEvent>], step: usize, todos: &[TodoEntry]) -> Vec<Moment> {
    let moments = events.iter().enumerate().map(|(number, entry)| {
        let position = entry.position;
        let caused = events.iter().filter(|other| operations::metadata(*other).causation_id == Some(position.to_string()));
        let events = caused.map(|effect| Effect {
            text: format!("{} {}", effect.event_type, effect.position),
            link: format!("/console/log/{}", effect.position),
        });
        let todos = todos.iter().filter(|todo| todo.position == position).map(|todo| Effect {
            text: format!("to-do of {}: {}", todo.automation, todo.status),
            link: format!("/console/log/{position}"),
        });
        let class = match (number + 1).cmp(&step) {
            std::cmp::Ordering::Less => "",
            std::cmp::Ordering::Equal => "now",
            std::cmp::Ordering::Greater => "future",
        };
        Moment { event: Shown::of(entry), class, effects: todos.chain(events).collect() }
    });
    moments.collect()
}

/// A cart as it was.
#[derive(Debug, Default)]
struct Cart {
    items: Vec<Item>,
    /// `open`, `submitted`, `published` or `publication failed`.
    status: &'static str,
}

#[derive(Debug)]
struct Item {
    item_id: ItemId,
    product_id: ProductId,
    description: String,
    price: Price,
}

impl Cart {
    fn of<'a>(events: impl Iterator<Item = &'a DomainEvent>) -> Self {
        events.fold(Self { items: vec![], status: "open" }, |mut cart, event| {
            match event {
                DomainEvent::ItemAdded { item_id, product_id, description, price, .. } => {
                    let description = text::clean(description.as_ref()).into_owned();
                    cart.items.push(Item { item_id: *item_id, product_id: *product_id, description, price: *price });
                }
                DomainEvent::ItemRemoved { item_id, .. } | DomainEvent::ItemArchived { item_id, .. } => {
                    cart.items.retain(|item| item.item_id != *item_id);
                }
                DomainEvent::CartCleared { .. } => cart.items.clear(),
                DomainEvent::CartSubmitted { .. } => cart.status = "submitted",
                DomainEvent::CartPublished { .. } => cart.status = "published",
                DomainEvent::CartPublicationFailed { .. } => cart.status = "publication failed",
                _ => {}
            }
            cart
        })
    }

    fn total(&self) -> Total {
        self.items.iter().map(|item| &item.price).sum()
    }

    /// Its products, each once.
    fn products(&self) -> Vec<ProductId> {
        self.items.iter().map(|item| item.product_id).fold(vec![], |mut products, product| {
            if !products.contains(&product) {
                products.push(product);
            }
            products
        })
    }
}

#[cfg(test)]
mod tests {
    use cart_events::examples::Shopping;

    use crate::testing::Console;

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn slider_shows_the_cart_after_each_event() {
        let console = Console::start().await;
        let cart = Shopping::new();
        // Positions 1 to 6.
        console.log.append(cart.with_items(2).chain([cart.inventory(0, 7), cart.removed(0), cart.submitted(1)])).await;
        let shown = async |query: &str| {
            let page = console.read(&format!("/console/carts/{}{query}", cart.cart_id)).await;
            let items = page.split("id=\"items\"").nth(1).unwrap().split("</section>").next().unwrap().to_owned();
            let has = |n: usize| items.contains(&format!("/console/log?item={}", cart.item(n)));
            (has(0), has(1), page)
        };
        for (query, first, second) in [
            ("?step=1", false, false),
            ("?step=2", true, false),
            ("?at=3", true, true),
            ("?at=4", true, true),
            ("?step=4", false, true),
            ("?at=5", false, true),
            ("", false, true),
            ("?step=99", false, true),
        ] {
            let (has_first, has_second, _) = shown(query).await;
            assert_eq!((has_first, has_second), (first, second), "{query}");
        }
        let (_, _, page) = shown("?step=2").await;
        assert!(page.contains("class=\"now\"") && page.contains("class=\"future\""));
        let (_, _, page) = shown("?at=4").await;
        assert!(page.contains("InventoryChanged"), "the product's events belong to the boundary");
        assert_eq!(console.get(&format!("/console/carts/{}?at=0", cart.cart_id)).await.0, 400);
        assert_eq!(console.get(&format!("/console/carts/{}", cart.other_cart().cart_id)).await.0, 404);
        assert_eq!(console.get("/console/carts/none").await.0, 400);
        assert!(console.read("/console/carts").await.contains(&format!("/console/carts/{}", cart.cart_id)));
        let (status, _) = console.get(&format!("/console/carts?cart_id={}", cart.cart_id)).await;
        assert_eq!(status, 303);
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn cart_shows_what_projections_and_todos_have_of_it() {
        let console = Console::start().await;
        let cart = Shopping::new();
        let head = console.log.append(cart.with_items(1).chain([cart.submitted(1)])).await;
        let sql = format!(
            "INSERT INTO projection (name, build, version, status, tables) VALUES
                 ('cart_items', 'projection_a', 1, 'serving', '{{cart_items_cart,cart_items_item}}'),
                 ('publish_cart', 'automation', 1, 'serving', '{{}}');
             INSERT INTO projection_a.cart_items_cart VALUES ('{0}');
             INSERT INTO todo (automation, key, position, payload, metadata, status, last_error)
             VALUES ('publish_cart', '{0}', {head}, '{{}}', '{{}}', 'failed', 'the broker <said> no\u{202e}')",
            cart.cart_id
        );
        sqlx::raw_sql(&sql).execute(console.log.store.pool()).await.unwrap();
        let page = console.read(&format!("/console/carts/{}", cart.cart_id)).await;
        assert!(page.contains("projection_a.cart_items_cart") && page.contains("projection_a.cart_items_item"), "{page}");
        assert!(page.contains("to-do of publish_cart: failed"), "{page}");
        assert!(page.contains("the broker &#60;said&#62; no\\u{202e}"), "{page}");
    }
}
