//! Attention: everything that needs attention, and what an operator can do about it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse, get,
    middleware::from_fn,
    post,
    web::{Data, Form, Path},
};
use askama::Template;
use cart_events::DomainEvent;
use event_store::{EventStore, Position, SourcePartition};
use operations::{
    Attention, Counted, DeadLetter, NEWEST_LETTERS, OperateError, Operator, Overview, Parked, Place, Skip, TodoEntry, Translation, text,
};
use service::{ErrorCode, HttpError};
use tokio::sync::Mutex;
use url::form_urlencoded;
use uuid::Uuid;

use crate::{
    confirm::{Confirm, Confirmed},
    events::short,
    page::{Frame, Page, framed, see},
    query::Query,
};

const LIST: &str = "/console/attention";
/// How long an answer serves every page that is open.
const FRESH: Duration = Duration::from_secs(2);
/// The failed to-dos, and the dead letters, that the page shows at most.
const SHOWN: usize = 100;
/// The characters of a dead letter's value or header that its page shows.
const VALUE: usize = 100_000;
/// Between the parts of an item. Names have none.
const BETWEEN: char = '|';

/// What was read lately. All pages share it, because reading it takes ten questions to the database and the broker.
#[derive(Default)]
pub(crate) struct Recent(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    counted: Counted,
    /// The letters that wait, with the topic's offsets at that time.
    letters: BTreeMap<String, (Ends, Vec<DeadLetter>)>,
    last: Option<(Instant, Arc<All>)>,
}

type Ends = BTreeMap<i32, (i64, i64)>;

struct All {
    overview: Overview,
    todos: Vec<TodoEntry>,
    letters: Vec<DeadLetter>,
}

impl Recent {
    async fn read(&self, log: &EventStore<DomainEvent>, kafka: &Operator) -> Result<Arc<All>, HttpError> {
        let mut inner = self.0.lock().await;
        if let Some((_, all)) = inner.last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(all.clone());
        }
        let overview = operations::overview(log, kafka, &mut inner.counted).await?;
        let todos = operations::todos(log.pool(), None, Some("failed"), SHOWN as i64).await?;
        let mut letters = vec![];
        for topic in overview.dead_letters.iter().flatten().filter(|letters| letters.waiting > 0).map(|letters| &letters.topic) {
            letters.extend(inner.letters_of(topic, kafka).await.map_err(failed)?);
        }
        let all = Arc::new(All { overview, todos, letters });
        inner.last = Some((Instant::now(), all.clone()));
        Ok(all)
    }

    /// Makes the next page read again what has changed.
    async fn forget(&self) {
        self.0.lock().await.last = None;
    }
}

impl Inner {
    async fn letters_of(&mut self, topic: &str, kafka: &Operator) -> Result<Vec<DeadLetter>, OperateError> {
        let ends = kafka.ends(topic).await?;
        if let Some((_, letters)) = self.letters.get(topic).filter(|(then, _)| *then == ends) {
            return Ok(letters.clone());
        }
        let mut letters = kafka.dead_letters(topic, Some(NEWEST_LETTERS)).await?.letters;
        letters.retain(DeadLetter::is_waiting);
        self.letters.insert(topic.to_owned(), (ends, letters.clone()));
        Ok(letters)
    }
}

fn failed(error: OperateError) -> HttpError {
    HttpError::new(ErrorCode::Unavailable, text::causes(&error)).caused_by(error)
}

#[derive(Template)]
#[template(path = "attention.html")]
pub(crate) struct AttentionPage {
    frame: Frame,
    attention: Vec<Attention>,
    parked: Vec<ParkedRow>,
    todos: Vec<TodoRow>,
    more_todos: bool,
    letters: Vec<LetterRow>,
    all_letters: usize,
    partitions: Vec<PartitionRow>,
}

struct ParkedRow {
    item: String,
    of: Parked,
    what: String,
    error: String,
    since: String,
    /// Where it can be retried, and skipped.
    retry: Option<String>,
    skip: String,
}

struct TodoRow {
    item: String,
    of: TodoEntry,
    error: String,
    age: String,
}

struct LetterRow {
    item: String,
    link: String,
    source: String,
    reason: String,
    key: String,
    bytes: usize,
    is_stub: bool,
}

