//! Publish Cart: a submitted cart becomes a message, and then CartPublished.
//!
//! Kafka and PostgreSQL share no transaction. The message is sent first, and CartPublished decided once the broker has it: a crash between
//! the two sends the message again, with the same `ce_id`, by which a consumer knows it.

use std::time::Duration;

use async_trait::async_trait;
use cart_events::{CartId, DomainEvent, OrderedProduct, PublicationStream, SubmittedStream, Total};
use disintegrate::StateQuery;
use event_store::{DecideError, Decided, Decision, EventStore, Metadata, Position, Recorded, State};
use kafka::{CloudEvent, Publisher};
use projections::{
    Kind, Projection,
    todo::{self, NewTodo, Outcome, Todo},
};
use serde::{Deserialize, Serialize};
use service::{Refusal, command};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

/// Asks for a to-do for each submitted cart.
pub(crate) struct PublishCartAutomation;

#[async_trait]
impl Projection for PublishCartAutomation {
    type Log = DomainEvent;
    type Event = SubmittedStream;
    const NAME: &'static str = "publish_cart";
    const KIND: Kind = Kind::Automation;
    const TABLES: &'static [&'static str] = &[];
    const KEYED_BY: Option<&'static str> = Some("cart_id");

    fn key(event: &SubmittedStream) -> Option<Uuid> {
        let SubmittedStream::CartSubmitted { cart_id, .. } = event;
        Some(cart_id.uuid())
    }

    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<SubmittedStream>]) -> Result<(), sqlx::Error> {
        let todos: Vec<_> = batch
            .iter()
            .map(|event| {
                let SubmittedStream::CartSubmitted { cart_id, ordered_products, total_price } = event.event.clone();
                let message = Message { cart_id, ordered_product: ordered_products, total_price };
                NewTodo {
                    key: cart_id.to_string(),
                    position: event.position,
                    payload: serde_json::json!(Submitted {
                        message,
                        at: event.recorded_at.unix_timestamp(),
                        millisecond: event.recorded_at.millisecond(),
                    }),
                    metadata: event.metadata.clone(),
                }
            })
            .collect();
        todo::ask(transaction, Self::NAME, &todos).await
    }
}

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    cart_id: CartId,
    /// In the order they were added.
    ordered_product: Vec<OrderedProduct>,
    total_price: Total,
}

/// What a to-do keeps.
#[derive(Debug, Serialize, Deserialize)]
struct Submitted {
    message: Message,
    /// When the cart was submitted, in seconds since 1970.
    at: i64,
    /// The milliseconds of that second; to-dos of a release before this one have none.
    #[serde(default)]
    millisecond: u16,
}

impl Submitted {
    fn at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.at).ok()?.replace_millisecond(self.millisecond).ok()
    }
}

/// What it takes to publish.
#[derive(Clone)]
pub(crate) struct Publishing {
    pub(crate) log: EventStore<DomainEvent>,
    pub(crate) publisher: Publisher,
    pub(crate) topic: String,
    /// For how long, from the first attempt, a broker that is away is waited for.
    pub(crate) deadline: Duration,
    /// The most that one send may take.
    pub(crate) message_timeout: Duration,
    /// The most that a read may take, and a decision.
    pub(crate) command_timeout: Duration,
}

/// What a lease has beyond the longest attempt: for librdkafka, which looks every second what has timed out, and to write the outcome down.
const LEASE_RESERVE: Duration = Duration::from_secs(3);

impl Publishing {
    /// How the to-dos are worked. Nobody else takes one up while an attempt at it may go on: it would send the message once more.
    pub(crate) fn working(&self, concurrency: usize) -> todo::Settings {
        todo::Settings { lease: self.longest_attempt() + LEASE_RESERVE, concurrency, ..todo::Settings::default() }
    }

    /// It reads, sends and decides.
    fn longest_attempt(&self) -> Duration {
        self.command_timeout + self.message_timeout + self.command_timeout
    }

