//! Publish Cart: sends a message for a submitted cart, then appends CartPublished.
//!
//! Kafka and PostgreSQL share no transaction. The message is sent first, and CartPublished is decided when the broker has it. After a crash
//! between the two, the message is sent again with the same `ce_id`, so that a consumer can ignore it.

use std::time::Duration;

use async_trait::async_trait;
use cart_events::{CartId, DomainEvent, OrderedProduct, PublicationStream, SubmittedStream, Total};
use disintegrate::StateQuery;
use event_store::{DecideError, Decided, Decision, EventStore, Metadata, Position, Recorded, State};
use kafka::{CloudEvent, Publisher};
use projections::{
    Automation, Kind, Projection,
    todo::{self, NewTodo, Outcome, Todo},
};
use serde::{Deserialize, Serialize};
use service::{Refusal, command};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

/// The automation.
#[derive(Clone)]
pub(crate) struct PublishCartAutomation {
    pub(crate) log: EventStore<DomainEvent>,
    pub(crate) publisher: Publisher,
    pub(crate) topic: String,
    /// How long a cart is retried after its first attempt while the broker is away.
    pub(crate) deadline: Duration,
    /// The longest time to send a message.
    pub(crate) message_timeout: Duration,
    /// The largest number of attempts at a time.
    pub(crate) concurrency: usize,
}

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
                let message = CartMessage { cart_id, ordered_product: ordered_products, total_price };
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
        todo::enqueue(transaction, Self::NAME, &todos).await
    }
}

/// The message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CartMessage {
    cart_id: CartId,
    /// In the order they were added.
    ordered_product: Vec<OrderedProduct>,
    total_price: Total,
}

/// The payload of a to-do.
#[derive(Debug, Serialize, Deserialize)]
struct Submitted {
    message: CartMessage,
    /// When the cart was submitted, in seconds since 1970.
    at: i64,
    /// The milliseconds of that second.
    millisecond: u16,
}

impl Submitted {
    fn at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.at).ok()?.replace_millisecond(self.millisecond).ok()
    }
}

#[async_trait]
impl Automation for PublishCartAutomation {
    fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// A read, a message and a decision.
    fn longest_attempt(&self) -> Duration {
        let command_timeout = self.log.settings().command_timeout;
        command_timeout + self.message_timeout + command_timeout
    }

    async fn attempt(&self, todo: Todo) -> Outcome {
        let submitted: Submitted = match todo.payload() {
            Ok(submitted) => submitted,
            Err(error) => return Outcome::Failed { error: format!("cannot decode the to-do: {error}") },
        };
        let cart_id = submitted.message.cart_id;
        let Some(append_id) = todo.metadata.append_id else {
            return Outcome::Failed { error: "the to-do does not name the append that submitted the cart".into() };
        };
        // The cart may be published: an attempt may have ended after CartPublished, and a rebuild enqueues every cart again. The decision
        // below starts from the state that this reads.
        match timeout(self.log.settings().command_timeout, self.log.read(Publication::of(cart_id))).await {
            Ok(Ok((Publication { published: true, .. }, _))) => return Outcome::Done,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Outcome::Retry { error: error.to_string() },
            Err(_) => return Outcome::Retry { error: "the log did not answer in time".into() },
        }
        let ce_id = append_id.to_string();
        let metadata = Metadata { causation_id: Some(todo.position.to_string()), ..Metadata::current() };
        let (decided, outcome) = match self.send(&todo, &submitted, &ce_id).await {
            Ok(()) => (command(Self::NAME, self.log.decide_with(&PublishCart { cart_id }, metadata)).await, Outcome::Done),
            Err(error) if !error.is_permanent() && todo.trying_for < self.deadline => return Outcome::Retry { error: error.to_string() },
            Err(error) => {
                let reason = error.to_string();
                let fail = FailPublication { cart_id, reason: reason.clone() };
                (command(Self::NAME, self.log.decide_with(&fail, metadata)).await, Outcome::Failed { error: reason })
            }
        };
        let outcome = match decided {
            Ok(_) => outcome,
            Err(DecideError::Refused(Refused::AlreadyPublished(_))) => Outcome::Done,
            // The to-do says that the cart is submitted, so this log is behind.
            Err(DecideError::Refused(refused @ Refused::NotSubmitted(_))) => return Outcome::Retry { error: refused.to_string() },
            Err(DecideError::Store(error)) => return Outcome::Retry { error: error.to_string() },
        };
        self.publisher.forget(&ce_id);
        outcome
    }
}

impl PublishCartAutomation {
    /// Sends the message, unless the broker has acknowledged it in an earlier attempt of this process. The append's id identifies it: a
    /// restore gives positions out again.
    async fn send(&self, todo: &Todo, submitted: &Submitted, ce_id: &str) -> Result<(), kafka::SendError> {
        let (json, position) = (serde_json::json!(submitted.message).to_string(), todo.position.to_string());
        let event = CloudEvent {
            key: &todo.key,
            id: ce_id,
            source: "/cartlog/publisher",
            event_type: "cartlog.CartSubmitted",
            time: submitted.at(),
            traceparent: todo.metadata.traceparent.as_deref(),
            causation_id: Some(&position),
            json: json.as_bytes(),
        };
        self.publisher.send_once(&self.topic, &event).await
    }
}

