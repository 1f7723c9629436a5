//! `/lag`: the work that is left, of all processes together, for an autoscaler. KEDA's metrics-api scaler reads a number of this JSON
//! document by its path.
#![allow(unreachable_pub, reason = "the route's macro puts its function inside another")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{get, web};
use event_store::{LogEvent, StoreError};
use futures::future::{BoxFuture, FutureExt};
use projections::{Backlog, Projections, todo::TodoBacklog};
use serde::Serialize;
use tokio::{sync::Mutex, time::timeout};

use super::{
    error::{ErrorBody, HttpError},
    error_code::ErrorCode,
};

/// How long an answer is reused, unless it says otherwise.
const FRESH: Duration = Duration::from_secs(1);
/// How long a reading may take.
const TIMEOUT: Duration = Duration::from_secs(3);

type Read<T> = Box<dyn Fn() -> BoxFuture<'static, Result<T, HttpError>> + Send + Sync>;

/// A reading that is made on request, and reused for a second.
pub struct Cached<T> {
    read: Read<T>,
    fresh: Duration,
    timeout: Duration,
    last: Mutex<Option<(Instant, Arc<T>)>>,
}

impl<T> Cached<T> {
    /// Caches what `read` answers.
    pub fn new<F, Fut, E>(read: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<HttpError>,
    {
        let read: Read<T> = Box::new(move || read().map(|answer| answer.map_err(Into::into)).boxed());
        Self { read, fresh: FRESH, timeout: TIMEOUT, last: Mutex::new(None) }
    }

    /// Reuses an answer for this long.
    #[must_use]
    pub fn fresh_for(self, fresh: Duration) -> Self {
        Self { fresh, ..self }
    }

    /// Answers a reading that is at most a second old, or as old as [`fresh_for`](Self::fresh_for) says.
    ///
    /// # Errors
    /// 503 if the reading fails or takes too long.
    pub async fn get(&self) -> Result<Arc<T>, HttpError> {
        let reading = async {
            // Requests that arrive meanwhile wait here and get the same answer.
            let mut last = self.last.lock().await;
            if let Some((at, answer)) = last.as_ref()
                && at.elapsed() < self.fresh
            {
                return Ok(answer.clone());
            }
            let answer = Arc::new((self.read)().await?);
            *last = Some((Instant::now(), answer.clone()));
            Ok(answer)
        };
        timeout(self.timeout, reading).await.unwrap_or_else(|_| {
            let message = format!("the lag could not be read within {} s; /ready says what the service waits for", self.timeout.as_secs());
            Err(HttpError::new(ErrorCode::Unavailable, message))
        })
    }
}

/// How far the projections and automations of this service are behind, in all its processes together.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Lag {
    /// The largest lag of a projection, in positions of the log. Paused projections do not count: more processes do not help them.
    pub lag: i64,
    /// The age of the first event that is not applied yet, in seconds.
    pub lag_seconds: f64,
    /// The projections and automations by name.
    pub projections: BTreeMap<String, Backlog>,
    /// The to-dos of automations by name.
    pub todos: BTreeMap<String, TodoBacklog>,
}

impl From<BTreeMap<String, Backlog>> for Lag {
    fn from(backlogs: BTreeMap<String, Backlog>) -> Self {
        let at_work = || backlogs.values().filter(|backlog| !backlog.paused);
        let (lag, lag_seconds) =
            (at_work().map(|backlog| backlog.lag).max().unwrap_or(0), at_work().map(|one| one.lag_seconds).fold(0.0, f64::max));
        let todos = backlogs.iter().filter_map(|(name, backlog)| Some((name.clone(), backlog.todos?))).collect();
        Self { lag, lag_seconds, projections: backlogs, todos }
    }
}

impl Lag {
    /// Warnings for an operator, in words.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let of_projections =
            self.projections.iter().flat_map(|(name, of)| [(name, of.blocked, "blocked segments"), (name, of.parked, "parked keys")]);
        let of_todos = self.todos.iter().map(|(name, of)| (name, of.failed, "failed to-dos"));
        let counted = of_projections.chain(of_todos).filter(|(_, number, _)| *number > 0);
        counted.map(|(name, number, what)| format!("{what} of {name}: {number}")).collect()
    }
}

/// Reads how far the projections of all processes are behind. [`route`] answers from it.
pub(crate) fn of<E: LogEvent>(projections: &Projections<E>) -> Cached<Lag> {
    let projections = projections.clone();
    Cached::new(move || {
        let projections = projections.clone();
        async move { projections.backlog().await.map(Lag::from) as Result<_, StoreError> }
    })
}

/// Answers how far all processes of the service together are behind. The answer is at most a second old.
#[utoipa::path(
    operation_id = "lag",
    tag = "internal",
    responses(
        (status = 200, body = Lag),
        (status = 503, description = "unavailable, busy", body = ErrorBody)
    )
)]
#[get("/lag")]
pub async fn route(lag: web::Data<Cached<Lag>>) -> Result<web::Json<Lag>, HttpError> {
    Ok(web::Json(Lag::clone(&*lag.get().await?)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn concurrent_requests_share_one_reading() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let cached = Cached::new(move || {
            let asked = count.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::task::yield_now().await;
                if asked == 0 { Err(HttpError::new(ErrorCode::Unavailable, "not yet")) } else { Ok(asked) }
            }
        });
        assert!(cached.get().await.is_err(), "a failure is not cached");
        let all = futures::future::join_all((0..20).map(|_| cached.get())).await;
        assert!(all.iter().all(|one| one.as_ref().is_ok_and(|asked| **asked == 1)));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn slow_reading_times_out() {
        let pending = Cached::new(std::future::pending::<Result<(), HttpError>>);
        let cached = Cached { timeout: Duration::from_millis(1), ..pending };
        let error = cached.get().await.unwrap_err();
        assert!(error.to_string().contains("could not be read within"), "{error}");
    }

    #[test]
    fn lag_is_the_largest_of_those_not_paused() {
        let of = |lag, paused, waiting| Backlog {
            lag,
            lag_seconds: lag as f64 / 10.0,
            paused,
            segments: 8,
            owned: 8,
            replicas: 2,
            events_per_second: 120.5,
            batch: 2.5,
            parked: 1,
            blocked: 0,
            rebuild: None,
            todos: waiting,
        };
        let waiting = TodoBacklog { open: 3, due: 2, failed: 1, oldest: Some(7.5) };
        let backlogs = [("carts", of(20, false, None)), ("archive", of(30, false, Some(waiting))), ("prices", of(900, true, None))];
        let lag = Lag::from(BTreeMap::from(backlogs.map(|(name, backlog)| (name.to_owned(), backlog))));
        assert_eq!((lag.lag, lag.lag_seconds), (30, 3.0));
        let parked = ["archive", "carts", "prices"].map(|name| format!("parked keys of {name}: 1"));
        assert_eq!(lag.warnings(), [&parked[..], &["failed to-dos of archive: 1".to_owned()]].concat());
        let json = serde_json::to_value(&lag).unwrap();
        assert_eq!(json["todos"], serde_json::json!({ "archive": { "open": 3, "due": 2, "failed": 1, "oldest_seconds": 7.5 } }));
        assert_eq!(json["projections"]["prices"]["lag"], 900);
        let throughput = (&json["projections"]["carts"]["events_per_second"], &json["projections"]["carts"]["batch"]);
        assert_eq!(throughput, (&serde_json::json!(120.5), &serde_json::json!(2.5)));
        assert!(json["projections"]["prices"].get("rebuild").is_none());
    }
}