    /// Publishes a to-do's cart, unless that was done.
    pub(crate) async fn attempt(self, todo: Todo) -> Outcome {
        let submitted: Submitted = match todo.payload() {
            Ok(submitted) => submitted,
            Err(error) => return Outcome::Failed { error: format!("the to-do cannot be read: {error}") },
        };
        let cart_id = submitted.message.cart_id;
        // Before sending: after a crash between the log and the to-do, the message is not sent once more.
        match timeout(self.command_timeout, self.log.read(Publication::of(cart_id))).await {
            Ok(Ok((Publication { published: true, .. }, _))) => return Outcome::Done,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Outcome::Retry { error: error.to_string() },
            Err(_) => return Outcome::Retry { error: "the log did not answer in time".into() },
        }
        let metadata = Metadata { causation_id: Some(todo.position.to_string()), ..Metadata::current() };
        let (decided, outcome) = match self.send(&todo, &submitted).await {
            Ok(()) => (command(PublishCartAutomation::NAME, self.log.decide_with(&PublishCart { cart_id }, metadata)).await, Outcome::Done),
            Err(error) if !error.is_permanent() && todo.trying_for < self.deadline => return Outcome::Retry { error: error.to_string() },
            Err(error) => {
                let reason = error.to_string();
                let give_up = GiveUpPublication { cart_id, reason: reason.clone() };
                (command(PublishCartAutomation::NAME, self.log.decide_with(&give_up, metadata)).await, Outcome::Failed { error: reason })
            }
        };
        match decided {
            Ok(_) => outcome,
            Err(DecideError::Refused(Refused::AlreadyPublished(_))) => Outcome::Done,
            Err(DecideError::Refused(refused)) => Outcome::Failed { error: refused.to_string() },
            Err(DecideError::Store(error)) => Outcome::Retry { error: error.to_string() },
        }
    }

    async fn send(&self, todo: &Todo, submitted: &Submitted) -> Result<(), kafka::SendError> {
        let json = serde_json::json!(submitted.message).to_string();
        self.publisher
            .send(
                &self.topic,
                &CloudEvent {
                    key: &todo.key,
                    id: &todo.position.to_string(),
                    source: "/cartlog/publisher",
                    event_type: "cartlog.CartSubmitted",
                    time: submitted.at(),
                    traceparent: todo.metadata.traceparent.as_deref(),
                    json: json.as_bytes(),
                },
            )
            .await
    }
}

/// The command, once the broker has the message.
#[derive(Debug, Clone)]
pub(crate) struct PublishCart {
    cart_id: CartId,
}

/// The command where the broker was away for too long, or never takes the message.
#[derive(Debug, Clone)]
pub(crate) struct GiveUpPublication {
    cart_id: CartId,
    reason: String,
}

/// Why a cart is not published.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the cart {0} is not submitted")]
    NotSubmitted(CartId),
    #[error("the cart {0} is published already")]
    AlreadyPublished(CartId),
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::NotSubmitted(_) => "cart_not_submitted",
            Self::AlreadyPublished(_) => "cart_published",
        }
    }
}

impl Decision for PublishCart {
    type Event = DomainEvent;
    type StateQuery = Publication;
    type Error = Refused;

    fn state_query(&self) -> Publication {
        Publication::of(self.cart_id)
    }

    fn process(&self, state: &Publication) -> Result<Decided<DomainEvent>, Refused> {
        state.check()?;
        Ok(Decided::Events(vec![DomainEvent::CartPublished { cart_id: self.cart_id }]))
    }
}

impl Decision for GiveUpPublication {
    type Event = DomainEvent;
    type StateQuery = Publication;
    type Error = Refused;

    fn state_query(&self) -> Publication {
        Publication::of(self.cart_id)
    }

    fn process(&self, state: &Publication) -> Result<Decided<DomainEvent>, Refused> {
        state.check()?;
        if state.failed {
            return Ok(Decided::Nothing);
        }
        Ok(Decided::Events(vec![DomainEvent::CartPublicationFailed { cart_id: self.cart_id, reason: self.reason.clone() }]))
    }
}