/// The command, once the broker has the message.
#[derive(Debug, Clone)]
pub(crate) struct PublishCart {
    cart_id: CartId,
}

/// The command if the broker was away for too long, or rejects the message.
#[derive(Debug, Clone)]
pub(crate) struct FailPublication {
    cart_id: CartId,
    reason: String,
}

/// Why a cart is not published.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the cart {0} is not submitted")]
    NotSubmitted(CartId),
    #[error("the cart {0} is already published")]
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

impl Decision for FailPublication {
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

/// The state of a cart's publication.
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
    use event_store::StoreSettings;
    use kafka::{Brokers, PublisherSettings};
    use projections::{Settings, todo_settings};
    use service::CancellationToken;
    use test_support::{TestLog, given};
    use tokio::sync::watch;

    use super::*;

    fn failed(cart: &Shopping) -> DomainEvent {
        DomainEvent::CartPublicationFailed { cart_id: cart.cart_id, reason: "the broker was away".into() }
    }

    fn fail(cart: &Shopping) -> FailPublication {
        FailPublication { cart_id: cart.cart_id, reason: "the broker was away".into() }
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
            serde_json::json!(CartMessage { cart_id, ordered_product: ordered_products, total_price }),
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
        given(cart.with_items(1).chain([cart.submitted(1)])).when(&fail(&cart)).then([failed(&cart)]);
        given(cart.with_items(1).chain([cart.submitted(1), failed(&cart)])).when(&fail(&cart)).then_nothing();
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
            [given(cart.with_items(1)).when(&PublishCart { cart_id: cart.cart_id }), given(cart.with_items(1)).when(&fail(&cart))]
        {
            refused.then_refused(Refused::NotSubmitted(cart.cart_id));
        }
        for refused in [
            given(submitted().chain([published.clone()])).when(&PublishCart { cart_id: cart.cart_id }),
            given(submitted().chain([published.clone()])).when(&fail(&cart)),
        ] {
            refused.then_refused(Refused::AlreadyPublished(cart.cart_id));
        }
    }

    /// Creates a log with a submitted cart and its to-do, and the automation with a broker that is away.
    async fn enqueued(cart: &Shopping) -> (TestLog<DomainEvent>, PublishCartAutomation) {
        let log = TestLog::create().await;
        log.append(cart.with_items(1).chain([cart.submitted(1)])).await;
        let automation = automation(log.store.clone());
        log.project(automation.clone(), Settings::default()).await;
        (log, automation)
    }

    /// The automation with a broker that is away.
    fn automation(log: EventStore<DomainEvent>) -> PublishCartAutomation {
        let message_timeout = Duration::from_millis(100);
        let brokers = Brokers::new("127.0.0.1:9", "test");
        PublishCartAutomation {
            log,
            publisher: Publisher::new(&PublisherSettings { brokers, message_timeout }).unwrap(),
            topic: "published-carts".into(),
            deadline: Duration::from_secs(3_600),
            message_timeout,
            concurrency: 1,
        }
    }

    fn working(automation: &PublishCartAutomation) -> todo::Settings {
        todo_settings(automation, Settings::default().todo_retention)
    }

    /// Attempts the to-do once, as if it was tried for so long and had `attempts` attempts.
    async fn attempt_once(automation: &PublishCartAutomation, first: &str, attempts: i32) {
        let earlier = "UPDATE todo SET attempts = $1, next_attempt_at = clock_timestamp(), tried_for = $2::interval";
        sqlx::query(earlier).bind(attempts).bind(first).execute(automation.log.pool()).await.unwrap();
        let stop = CancellationToken::new();
        let (_wake, woken) = watch::channel(Position::START);
        let attempt = |todo| {
            stop.cancel();
            let automation = automation.clone();
            async move { automation.attempt(todo).await }
        };
        todo::work(automation.log.pool().clone(), PublishCartAutomation::NAME, working(automation), woken, stop.clone(), attempt).await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn backs_off_from_125_ms_to_a_minute() {
        let (log, automation) = enqueued(&Shopping::new()).await;
        let now = async || -> OffsetDateTime { sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(log.store.pool()).await.unwrap() };
        for (before, most) in [(0, 125), (1, 250), (2, 500), (8, 32_000), (9, 60_000), (10, 60_000), (1_000, 60_000)] {
            let start = now().await;
            attempt_once(&automation, "1 minute", before).await;
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
        let (log, automation) = enqueued(&Shopping::new()).await;
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
            attempt_once(&automation, first, attempts).await;
            assert_eq!(became().await, (status.to_owned(), last.to_owned()), "first tried {first} ago");
        }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo dev test"]
    async fn leases_a_to_do_longer_than_an_attempt() {
        let database = test_support::Database::create().await;
        // The settings allow up to 60 seconds.
        for command_timeout in [10, 5_000, 60_000].map(Duration::from_millis) {
            let settings = StoreSettings { command_timeout, ..StoreSettings::default() };
            let log = EventStore::new(database.options_as("cartlog_publisher"), settings);
            for message_timeout in [100, 5_000, 60_000].map(Duration::from_millis) {
                let automation = PublishCartAutomation { message_timeout, ..automation(log.clone()) };
                assert!(working(&automation).lease > command_timeout + message_timeout + command_timeout);
            }
        }
    }
}
