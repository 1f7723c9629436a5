//! A slice: its specifications, what it reads and writes, its file, its chapter of the book, and its newest events.

use actix_web::{get, middleware::from_fn, web::Data};
use askama::Template;
use cart_events::{
    ArchivingStream, CartStream, DomainEvent, InventoryStream, PriceStream, PublicationStream, SubmissionStream, SubmittedStream,
};
use disintegrate::Event;
use event_model::{Context, Kind, Slice, Step, StepKind};
use event_store::EventStore;
use operations::{Search, search};
use service::{ErrorCode, HttpError, PathValue};

use crate::{
    events::Shown,
    model::{event_type, model, path_of},
    page::{Frame, Page, framed},
};

/// States that several slices read.
const SHARED: &[&str] = &[include_str!("../../cart-commands/src/stock.rs")];

/// The newest events that the page shows.
const NEWEST: i64 = 20;

/// The file of each slice, its text, and its chapter in the book.
macro_rules! files {
    ($($title:literal: $file:literal, $chapter:literal;)*) => {
        const FILES: &[(&str, &str, &str, &str)] = &[$(($title, concat!("services/", $file), include_str!(concat!("../../", $file)), $chapter)),*];
    };
}

files! {
    "Add Item": "cart-commands/src/add_item.rs", "21, Add Item";
    "Cart Items": "cart-projections/src/cart_items.rs", "22, Live Projections";
    "Remove Item": "cart-commands/src/remove_item.rs", "23, Remove Item & Clear Cart";
    "Clear Cart": "cart-commands/src/clear_cart.rs", "23, Remove Item & Clear Cart";
    "Change Inventory": "inventory-translator/src/change_inventory.rs", "24, Change Inventory";
    "Inventories": "cart-projections/src/inventories.rs", "25, Inventories";
    "Change Price": "inventory-translator/src/change_price.rs", "26, Implementing Automations";
    "Changed Prices": "cart-projections/src/changed_prices.rs", "26, Implementing Automations";
    "Carts with Products": "cart-projections/src/carts_with_products.rs", "26, Implementing Automations";
    "Archive Item": "cart-projections/src/archive_item.rs", "26, Implementing Automations";
    "Submit Cart": "cart-commands/src/submit_cart.rs", "27, Submitting the Cart";
    "Submitted Cart Data": "cart-projections/src/submitted_cart_data.rs", "27, Submitting the Cart";
    "Publish Cart": "publisher/src/publish_cart.rs", "27, Submitting the Cart";
}

#[derive(Template)]
#[template(path = "slices.html")]
pub(crate) struct SlicePage {
    frame: Frame,
    kind: &'static str,
    file: &'static str,
    chapter: &'static str,
    source: &'static str,
    reads: Vec<State>,
    follows: Vec<String>,
    writes: Vec<String>,
    specifications: Vec<Specification>,
    events: Vec<Shown>,
}

/// A state that a decision or a query folds.
struct State {
    name: &'static str,
    by: String,
    events: Vec<String>,
}

struct Specification {
    title: String,
    given: Vec<String>,
    when: Vec<String>,
    then: Vec<String>,
    comments: Vec<String>,
}

/// Answers a slice: a page.
#[utoipa::path(operation_id = "slice", tag = "internal", params(("slice" = String, Path)), responses((status = 200, body = String, content_type = "text/html")))]
#[get("/console/slices/{slice}", wrap = "from_fn(framed)")]
pub(crate) async fn route(PathValue(name): PathValue<String>, log: Data<EventStore<DomainEvent>>) -> Result<Page<SlicePage>, HttpError> {
    let model = model().map_err(HttpError::fault)?;
    let found = model.slices.iter().find(|slice| path_of(slice) == name);
    let (Some(slice), Some((_, file, source, chapter))) =
        (found, found.and_then(|slice| FILES.iter().find(|(title, ..)| *title == slice.title)))
    else {
        return Err(HttpError::new(ErrorCode::UnknownRoute, format!("the event model has no slice {name}")));
    };
    let of_log = |kind: Kind, ids: &dyn Fn(&str) -> bool| -> Vec<String> {
        let events = model.elements().filter(|one| one.kind == kind && one.context == Context::Internal && ids(&one.id));
        events.map(event_type).collect()
    };
    let writes: Vec<String> = slice.events.iter().filter(|event| event.context == Context::Internal).map(event_type).collect();
    let readers = || slice.readmodels.iter().chain(&slice.processors).flat_map(|reader| &reader.dependencies);
    let follows = of_log(Kind::Event, &|id| readers().any(|arrow| arrow.id == id));
    let types = if writes.is_empty() { &follows } else { &writes };
    let newest = search(&log, Search { types, ..Search::default() }, NEWEST).await?;
    Ok(Page(SlicePage {
        frame: Frame::live("Board", slice.title.clone()),
        kind: kind(slice),
        file,
        chapter,
        source,
        reads: states(source),
        follows,
        specifications: slice.specifications.iter().map(specification).collect(),
        events: newest.events.iter().map(Shown::of).collect(),
        writes,
    }))
}