/// What has become of a cart's publication.
#[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
#[state_query(PublicationStream)]
pub(crate) struct Publication {
    #[id]
    cart_id: CartId,
    submitted: bool,
    published: bool,
    failed: bool,
}

impl Publication {
    fn of(cart_id: CartId) -> Self {
        Self { cart_id, submitted: false, published: false, failed: false }
    }

    fn check(&self) -> Result<(), Refused> {
        match self {
            Self { submitted: false, .. } => Err(Refused::NotSubmitted(self.cart_id)),
            Self { published: true, .. } => Err(Refused::AlreadyPublished(self.cart_id)),
            _ => Ok(()),
        }
    }
}

impl State for Publication {
    fn mutate(&mut self, event: PublicationStream, _: Position) {
        match event {
            PublicationStream::CartSubmitted { .. } => self.submitted = true,
            PublicationStream::CartPublished { .. } => self.published = true,
            PublicationStream::CartPublicationFailed { .. } => self.failed = true,
        }
    }
}

#[cfg(test)]
mod specifications {
    use cart_events::examples::Shopping;
    use kafka::{Brokers, PublisherSettings};
    use projections::Settings;
    use service::CancellationToken;
    use test_support::{TestLog, given};
    use tokio::sync::watch;

    use super::*;

    fn failed(cart: &Shopping) -> DomainEvent {
        DomainEvent::CartPublicationFailed { cart_id: cart.cart_id, reason: "the broker was away".into() }
    }

    fn give_up(cart: &Shopping) -> GiveUpPublication {
        GiveUpPublication { cart_id: cart.cart_id, reason: "the broker was away".into() }
    }

