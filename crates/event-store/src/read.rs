//! Reading: one statement answers the matching events *and* the head of the same snapshot.

use std::time::Duration;

use sqlx::{Row, postgres::PgRow};
use tokio::time::{Instant, timeout_at};

use crate::{
    Known, LogEvent, Position, StoreError,
    decide::WithIds,
    event::decode,
    lookup::{Found, LookupColumns, placeholders},
    metrics::METRICS,
    projection::Waited,
    state::{AnyPart, Stages, States},
    store::{EventStore, in_time},
};

/// The head, as a row with no lookup, and what the lookups find: in one statement, so in one snapshot.
pub(crate) fn sql(ids: usize) -> String {
    format!(
        "SELECT NULL::integer AS lookup, coalesce(max(e.event_id), 0) AS event_id, NULL AS event_type, NULL AS payload, false AS more \
         FROM event e \
         UNION ALL SELECT lookup, event_id, event_type, payload, more FROM event_matching({})",
        placeholders(1, 3 + ids)
    )
}

/// What a call found, and the head of the snapshot it saw.
pub(crate) struct Answer {
    pub(crate) head: i64,
    pub(crate) found: Vec<Found>,
}

impl Answer {
    pub(crate) fn from_rows(rows: &[PgRow]) -> Result<Self, sqlx::Error> {
        let mut answer = Self { head: 0, found: Vec::with_capacity(rows.len()) };
        for row in rows {
            match row.try_get::<Option<i32>, _>(0)? {
                None => answer.head = row.try_get(1)?,
                Some(lookup) => answer.found.push(Found {
                    lookup: usize::try_from(lookup).unwrap_or_default(),
                    position: row.try_get(1)?,
                    payload: row.try_get(3)?,
                    more: row.try_get(4)?,
                }),
            }
        }
        Ok(answer)
    }

    /// As it would have been when the log ended at `at`. An answer that was cut beyond that has all there is up to there.
    fn end_at(&mut self, at: Position) {
        self.head = self.head.min(at.0);
        self.found.retain(|found| found.position <= at.0);
    }
}

/// Gives each part what was found for its lookups. `first` is the answer's index of the parts' first lookup. Returns whether every
/// part is complete up to the answer's head.
pub(crate) fn fold<E: LogEvent>(parts: &mut [&mut dyn AnyPart<E>], first: usize, answer: &Answer) -> Result<bool, StoreError> {
    let mut complete = true;
    let mut next = first;
    for part in parts {
        let lookups = next..next + part.criteria().lookups.len();
        next = lookups.end;
        let mut found: Vec<&Found> = answer.found.iter().filter(|f| lookups.contains(&f.lookup)).collect();
        // A cut answer is complete only up to where it was cut; what other lookups found beyond that is not taken yet.
        let cut = found.iter().filter(|f| f.more).map(|f| f.position).min();
        let complete_to = cut.unwrap_or(answer.head);
        found.retain(|f| f.position <= complete_to);
        found.sort_by_key(|f| f.position);
        let events =
            found.iter().map(|f| Ok((Position(f.position), decode(f.position, &f.payload)?))).collect::<Result<_, StoreError>>()?;
        part.fold(events, Position(complete_to.max(part.position().0)));
        complete &= cut.is_none();
    }
    Ok(complete)
}

/// Gives each part those of a decision's own events, written up to `last` without a gap, that it folds. What else was written with them
/// in the same call is nothing that it folds, so it is complete up to there.
pub(crate) fn fold_written<E: LogEvent>(parts: &mut [&mut dyn AnyPart<E>], events: &[WithIds<E>], last: Position) {
    let first = last.0 - i64::try_from(events.len()).unwrap_or_default() + 1;
    for part in parts {
        let folds = |(event, ids): &WithIds<E>| part.criteria().matches(event.name(), ids);
        let own =
            (first..).map(Position).zip(events).filter(|(_, event)| folds(event)).map(|(at, (event, _))| (at, event.clone())).collect();
        part.fold(own, last);
    }
}