fn kind(slice: &Slice) -> &'static str {
    match (slice.readmodels.is_empty(), slice.processors.first()) {
        (false, _) => "Read model",
        (true, None) => "Command",
        (true, Some(processor)) if processor.service.is_none() => "Translation",
        (true, Some(_)) => "Automation",
    }
}

fn specification(of: &event_model::Specification) -> Specification {
    let step = |step: &Step| {
        let mut text = step.title.clone();
        let fields: Vec<_> = step
            .fields
            .iter()
            .filter(|field| !field.example.is_empty())
            .map(|field| format!("{}: {}", field.name, field.example))
            .collect();
        if !fields.is_empty() {
            text += &format!(" ({})", fields.join(", "));
        }
        if step.kind == StepKind::SpecError {
            text = format!("refused: {text}");
        }
        if step.expect_empty_list {
            text += ", empty";
        }
        text
    };
    let steps = |steps: &[Step]| steps.iter().map(step).collect();
    Specification {
        title: of.title.clone(),
        given: steps(&of.given),
        when: steps(&of.when),
        then: steps(&of.then),
        comments: of.comments.iter().map(|comment| comment.description.clone()).collect(),
    }
}

/// Finds the states that a slice reads: those in its file, and the shared ones that it names.
fn states(source: &'static str) -> Vec<State> {
    let own = without_tests(source);
    let shared = SHARED.iter().flat_map(|file| declared(file)).filter(|state| own.contains(&format!("{}::of", state.name)));
    declared(source).into_iter().chain(shared).collect()
}

fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]").next().unwrap_or_default()
}

/// Finds the states in a file: each `StateQuery` names its events by their stream, and the ids that it asks for.
fn declared(source: &'static str) -> Vec<State> {
    let states = without_tests(source).split("#[state_query(").skip(1).map(|rest| {
        let (stream, rest) = rest.split_once(")]").unwrap_or_default();
        let (head, body) = rest.split_once('{').unwrap_or_default();
        let body = body.split('}').next().unwrap_or_default();
        let name = head.trim().rsplit(' ').next().unwrap_or_default();
        let ids = body.split("#[id]").skip(1).filter_map(|field| field.trim().split(':').next());
        let by = ids.map(|id| id.trim_start_matches("pub(crate) ")).collect::<Vec<_>>().join(", ");
        State { name, by, events: events_of(stream) }
    });
    states.collect()
}

/// The types of a stream.
fn events_of(stream: &str) -> Vec<String> {
    let events = match stream {
        "CartStream" => CartStream::SCHEMA.events,
        "SubmissionStream" => SubmissionStream::SCHEMA.events,
        "SubmittedStream" => SubmittedStream::SCHEMA.events,
        "PublicationStream" => PublicationStream::SCHEMA.events,
        "InventoryStream" => InventoryStream::SCHEMA.events,
        "PriceStream" => PriceStream::SCHEMA.events,
        "ArchivingStream" => ArchivingStream::SCHEMA.events,
        _ => &[],
    };
    events.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use cart_events::examples::Shopping;

    use super::*;
    use crate::testing::Console;

    #[test]
    fn every_slice_has_its_file_and_every_state_its_events() {
        for slice in &model().unwrap().slices {
            let (_, _, source, _) = FILES.iter().find(|(title, ..)| *title == slice.title).unwrap_or_else(|| panic!("{}", slice.title));
            for state in states(source) {
                assert!(!state.name.is_empty() && !state.by.is_empty() && !state.events.is_empty(), "{}: {}", slice.title, state.name);
            }
            assert!(slice.commands.is_empty() || kind(slice) == "Translation" || !states(source).is_empty(), "{}", slice.title);
        }
        assert_eq!(FILES.len(), model().unwrap().slices.len());
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn slice_shows_its_boundary_and_its_newest_events() {
        let console = Console::start().await;
        let cart = Shopping::new();
        console.log.append(cart.with_items(1)).await;
        let page = console.read("/console/slices/add-item").await;
        for text in
            ["services/cart-commands/src/add_item.rs", "21, Add Item", "refuses a fourth item", "refused: cart_full", "InventoryChanged"]
        {
            assert!(page.contains(text), "{text}");
        }
        assert!(page.contains(&format!("/console/carts/{}", cart.cart_id)), "its newest events");
        for slice in &model().unwrap().slices {
            console.read(&format!("/console/slices/{}", path_of(slice))).await;
        }
        let (status, page) = console.get("/console/slices/none").await;
        assert_eq!(status, 404);
        assert!(page.contains("the event model has no slice none") && page.contains("</html>"), "{page}");
    }
}