struct PartitionRow {
    of: Translation,
    why: &'static str,
    seek: Vec<(&'static str, String)>,
}

/// A link to the page that asks before an item is changed.
fn ask_link(act: Act, item: &str) -> String {
    format!("{LIST}/{}?{}", act.path(), form_urlencoded::Serializer::new(String::new()).append_pair("item", item).finish())
}

/// Answers what needs attention: a page.
#[utoipa::path(operation_id = "attention", tag = "internal", responses((status = 200, body = String, content_type = "text/html")))]
#[get("/console/attention", wrap = "from_fn(framed)")]
pub(crate) async fn list_route(
    log: Data<EventStore<DomainEvent>>,
    kafka: Data<Operator>,
    recent: Data<Recent>,
) -> Result<Page<AttentionPage>, HttpError> {
    let all = recent.read(&log, &kafka).await?;
    let attention = all.overview.attention.iter().map(|one| Attention {
        what: text::clean(&one.what).into_owned(),
        command: one.command.as_deref().map(|command| text::clean(command).into_owned()),
    });
    let parked = all.overview.parked.iter().map(|of| {
        let key = of.key.map(|key| key.to_string()).unwrap_or_default();
        let item = [of.projection.as_str(), &key, &of.position.to_string()].join(&BETWEEN.to_string());
        ParkedRow {
            what: match (&of.key, &of.segments) {
                (Some(key), _) => format!("key {key}"),
                (None, segments) => format!("segments {:?}", segments.as_deref().unwrap_or_default()),
            },
            error: text::clean(&of.error).into_owned(),
            since: text::span(of.since_seconds),
            retry: of.key.map(|_| ask_link(Act::RetryParked, &item)),
            skip: ask_link(Act::Skip, &item),
            of: of.clone(),
            item,
        }
    });
    let todos = all.todos.iter().map(|of| TodoRow {
        item: [of.automation.as_str(), &of.key].join(&BETWEEN.to_string()),
        error: of.last_error.as_deref().map(|error| text::clean(error).into_owned()).unwrap_or_default(),
        age: text::span(of.age_seconds),
        of: TodoEntry {
            automation: of.automation.clone(),
            key: text::clean(&of.key).into_owned(),
            position: of.position,
            status: of.status.clone(),
            attempts: of.attempts,
            age_seconds: of.age_seconds,
            last_error: None,
            payload: of.payload.clone(),
        },
    });
    let letters = all.letters.iter().take(SHOWN).map(|letter| {
        let item = letter.place.to_string();
        LetterRow {
            link: format!("{LIST}/letter?{}", form_urlencoded::Serializer::new(String::new()).append_pair("item", &item).finish()),
            source: letter.source.as_ref().map_or("?".to_owned(), |source| text::clean(&source.to_string()).into_owned()),
            reason: short(&text::clean(&letter.reason), 200),
            key: letter.key.as_deref().map(|key| short(&text::clean(&text::bytes(key)), 80)).unwrap_or_default(),
            bytes: letter.bytes,
            is_stub: letter.stub.is_some(),
            item,
        }
    });
    let partitions = all.overview.translations.iter().filter_map(|of| {
        let why = of.blocked()?;
        let (begins, ends) = of.begins_at.zip(of.ends_at)?;
        let link = |to: i64| {
            let stored = &of.stored;
            let item = [stored.group.as_str(), &stored.topic, &stored.partition.to_string(), &to.to_string()].join(&BETWEEN.to_string());
            ask_link(Act::Seek, &item)
        };
        let of = Translation { stored: of.stored.clone(), ..*of };
        Some(PartitionRow { of, why, seek: vec![("to its beginning", link(begins)), ("to its end", link(ends))] })
    });
    Ok(Page(AttentionPage {
        frame: Frame::live("Attention", "Attention"),
        attention: attention.collect(),
        parked: parked.collect(),
        more_todos: all.todos.len() >= SHOWN,
        todos: todos.collect(),
        letters: letters.collect(),
        all_letters: all.letters.len(),
        partitions: partitions.collect(),
    }))
}

#[derive(Template)]
#[template(path = "letter.html")]
pub(crate) struct LetterPage {
    frame: Frame,
    place: String,
    source: String,
    reason: String,
    stub: Option<String>,
    key: String,
    headers: Vec<(String, String)>,
    value: String,
    replay: String,
    dismiss: String,
}

/// Answers a dead letter with its value and headers: a page.
#[utoipa::path(operation_id = "dead_letter", tag = "internal", params(("item" = String, Query, description = "Its place: topic/partition/offset.")), responses((status = 200, body = String, content_type = "text/html"), (status = 404, description = "no_letter", body = service::ErrorBody)))]
#[get("/console/attention/letter", wrap = "from_fn(framed)")]
pub(crate) async fn letter_route(request: HttpRequest, kafka: Data<Operator>) -> Result<Page<LetterPage>, HttpError> {
    let place = Query::of(&request).read::<Place>("item")?.ok_or_else(|| no_letter("?"))?;
    let found = kafka.dead_letter(&place).await.map_err(failed)?.ok_or_else(|| no_letter(&place.to_string()))?;
    let shown = |bytes: &[u8]| short(&text::clean(&text::bytes(bytes)), VALUE);
    let place = place.to_string();
    Ok(Page(LetterPage {
        frame: Frame::still("Attention", "Dead letter"),
        replay: ask_link(Act::Replay, &place),
        dismiss: ask_link(Act::Dismiss, &place),
        place: text::clean(&place).into_owned(),
        source: found.letter.source.as_ref().map_or("?".to_owned(), |source| text::clean(&source.to_string()).into_owned()),
        reason: text::clean(&found.letter.reason).into_owned(),
        stub: found.letter.stub.as_deref().map(|stub| text::clean(stub).into_owned()),
        key: found.letter.key.as_deref().map(shown).unwrap_or_default(),
        headers: found
            .headers
            .iter()
            .map(|(name, value)| (shown(name.as_bytes()), value.as_deref().map(shown).unwrap_or_default()))
            .collect(),
        value: found.value.as_deref().map(shown).unwrap_or_default(),
    }))
}

fn no_letter(place: &str) -> HttpError {
    HttpError::refusal(actix_web::http::StatusCode::NOT_FOUND, "no_letter", format!("there is no dead letter at {place}"))
}

/// What can be done about something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    RetryParked,
    Skip,
    RetryTodo,
    Replay,
    Dismiss,
    Seek,
}

