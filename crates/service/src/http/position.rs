//! Positions in queries: read your own writes, or read the past.

use std::{
    fmt,
    future::{Ready, pending, ready},
    time::Duration,
};

use actix_web::{FromRequest, HttpMessage as _, HttpRequest, dev::Payload, web::Data};
use event_store::{EventStore, LogEvent, Position, States, Wait};
use projections::{ProjectionError, Projections, Query};
use sqlx::{FromRow, postgres::PgRow};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;
use uuid::Uuid;

use super::{error::HttpError, error_code::ErrorCode, query::number, streamed::Streamed};

/// How long a query waits unless it says otherwise, in seconds.
const DEFAULT_TIMEOUT: i64 = 5;
/// The longest time that a query may wait, in seconds.
const MAX_TIMEOUT: i64 = 30;
/// How long a query waits for a position before it asks whether the log has it. A process learns of a position within some milliseconds.
const SOON: Duration = Duration::from_millis(50);
/// How long a query still waits when its process is stopping. Another process answers the client's next try.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The query parameters `min_position` and `timeout`: the position that an answer must include, and how long to wait for it.
///
/// A value that cannot be read is refused with 400 `invalid_query`. A position that is not reached in time is 503 `behind`.
#[derive(Clone, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MinPosition {
    /// The answer includes the log up to this position, such as the one that a command answered. The query waits for it.
    #[param(value_type = Option<i64>, minimum = 0)]
    min_position: Position,
    /// How long to wait, in whole seconds. Then the answer is 503.
    #[param(value_type = Option<u32>, minimum = 0, maximum = 30, default = 5)]
    timeout: Duration,
    #[param(ignore)]
    draining: Draining,
    /// None if the answer is no stream.
    #[param(ignore)]
    streamed: Option<Streamed>,
}

impl fmt::Debug for MinPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MinPosition").field("min_position", &self.min_position).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Tells queries that the process is stopping.
#[derive(Clone, Default)]
pub(crate) struct Draining {
    begun: CancellationToken,
    /// The time that running requests may take.
    deadline: Duration,
}

impl Draining {
    pub(crate) fn new(deadline: Duration) -> Self {
        Self { begun: CancellationToken::new(), deadline }
    }

    pub(crate) fn begin(&self) {
        self.begun.cancel();
    }

    /// Completes when the process is stopping.
    pub(crate) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Completes when queries must not wait any longer.
    async fn waits_end(&self) {
        self.begun.cancelled().await;
        sleep(LAST_WAIT.min(self.deadline / 2)).await;
    }
}

/// The query parameter `at`: read what the answer was when the log ended at this position.
#[derive(Debug, Clone, Copy, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct At {
    /// Answers as when the log ended at this position. The query waits for it as for `min_position`.
    #[param(value_type = Option<i64>, minimum = 0)]
    pub at: Option<Position>,
}

impl MinPosition {
    /// Waits until a projection has reached the position for a key, or for every key without one. Then reads rows of it.
    ///
    /// # Errors
    /// 503 if it does not reach the position in time, if the log does not have it, if a key is parked, or if the database is away.
    pub async fn projected<E: LogEvent, R: for<'r> FromRow<'r, PgRow>>(
        self,
        projections: &Projections<E>,
        name: &'static str,
        key: Option<Uuid>,
        query: Query,
    ) -> Result<Vec<R>, HttpError> {
        let read = async |timeout| projections.read_from(name, key, self.min_position, timeout, &query).await;
        let read = tokio::select! {
            biased;
            read = self.wait(read) => read,
            end = end_before(projections.store(), self.min_position) => return Err(beyond(end, self.min_position)),
        };
        match read {
            Err(ProjectionError::Behind(position)) => Err(self.behind(name, position, self.min_position)),
            read => {
                let (rows, complete_to) = read?;
                self.answered(complete_to, key.is_none());
                Ok(rows)
            }
        }
    }

    /// Folds states from the log, which has the position, as they are now or as they were `at` a position. `query` names the wait in the
    /// metrics.
    ///
    /// # Errors
    /// 503 if the log does not have the position, or is away.
    pub async fn live<E: LogEvent, S: States<E>>(
        self,
        log: &EventStore<E>,
        query: &'static str,
        states: S,
        at: At,
    ) -> Result<S::View, HttpError> {
        let wanted = self.min_position.max(at.at.unwrap_or_default());
        if wanted > Position::START
            && let Wait::TimedOut(end) = log.wait(query, wanted, Duration::ZERO).await?
        {
            return Err(beyond(end, wanted));
        }
        let (view, complete_to) = match at.at {
            Some(at) => log.read_at(states, at).await?,
            None => log.read(states).await?,
        };
        // The log may have been restored to an earlier position meanwhile.
        if complete_to < at.at.unwrap_or(wanted) {
            return Err(beyond(complete_to, wanted));
        }
        self.answered(complete_to, false);
        Ok(view)
    }

    fn answered(&self, complete_to: Position, of_every_key: bool) {
        if let Some(streamed) = &self.streamed {
            streamed.answered(complete_to, of_every_key);
        }
    }

    /// Waits as long as the client allows and the process runs.
    async fn wait<T, F>(&self, wait: impl AsyncFn(Duration) -> Result<T, F>) -> Result<T, F> {
        tokio::select! {
            waited = wait(self.timeout) => waited,
            () = self.draining.waits_end() => wait(Duration::ZERO).await,
        }
    }

    fn behind(&self, what: &str, position: Position, wanted: Position) -> HttpError {
        let bound = match self.draining.begun.is_cancelled() {
            true => "before this process stops".to_owned(),
            false => format!("within {} s", self.timeout.as_secs()),
        };
        let message = format!("{what} reached position {position} but not {wanted} {bound}; try again");
        HttpError::new(ErrorCode::Behind, message).expected()
    }
}

/// Completes if the log ends before a position, with the end. A command answers a position that the log has, so it is of no use to wait for
/// another one; and whoever made it up would hold a place for as long as a query may wait.
async fn end_before<E: LogEvent>(log: &EventStore<E>, wanted: Position) -> Position {
    let mut newest = log.head_watcher().subscribe();
    if timeout(SOON, newest.wait_for(|newest| *newest >= wanted)).await.is_err()
        && let Ok(_permit) = log.read_permit().await
        && let Ok(end) = log.head().await
        && end < wanted
    {
        return end;
    }
    // The query says what is wrong.
    pending().await
}

fn beyond(end: Position, wanted: Position) -> HttpError {
    let message = format!("the log ends at position {end}, before {wanted}; try again, with a position that a command answered");
    HttpError::new(ErrorCode::Behind, message).expected()
}

impl FromRequest for MinPosition {
    type Error = HttpError;
    type Future = Ready<Result<Self, HttpError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let read = || {
            let streamed = request.extensions().get::<Streamed>().cloned();
            let min_position = position(request, "min_position")?.unwrap_or_default();
            let timeout = number(request, "timeout", 0, MAX_TIMEOUT)?.unwrap_or(DEFAULT_TIMEOUT);
            let (min_position, timeout) = match &streamed {
                None => (min_position, timeout),
                Some(streamed) if streamed.is_first => (min_position.max(streamed.least), timeout),
                Some(streamed) => (streamed.least, MAX_TIMEOUT),
            };
            let draining = request.app_data::<Data<Draining>>().map(|draining| Draining::clone(draining)).unwrap_or_default();
            Ok(Self { min_position, timeout: Duration::from_secs(timeout.unsigned_abs()), draining, streamed })
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
    Ok(number(request, name, 0, i64::MAX)?.map(Position))
}