    #[test]
    fn publishes_a_submitted_cart() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1)]))
            .when(&PublishCart { cart_id: cart.cart_id })
            .then([DomainEvent::CartPublished { cart_id: cart.cart_id }]);
    }

    #[test]
    fn sends_ordered_products_and_total() {
        let cart = Shopping::new();
        let DomainEvent::CartSubmitted { cart_id, ordered_products, total_price } = cart.submitted(2) else { unreachable!() };
        assert_eq!(
            serde_json::json!(Message { cart_id, ordered_product: ordered_products, total_price }),
            serde_json::json!({
                "cart_id": cart.cart_id,
                "ordered_product": [
                    {"product_id": cart.product(0), "price": "10.10"},
                    {"product_id": cart.product(1), "price": "11.10"},
                ],
                "total_price": "21.20",
            })
        );
    }

    #[test]
    fn fails_a_publication() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1)])).when(&give_up(&cart)).then([failed(&cart)]);
        given(cart.with_items(1).chain([cart.submitted(1), failed(&cart)])).when(&give_up(&cart)).then_nothing();
    }

    #[test]
    fn publishes_after_a_failed_publication() {
        let cart = Shopping::new();
        given(cart.with_items(1).chain([cart.submitted(1), failed(&cart)]))
            .when(&PublishCart { cart_id: cart.cart_id })
            .then([DomainEvent::CartPublished { cart_id: cart.cart_id }]);
    }

    #[test]
    fn refuses_an_unsubmitted_or_published_cart() {
        let cart = Shopping::new();
        let published = DomainEvent::CartPublished { cart_id: cart.cart_id };
        let submitted = || cart.with_items(1).chain([cart.submitted(1)]);
        for refused in
            [given(cart.with_items(1)).when(&PublishCart { cart_id: cart.cart_id }), given(cart.with_items(1)).when(&give_up(&cart))]
        {
            refused.then_refused(Refused::NotSubmitted(cart.cart_id));
        }
        for refused in [
            given(submitted().chain([published.clone()])).when(&PublishCart { cart_id: cart.cart_id }),
            given(submitted().chain([published.clone()])).when(&give_up(&cart)),
        ] {
            refused.then_refused(Refused::AlreadyPublished(cart.cart_id));
        }
    }

    /// A log with a submitted cart, and its to-do.
    async fn asked(cart: &Shopping) -> TestLog<DomainEvent> {
        let log = TestLog::create().await;
        log.append(cart.with_items(1).chain([cart.submitted(1)])).await;
        log.project(PublishCartAutomation, Settings::default()).await;
        log
    }

    /// To a broker that is away.
    fn publishing(log: &TestLog<DomainEvent>) -> Publishing {
        let message_timeout = Duration::from_millis(100);
        let brokers = Brokers::new("127.0.0.1:9", "test");
        Publishing {
            log: log.store.clone(),
            publisher: Publisher::new(&PublisherSettings { brokers, message_timeout }).unwrap(),
            topic: "published-carts".into(),
            deadline: Duration::from_secs(3_600),
            message_timeout,
            command_timeout: Duration::from_secs(5),
        }
    }

    /// Works the to-do once, as if it was first tried so long ago, and had been tried so often.
    async fn attempted(publishing: &Publishing, first: &str, attempts: i32) {
        let earlier = "UPDATE todo SET attempts = $1, next_attempt_at = clock_timestamp(),
                       first_attempt_at = CASE WHEN $1 > 0 THEN clock_timestamp() - $2::interval END";
        sqlx::query(earlier).bind(attempts).bind(first).execute(publishing.log.pool()).await.unwrap();
        let stop = CancellationToken::new();
        let (_asking, asked) = watch::channel(Position::START);
        let attempt = |todo| {
            stop.cancel();
            publishing.clone().attempt(todo)
        };
        let (pool, working) = (publishing.log.pool().clone(), publishing.working(1));
        todo::work(pool, PublishCartAutomation::NAME, working, asked, stop.clone(), attempt).await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn backs_off_from_125_ms_to_a_minute() {
        let log = asked(&Shopping::new()).await;
        let publishing = publishing(&log);
        let now = async || -> OffsetDateTime { sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(log.store.pool()).await.unwrap() };
        for (before, most) in [(0, 125), (1, 250), (2, 500), (8, 32_000), (9, 60_000), (10, 60_000), (1_000, 60_000)] {
            let start = now().await;
            attempted(&publishing, "1 minute", before).await;
            let (attempts, next): (i32, OffsetDateTime) =
                sqlx::query_as("SELECT attempts, next_attempt_at FROM todo WHERE status = 'open' AND last_error IS NOT NULL")
                    .fetch_one(log.store.pool())
                    .await
                    .unwrap();
            assert_eq!(attempts, before + 1);
            let most = time::Duration::milliseconds(most);
            assert!(next - start >= most / 2, "after {attempts} attempts: {}", next - start);
            assert!(next - now().await <= most, "after {attempts} attempts: {next}");
        }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn fails_an_hour_after_the_first_attempt() {
        let log = asked(&Shopping::new()).await;
        let publishing = publishing(&log);
        let became = async || {
            let status: String = sqlx::query_scalar("SELECT status FROM todo").fetch_one(log.store.pool()).await.unwrap();
            let last: String = sqlx::query_scalar("SELECT event_type FROM event ORDER BY event_id DESC LIMIT 1")
                .fetch_one(log.store.pool())
                .await
                .unwrap();
            (status, last)
        };
        for (first, attempts, status, last) in [
            ("0", 0, "open", "CartSubmitted"),
            ("59 minutes", 70, "open", "CartSubmitted"),
            ("1 hour", 71, "failed", "CartPublicationFailed"),
        ] {
            attempted(&publishing, first, attempts).await;
            assert_eq!(became().await, (status.to_owned(), last.to_owned()), "first tried {first} ago");
        }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn leases_a_to_do_longer_than_an_attempt() {
        let log = TestLog::create().await;
        // 60 seconds is the most that the setting allows.
        for command_timeout in [10, 5_000, 60_000].map(Duration::from_millis) {
            for message_timeout in [100, 5_000, 60_000].map(Duration::from_millis) {
                let publishing = Publishing { command_timeout, message_timeout, ..publishing(&log) };
                assert!(publishing.working(1).lease > command_timeout + message_timeout + command_timeout);
            }
        }
    }
}