impl Act {
    const ALL: [Self; 6] = [Self::RetryParked, Self::Skip, Self::RetryTodo, Self::Replay, Self::Dismiss, Self::Seek];

    /// Its name in a path.
    fn path(self) -> &'static str {
        match self {
            Self::RetryParked => "retry-parked",
            Self::Skip => "skip",
            Self::RetryTodo => "retry-todo",
            Self::Replay => "replay",
            Self::Dismiss => "dismiss",
            Self::Seek => "seek",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::RetryParked => "Retry parked keys",
            Self::Skip => "Skip events",
            Self::RetryTodo => "Retry to-dos",
            Self::Replay => "Replay dead letters",
            Self::Dismiss => "Dismiss dead letters",
            Self::Seek => "Set stored offsets",
        }
    }

    /// What will happen.
    fn consequence(self) -> &'static str {
        match self {
            Self::RetryParked => "The owner of the key's segment applies its queue of events again. If one fails, the key stays parked.",
            Self::Skip => "The projection never applies the event. Its rows will lack what the event would have changed.",
            Self::RetryTodo => "The to-do is opened as if it were new, and attempted at once.",
            Self::Replay => "The message is sent to the end of the partition that it came from, and translated after what is there.",
            Self::Dismiss => "The message is marked as settled, and never translated.",
            Self::Seek => {
                "The translator continues from the offset. Messages before it are never translated; those after it are translated again."
            }
        }
    }

    fn find(name: &str) -> Result<Self, HttpError> {
        let found = Self::ALL.into_iter().find(|act| act.path() == name);
        found.ok_or_else(|| HttpError::new(ErrorCode::UnknownRoute, format!("nothing can be done that is called {name}")))
    }

    /// Does it to one item. Returns whether there was anything to do.
    async fn perform(self, item: &str, confirmed: &Confirmed, log: &EventStore<DomainEvent>, kafka: &Operator) -> Result<bool, HttpError> {
        let wrong = || HttpError::new(ErrorCode::InvalidField, format!("item: {item:?} cannot be read"));
        let parts: Vec<&str> = item.split(BETWEEN).collect();
        let pool = log.pool();
        Ok(match (self, parts.as_slice()) {
            (Self::RetryParked, [projection, key, _]) => {
                let key: Uuid = key.parse().map_err(|_| wrong())?;
                !operations::retry_parked(pool, Some(projection), Some(&[key])).await?.is_empty()
            }
            (Self::Skip, [projection, key, position]) => {
                let key = if key.is_empty() { None } else { Some(key.parse().map_err(|_| wrong())?) };
                let position = Position(position.parse().map_err(|_| wrong())?);
                let skip = Skip { projection, key, position, reason: &confirmed.reason, by: &confirmed.by };
                !operations::skip(pool, skip).await?.is_empty()
            }
            (Self::RetryTodo, [automation, key]) => {
                !operations::retry_todos(pool, automation, Some(&[(*key).to_owned()])).await?.is_empty()
            }
            (Self::Seek, [consumer, topic, partition, to]) => {
                let source = SourcePartition { consumer, topic, partition: partition.parse().map_err(|_| wrong())? };
                operations::seek(pool, source, to.parse().map_err(|_| wrong())?).await?.is_some()
            }
            (Self::Replay | Self::Dismiss, _) => {
                let place: Place = item.parse().map_err(|_| wrong())?;
                let Some(letter) = kafka.dead_letter(&place).await.map_err(failed)? else { return Ok(false) };
                match self {
                    Self::Replay => kafka.replay(&letter).await,
                    _ => kafka.dismiss(&place, &format!("{} ({})", confirmed.reason, confirmed.by)).await,
                }
                .map_err(|error| match error {
                    OperateError::Stub(_) | OperateError::NoSource(_) => {
                        HttpError::refusal(actix_web::http::StatusCode::CONFLICT, "not_now", error.to_string())
                    }
                    other => failed(other),
                })?;
                true
            }
            _ => return Err(wrong()),
        })
    }
}