impl<E: LogEvent> EventStore<E> {
    /// The newest position in the log.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn head(&self) -> Result<Position, StoreError> {
        in_time(async {
            let mut connection = self.lend().await?;
            let head = sqlx::query_scalar("SELECT coalesce(max(event_id), 0) FROM event").fetch_one(&mut *connection).await?;
            connection.done();
            Ok(head)
        })
        .await
    }

    /// Waits until the log has come to a position, for a query that is counted under this name: what is read after that is no older.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn wait(&self, query: &'static str, position: Position, timeout: Duration) -> Result<Waited, StoreError> {
        let started = Instant::now();
        let outcome = self.waited(position, started + timeout).await;
        METRICS.waited(query, started.elapsed(), &outcome);
        outcome
    }

    async fn waited(&self, position: Position, until: Instant) -> Result<Waited, StoreError> {
        let mut newest = self.heads().subscribe();
        loop {
            if *newest.borrow_and_update() >= position {
                return Ok(Waited::There);
            }
            // What another process has just appended is announced some milliseconds later.
            let turn = self.turn().await?;
            let head = self.head().await?;
            drop(turn);
            if head >= position {
                return Ok(Waited::There);
            }
            if Instant::now() >= until {
                return Ok(Waited::Behind(head));
            }
            // Past the time, the log is asked once more.
            let _ = timeout_at(until, newest.wait_for(|newest| *newest >= position)).await;
        }
    }

    /// Folds a state, or several, from the log as it stands at this moment. Answers also the position up to which they are complete.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn read<S: States<E>>(&self, states: S) -> Result<(S::View, Position), StoreError> {
        self.read_up_to(states, None).await
    }

    /// Folds a state, or several, as they were at a position. Answers also the position up to which they are complete: that one, or the
    /// log's head where it is not there yet.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn read_at<S: States<E>>(&self, states: S, at: Position) -> Result<(S::View, Position), StoreError> {
        self.read_up_to(states, Some(at)).await
    }

    async fn read_up_to<S: States<E>>(&self, states: S, end: Option<Position>) -> Result<(S::View, Position), StoreError> {
        let unknown = Known::nothing();
        let epoch = self.heads().epoch();
        let mut stages = states.start(&unknown).map_err(|error| StoreError::Schema(error.to_string()))?;
        let at = self.catch_up(&mut stages, &unknown, epoch, end).await?;
        let view = stages.view().ok_or_else(|| StoreError::Schema("a stage was not opened".into()))?;
        Ok((view, at))
    }

    /// Reads what each part has not folded yet, then opens the next stage and reads that, until nothing is unread. All of it is from the
    /// log of this epoch, and nothing of what comes after `end`, where there is one.
    pub(crate) async fn catch_up<V, T: Stages<E, V>>(
        &self,
        stages: &mut T,
        known: &Known,
        epoch: u64,
        end: Option<Position>,
    ) -> Result<Position, StoreError> {
        loop {
            let mut columns = LookupColumns::new(self.shared.ids.len());
            let mut parts = vec![];
            stages.parts(&mut parts);
            for part in &parts {
                for lookup in &part.criteria().lookups {
                    columns.push(lookup, part.position().0);
                }
            }
            if end.is_some() {
                // The newest one may come after the end: the newest up to there is the last of all.
                columns.newest.fill(false);
            }
            let mut answer = self.look(columns).await?;
            if self.heads().epoch() != epoch && parts.iter().any(|part| part.position() > Position::START) {
                return Err(StoreError::Reset("it is another one than the one read before".to_owned()));
            }
            if parts.iter().any(|part| part.position().0 > answer.head) {
                self.heads().reset(Position(answer.head));
                return Err(StoreError::Reset(format!("its head is {}, and more was read before", answer.head)));
            }
            self.heads().seen(Position(answer.head));
            if let Some(end) = end {
                answer.end_at(end);
            }
            let complete = fold(&mut parts, 0, &answer)?;
            if complete && !stages.open_next(known).map_err(|error| StoreError::Schema(error.to_string()))? {
                return Ok(Position(answer.head));
            }
        }
    }
}

/// Folds states from a history at hand, by the same rules as from the log: for tests, and for tools that read a log elsewhere.
///
/// # Errors
/// Where a state's query, or an event's ids, do not fit the schema.
pub fn fold_history<E: LogEvent, S: States<E>>(states: S, history: &[(Position, E)]) -> Result<S::View, StoreError> {
    let schema = |error: crate::CriteriaError| StoreError::Schema(error.to_string());
    let order = crate::event::domain_ids::<E>();
    let head = history.iter().map(|(position, _)| *position).max().unwrap_or_default();
    let unknown = Known::nothing();
    let mut stages = states.start(&unknown).map_err(schema)?;
    loop {
        let mut parts = vec![];
        stages.parts(&mut parts);
        for part in parts {
            let mut matching = vec![];
            for (position, event) in history {
                if part.criteria().matches(event.name(), &crate::event::ids_of(event, &order)?) {
                    matching.push((*position, event.clone()));
                }
            }
            part.fold(matching, head);
        }
        if !stages.open_next(&unknown).map_err(schema)? {
            return stages.view().ok_or_else(|| StoreError::Schema("a stage was not opened".into()));
        }
    }
}
