//! Positions in queries: to read no less than what one has written, and to read what was.

use std::{
    fmt,
    future::{Ready, ready},
    time::Duration,
};

use actix_web::{FromRequest, HttpRequest, dev::Payload, web::Data};
use event_store::{EventStore, LogEvent, Position, States, StoreError, Wait};
use projections::Projections;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;
use utoipa::IntoParams;
use uuid::Uuid;

use super::error::HttpError;

/// Seconds that a query waits where it does not say for how long, and at the most.
const TIMEOUT: u64 = 5;
const MAX_TIMEOUT: u64 = 30;
/// For how long a query still waits once its process answers only what it has in hand. What is waited for nearly always comes within this;
/// and whoever asks again is answered by another process.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// From where on the log must have been taken into an answer, and how long that may be waited for: `min_position` and `timeout` of every
/// query.
///
/// What cannot be read is refused with 400 `invalid_query` and a message that names the parameter and what it should be. An answer that
/// does not get there in time is 503 `behind`, with how far it has come.
#[derive(Clone, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MinPosition {
    /// The answer takes in the log up to this position at least, as a command answered it: waited for, where it is not there yet.
    #[param(value_type = Option<i64>, minimum = 0)]
    min_position: Position,
    /// For how long, in whole seconds; then the answer is 503.
    #[param(value_type = Option<u32>, minimum = 0, maximum = 30, default = 5)]
    timeout: Duration,
    #[param(ignore)]
    draining: Draining,
}

impl fmt::Debug for MinPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MinPosition").field("min_position", &self.min_position).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// From when on the process answers only the requests that it has in hand.
#[derive(Clone, Default)]
pub(crate) struct Draining {
    begun: CancellationToken,
    /// For how long that may take.
    deadline: Duration,
}

impl Draining {
    pub(crate) fn new(deadline: Duration) -> Self {
        Self { begun: CancellationToken::new(), deadline }
    }

    pub(crate) fn begin(&self) {
        self.begun.cancel();
    }

    /// Comes when queries should not wait any longer.
    async fn long_enough(&self) {
        self.begun.cancelled().await;
        sleep(LAST_WAIT.min(self.deadline / 2)).await;
    }
}

/// `at`, a position: the answer is what it was when the log ended there.
#[derive(Debug, Clone, Copy, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct At {
    /// What was there when the log ended at this position; waited for as `min_position` is.
    #[param(value_type = Option<i64>, minimum = 0)]
    pub at: Option<Position>,
}

impl MinPosition {
    /// Waits until a projection has come so far: for a key, or where there is none for every key.
    ///
    /// # Errors
    /// 503 where it has not in time, will not as a key is parked, or the database is away.
    pub async fn projected<E: LogEvent>(
        self,
        projections: &Projections<E>,
        name: &'static str,
        key: Option<Uuid>,
    ) -> Result<(), HttpError> {
        if self.min_position == Position::START {
            return Ok(());
        }
        match self.waits(async |timeout| projections.wait(name, key, self.min_position, timeout).await).await? {
            projections::Wait::Reached => Ok(()),
            projections::Wait::TimedOut(position) => Err(self.behind(name, position, self.min_position)),
            projections::Wait::Parked(key) => Err(HttpError::parked(name, key)),
        }
    }

    /// Folds states from the log when it has come so far, as they are then, or as they were at a position. The query is counted under
    /// its name.
    ///
    /// # Errors
    /// 503 where the log has not come so far in time, or is away.
    pub async fn live<E: LogEvent, S: States<E>>(
        self,
        log: &EventStore<E>,
        query: &'static str,
        states: S,
        at: At,
    ) -> Result<S::View, HttpError> {
        let wanted = self.min_position.max(at.at.unwrap_or_default());
        if wanted > Position::START
            && let Wait::TimedOut(position) = self.waits(async |timeout| log.wait(query, wanted, timeout).await).await?
        {
            return Err(self.behind("the log", position, wanted));
        }
        let (view, complete_to) = match at.at {
            Some(at) => log.read_at(states, at).await?,
            None => log.read(states).await?,
        };
        // Whatever was known of it: it may have been restored since.
        if complete_to < at.at.unwrap_or(wanted) {
            return Err(self.behind("the log", complete_to, wanted));
        }
        Ok(view)
    }

    /// Waits for as long as the client said, and no longer than the process is there.
    async fn waits<T>(&self, wait: impl AsyncFn(Duration) -> Result<T, StoreError>) -> Result<T, StoreError> {
        tokio::select! {
            waited = wait(self.timeout) => waited,
            () = self.draining.long_enough() => wait(Duration::ZERO).await,
        }
    }

    fn behind(&self, what: &str, position: Position, wanted: Position) -> HttpError {
        let bound = match self.timeout.as_secs() {
            _ if self.draining.begun.is_cancelled() => "before this process stops".to_owned(),
            1 => "within a second".to_owned(),
            seconds => format!("within {seconds} seconds"),
        };
        let message = format!("{what} has come to position {position}, and not to {wanted} {bound}; try again");
        HttpError::unavailable(message).code("behind").expected()
    }
}

impl FromRequest for MinPosition {
    type Error = HttpError;
    type Future = Ready<Result<Self, HttpError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let read = || {
            let min_position = position(request, "min_position")?.unwrap_or_default();
            let timeout = number(request, "timeout", MAX_TIMEOUT)?.unwrap_or(TIMEOUT);
            let draining = request.app_data::<Data<Draining>>().map(|draining| Draining::clone(draining)).unwrap_or_default();
            Ok(Self { min_position, timeout: Duration::from_secs(timeout), draining })
        };
        ready(read())
    }
}

impl FromRequest for At {
    type Error = HttpError;
    type Future = Ready<Result<Self, HttpError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(position(request, "at").map(|at| Self { at }))
    }
}

fn position(request: &HttpRequest, name: &str) -> Result<Option<Position>, HttpError> {
    let number = number(request, name, i64::MAX.unsigned_abs())?;
    Ok(number.and_then(|number| i64::try_from(number).ok()).map(Position))
}

/// A parameter of the query that is a whole number up to `most`.
fn number(request: &HttpRequest, name: &str, most: u64) -> Result<Option<u64>, HttpError> {
    let refused = |message: String| HttpError::bad_request("invalid_query", format!("{name} in the query: {message}"));
    let mut given = form_urlencoded::parse(request.query_string().as_bytes()).filter(|(key, _)| key == name);
    let Some((_, text)) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(refused("must be given once".to_owned()));
    }
    // Of digits alone: Rust's reading takes a plus sign too.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse().ok().filter(|number| digits && *number <= most) {
        Some(number) => Ok(Some(number)),
        None => Err(refused(format!("must be a whole number from 0 to {most}"))),
    }
}