/// Asks before something is done about one or many: a page.
#[utoipa::path(operation_id = "ask_attention", tag = "internal", params(("act" = String, Path), ("item" = Vec<String>, Query)), responses((status = 200, body = String, content_type = "text/html")))]
#[get("/console/attention/{act}", wrap = "from_fn(framed)")]
pub(crate) async fn ask_route(path: Path<String>, request: HttpRequest) -> Result<Page<Confirm>, HttpError> {
    let act = Act::find(&path)?;
    let items = Query::of(&request).all("item");
    if items.is_empty() {
        return Err(HttpError::new(ErrorCode::InvalidQuery, "item in the query: choose at least one"));
    }
    Ok(Page(Confirm {
        frame: Frame::still("Attention", act.title()),
        consequences: vec![act.consequence().to_owned()],
        items,
        path: format!("{LIST}/{}", act.path()),
        back: LIST,
    }))
}

/// Does something about one or many, and leads back to what needs attention.
#[utoipa::path(operation_id = "change_attention", tag = "internal", params(("act" = String, Path)), responses((status = 303, description = "To what needs attention."), (status = 403, description = "cross_site", body = service::ErrorBody), (status = 409, description = "not_now", body = service::ErrorBody)))]
#[post("/console/attention/{act}", wrap = "from_fn(framed)")]
pub(crate) async fn change_route(
    path: Path<String>,
    form: Form<Vec<(String, String)>>,
    log: Data<EventStore<DomainEvent>>,
    kafka: Data<Operator>,
    recent: Data<Recent>,
) -> Result<HttpResponse, HttpError> {
    let (act, confirmed) = (Act::find(&path)?, Confirmed::read(form.into_inner())?);
    for item in &confirmed.items {
        let is_done = act.perform(item, &confirmed, &log, &kafka).await;
        recent.forget().await;
        if !is_done? {
            let message = format!("{item} is not there any more; what came before it in the list is done");
            return Err(HttpError::refusal(actix_web::http::StatusCode::CONFLICT, "not_now", message));
        }
        confirmed.record(act.path(), item);
    }
    Ok(see(LIST))
}

#[cfg(test)]
mod tests {
    use cart_events::examples::Shopping;

    use super::*;
    use crate::testing::Console;

    const FORM: [(&str, &str); 2] = [("by", "Ada"), ("reason", "a test")];

