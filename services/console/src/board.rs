//! The board: the event model, and how often each part of it happens.

use actix_web::{HttpResponse, get, middleware::from_fn, web::Data};
use askama::Template;
use event_model::{Card, Context, Kind};
use service::HttpError;

use crate::{
    model::{event_type, grouped, model, often, path_of},
    page::{Frame, Page, framed, see},
    watched::Watched,
};

#[derive(Template)]
#[template(path = "board.html")]
pub(crate) struct Board {
    frame: Frame,
    svg: String,
    head: String,
    /// Events that are not counted yet.
    left: String,
    events: Vec<Row>,
}

struct Row {
    event_type: String,
    slice: String,
    title: String,
    all: String,
    rate: String,
}

/// Leads to the board.
#[utoipa::path(operation_id = "root", tag = "operations", responses((status = 303, description = "To the board.")))]
#[get("/")]
pub(crate) async fn root() -> HttpResponse {
    see("/console")
}

/// Answers the board: a page.
#[utoipa::path(operation_id = "board", tag = "internal", responses((status = 200, body = String, content_type = "text/html")))]
#[get("/console", wrap = "from_fn(framed)")]
pub(crate) async fn route(watched: Data<Watched>) -> Result<Page<Board>, HttpError> {
    let model = model().map_err(HttpError::fault)?;
    let counts = watched.counts();
    let slice_of = |title: &str| model.slices.iter().find(|slice| slice.title == title).map(path_of).unwrap_or_default();
    let card = |element: &event_model::Element| {
        let often = often(model, element, &counts);
        let count = often.map(|often| match often.rate {
            rate if rate > 0.0 => format!("{rate:.1}/s  {}", grouped(often.all)),
            _ => grouped(often.all),
        });
        Card {
            link: format!("/console/slices/{}", slice_of(&element.slice)),
            count: count.unwrap_or_default(),
            pulse: often.map(|often| often.all.to_string()).unwrap_or_default(),
        }
    };
    let events = model.elements().filter(|element| element.kind == Kind::Event && element.context == Context::Internal).map(|element| {
        let (event_type, often) = (event_type(element), often(model, element, &counts).unwrap_or_default());
        let (slice, title) = (slice_of(&element.slice).to_owned(), element.slice.clone());
        Row { event_type, slice, title, all: grouped(often.all), rate: format!("{:.1}", often.rate) }
    });
    Ok(Page(Board {
        frame: Frame::live("Board", "Board"),
        svg: event_model::board(model, card),
        head: grouped(counts.head.0),
        left: if counts.left() > 0 { grouped(counts.left()) } else { String::new() },
        events: events.collect(),
    }))
}

#[cfg(test)]
mod tests {
    use cart_events::examples::Shopping;

    use crate::testing::Console;

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn board_counts_each_event() {
        let console = Console::start().await;
        let cart = Shopping::new();
        console.log.append(cart.with_items(2)).await;
        console.count().await;
        let page = console.read("/console").await;
        for event in ["ItemAdded", "CartCreated", "CartPublicationFailed"] {
            assert!(page.contains(event), "{event}");
        }
        assert_eq!(pulse(&page, "event-item-added"), "2");
        assert_eq!(pulse(&page, "command-add-item"), "2");
        assert_eq!(pulse(&page, "event-cart-created"), "1");
        assert_eq!(pulse(&page, "readmodel-cart-items"), "3");
        assert_eq!(pulse(&page, "event-cart-submitted"), "0");

        // What is appended later is counted on top.
        console.log.append([cart.removed(0)]).await;
        console.count().await;
        let page = console.read("/console").await;
        assert_eq!(pulse(&page, "event-item-removed"), "1");
        assert_eq!(pulse(&page, "event-item-added"), "2");
    }

    fn pulse<'a>(page: &'a str, id: &str) -> &'a str {
        let card = page.split(&format!("id=\"{id}\"")).nth(1).unwrap_or_else(|| panic!("no {id}"));
        card.split("data-pulse=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap()
    }
}