    /// Follows a link of the list to the page that asks, and confirms.
    async fn confirm(console: &Console, list: &str, act: Act, has: &str) {
        let start = format!("{LIST}/{}?item=", act.path());
        let mut links = list.match_indices(&start).map(|(at, _)| list[at..].split('"').next().unwrap());
        let link = links.find(|link| link.contains(has)).unwrap_or_else(|| panic!("no {start} with {has} in {list}"));
        let page = console.read(&link.replace("&#38;", "&")).await;
        let item = page.split("name=\"item\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let form = [FORM.as_slice(), &[("item", item.as_str())]].concat();
        assert_eq!(console.post(&format!("{LIST}/{}", act.path()), &form).await, LIST);
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn parked_key_is_retried_and_its_event_skipped() {
        let console = Console::start().await;
        let cart = Shopping::new();
        console.log.append(cart.with_items(1)).await;
        let key = cart.cart_id.uuid();
        let sql = format!(
            "INSERT INTO projection (name, build, version, status, tables) VALUES ('cart_items', 'projection_a', 1, 'serving', '{{}}');
             INSERT INTO parked_key (name, build, key, position, error) VALUES ('cart_items', 'projection_a', '{key}', 2, 'the row is <there>');
             INSERT INTO parked_event (name, build, key, position) VALUES ('cart_items', 'projection_a', '{key}', 2)"
        );
        let pool = console.log.store.pool();
        sqlx::raw_sql(&sql).execute(pool).await.unwrap();
        let list = console.read(LIST).await;
        assert!(list.contains("parked keys in cart_items: 1") && list.contains("the row is &#60;there&#62;"), "{list}");
        confirm(&console, &list, Act::RetryParked, &key.to_string()).await;
        let asked: bool = sqlx::query_scalar("SELECT retry_asked_at IS NOT NULL FROM parked_key").fetch_one(pool).await.unwrap();
        assert!(asked);
        confirm(&console, &list, Act::Skip, &key.to_string()).await;
        let skipped: (i64, String, String) =
            sqlx::query_as("SELECT position, reason, skipped_by FROM skipped_event").fetch_one(pool).await.unwrap();
        assert_eq!(skipped, (2, "a test".to_owned(), "Ada".to_owned()));
        let item = format!("cart_items|{key}|2");
        let form = [FORM.as_slice(), &[("item", item.as_str())]].concat();
        assert_eq!(console.send_form("/console/attention/skip", &form).await, 409, "it was skipped before");
        assert_eq!(console.post_from_another_site("/console/attention/skip", &form).await, 403);
    }

    #[actix_web::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn failed_todos_are_retried_together() {
        let console = Console::start().await;
        let sql = "INSERT INTO projection (name, build, version, status, tables) VALUES ('publish_cart', 'automation', 1, 'serving', '{}');
             INSERT INTO todo (automation, key, position, payload, metadata, status, attempts, last_error)
             SELECT 'publish_cart', 'cart ' || n, n, '{}', '{}', 'failed', 9, 'the broker is away' FROM generate_series(1, 3) AS n";
        let pool = console.log.store.pool();
        sqlx::raw_sql(sql).execute(pool).await.unwrap();
        let list = console.read(LIST).await;
        assert!(list.contains("failed to-dos of publish_cart: 3") && list.contains("the broker is away"), "{list}");
        let asked = console.read("/console/attention/retry-todo?item=publish_cart%7Ccart+1&item=publish_cart%7Ccart+3").await;
        assert!(asked.contains("cart 1") && asked.contains("cart 3") && !asked.contains("cart 2"), "{asked}");
        let form = [FORM.as_slice(), &[("item", "publish_cart|cart 1"), ("item", "publish_cart|cart 3")]].concat();
        console.post("/console/attention/retry-todo", &form).await;
        let failed: Vec<String> = sqlx::query_scalar("SELECT key FROM todo WHERE status = 'failed'").fetch_all(pool).await.unwrap();
        assert_eq!(failed, ["cart 2"]);
        for wrong in ["publish_cart", "a|b|c"] {
            let form = [FORM.as_slice(), &[("item", wrong)]].concat();
            assert_eq!(console.send_form("/console/attention/retry-todo", &form).await, 400, "{wrong}");
        }
        assert_eq!(console.get("/console/attention/retry-todo").await.0, 400, "nothing is chosen");
        assert_eq!(console.get("/console/attention/explode?item=1").await.0, 404);
    }
}
