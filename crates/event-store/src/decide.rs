//! Decisions: a command's rule, and the one way to run it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{SemaphorePermit, oneshot};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    Criteria, CriteriaError, Known, LogEvent, Metadata, Position, StoreError,
    appender::{Append, Appended, NewEvent, jittered},
    event::{encode, ids_of},
    metrics::METRICS,
    read::{fold, fold_written},
    state::{AnyPart, Stages, States},
    store::EventStore,
    turns::Turn,
};

/// A command's rule: disintegrate's `Decision`, extended by stages (see [`Then`](crate::Then)), by positions, and by success without
/// events.
///
/// The states it asks for are its consistency boundary: it is written only where, between what was read and its own position, no event
/// came that one of them folds.
pub trait Decision: Send + Sync {
    /// The log's events.
    type Event: LogEvent;
    /// The states it depends on.
    type StateQuery: States<Self::Event>;
    /// Its own word for no: a refusal is no fault.
    type Error: Send;

    /// The states, with nothing folded yet.
    fn state_query(&self) -> Self::StateQuery;

    /// Decides, from the states as the log made them. Pure: it may be run again, on newer states.
    ///
    /// # Errors
    /// Where the domain says no.
    fn process(&self, state: &View<Self>) -> Result<Decided<Self::Event>, Self::Error>;
}

/// What a decision sees of its states.
pub type View<D> = <<D as Decision>::StateQuery as States<<D as Decision>::Event>>::View;

/// What a decision comes to, where it does not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided<E> {
    /// These happened; at least one.
    Events(Vec<E>),
    /// Nothing happens, as it had happened already, here.
    Already(Position),
    /// Nothing happens, as there is nothing to do.
    Nothing,
}

/// Why a decision came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DecideError<R> {
    /// The domain said no.
    #[error("refused")]
    Refused(R),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// So many conflicts of one command, and so many more, are told to other processes.
const LOSING: u32 = 4;

impl<E: LogEvent> EventStore<E> {
    /// Runs a decision: lets it decide on what is known of what it asks for, appends, and where events came in between, decides again on
    /// those, for as long as the setting `decide_deadline` says. Answers the position of its last event; of what it found already done; or, where there
    /// was nothing to do, up to where that was known.
    ///
    /// # Errors
    /// The decision's own refusal, which rests on a read made for this command; or a store that is away, or busy past the bound.
    pub async fn decide<D: Decision<Event = E>>(&self, decision: &D) -> Result<Position, DecideError<D::Error>> {
        self.decide_with(decision, Metadata::current()).await
    }

    /// As [`EventStore::decide`], with metadata of the caller's.
    ///
    /// # Errors
    /// As [`EventStore::decide`].
    pub async fn decide_with<D: Decision<Event = E>>(&self, decision: &D, metadata: Metadata) -> Result<Position, DecideError<D::Error>> {
        let deadline = Instant::now() + self.shared.settings.decide_deadline;
        let sent = AtomicBool::new(false);
        match tokio::time::timeout_at(deadline.into(), self.deciding(decision, &metadata, &sent)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                METRICS.busy.add(1, &[]);
                // An append that is on its way may still be written.
                Err(if sent.into_inner() { StoreError::OutcomeUnknown } else { StoreError::Busy }.into())
            }
        }
    }

    async fn deciding<D: Decision<Event = E>>(
        &self,
        decision: &D,
        metadata: &Metadata,
        sent: &AtomicBool,
    ) -> Result<Position, DecideError<D::Error>> {
        let known = &self.shared.known;
        let epoch = self.heads().epoch();
        // What is known is decided on at once; the append's condition says up to where that is, and the log has the last word.
        let mut stages = decision.state_query().start(known).map_err(schema)?;
        while stages.open_next(known).map_err(schema)? {}
        // Up to where all of it was read for this command, in one snapshot.
        let mut read =
            if known.keeps() || parts(&mut stages).is_empty() { None } else { Some(self.catch_up(&mut stages, known, epoch, None).await?) };
        let mut place = None;
        let mut conflicts = 0;
        loop {
            let state = stages.view().ok_or_else(|| StoreError::Schema("a stage was not opened".into()))?;
            let events = match (decision.process(&state), read) {
                (Ok(Decided::Events(events)), _) if !events.is_empty() => events,
                // An outcome without an append rests on a read made for this command.
                (_, None) => {
                    // Nobody need wait for it.
                    place = None;
                    read = Some(self.catch_up(&mut stages, known, epoch, None).await?);
                    continue;
                }
                (outcome, Some(at)) => {
                    self.keep(&mut stages, epoch);
                    return match outcome.map_err(DecideError::Refused)? {
                        Decided::Already(position) => Ok(position),
                        Decided::Nothing | Decided::Events(_) => Ok(at),
                    };
                }
            };
            let events = with_ids(events, &self.shared.ids)?;
            if place.is_none() {
                let (turn, in_line) = self.take_turn(&mut stages, &events).await;
                if in_line {
                    self.let_others_in().await;
                }
                let (among, queued) = self.be_admitted().await?;
                place = Some((turn, among));
                // What others have left meanwhile, or were told that they missed, is known by now.
                if (in_line || queued) && refresh(&mut stages, known) {
                    while stages.open_next(known).map_err(schema)? {}
                    read = None;
                    continue;
                }
            }
            let conditions = parts(&mut stages).iter().map(|part| (part.criteria().clone(), part.position())).collect();
            sent.store(true, Ordering::Relaxed);
            let appended = self.append(conditions, &events, metadata, epoch).await?;
            sent.store(false, Ordering::Relaxed);
            match appended {
                Appended::Written { last } => {
                    fold_written(&mut parts(&mut stages), &events, last);
                    self.keep(&mut stages, epoch);
                    if let Some((_, among)) = place {
                        self.make_room(among, conflicts > 0);
                    }
                    return Ok(last);
                }
                Appended::Missed(answer) => {
                    let complete = fold(&mut parts(&mut stages), 0, &answer)?;
                    self.keep(&mut stages, epoch);
                    read = Some(Position(answer.head));
                    if !complete || stages.open_next(known).map_err(schema)? {
                        read = Some(self.catch_up(&mut stages, known, epoch, None).await?);
                    }
                }
            }
            conflicts += 1;
            if conflicts % LOSING == 0 {
                self.heads().loses();
            }
            if conflicts > 2 {
                tokio::time::sleep(jittered(conflicts)).await;
            }
        }
    }

    async fn take_turn<V>(&self, stages: &mut impl Stages<E, V>, events: &[WithIds<E>]) -> (Vec<Turn<'_>>, bool) {
        let criteria: Vec<_> = parts(stages).iter().map(|part| part.criteria().clone()).collect();
        let lookups = criteria.iter().flat_map(|criteria| criteria.lookups.iter());
        self.shared.turns.take(lookups, events.iter().map(|(event, ids)| (event.name(), ids.as_slice()))).await
    }

    /// Of two processes with many commands on one cart, the one that is a step ahead stays so: while the log tells the other what it
    /// missed, the next is on its way. So where somebody keeps losing, the turn stays empty now and then, for long enough that one who is
    /// told what it missed, and has paused at random, comes first: the other one is then a step ahead.
    async fn let_others_in(&self) {
        const EVERY: usize = 16;
        const FOR: Duration = Duration::from_millis(3);
        if self.heads().somebody_loses() && self.shared.in_line.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1 {
            tokio::time::sleep(FOR).await;
        }
    }

    /// No more commands are on their way to the log at once than one call carries: what an append waits in a queue, its condition grows
    /// old, and where a state that many depend on changes often, it would be refused again and again. Answers also whether it had to wait.
    async fn be_admitted(&self) -> Result<(SemaphorePermit<'_>, bool), StoreError> {
        match self.shared.admitted.try_acquire() {
            Ok(place) => Ok((place, false)),
            Err(_) => Ok((self.shared.admitted.acquire().await.map_err(|_| StoreError::Closed)?, true)),
        }
    }

    /// One that was refused before it was written leaves its place to nobody, and one that was not makes room for another: so where a
    /// state that many depend on changes often, those who are on their way become few enough to be quicker than it, and many again after.
    fn make_room(&self, among: SemaphorePermit<'_>, refused: bool) {
        const FEWEST: usize = 16;
        let (places, most) = (&self.shared.places, self.shared.settings.max_batch);
        let change = |now: usize| if refused { (now > FEWEST).then(|| now - 1) } else { (now < most).then(|| now + 1) };
        if places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok() {
            if refused {
                among.forget();
            } else {
                self.shared.admitted.add_permits(1);
            }
        }
    }

    fn keep<V>(&self, stages: &mut impl Stages<E, V>, epoch: u64) {
        for part in parts(stages) {
            part.keep(&self.shared.known, epoch);
        }
    }

    async fn append(
        &self,
        conditions: Vec<(Arc<Criteria>, Position)>,
        events: &[WithIds<E>],
        metadata: &Metadata,
        epoch: u64,
    ) -> Result<Appended, StoreError> {
        let id = Uuid::now_v7();
        let events = events
            .iter()
            .map(|(event, ids)| Ok(NewEvent { event_type: event.name(), payload: encode(event)?, ids: ids.clone() }))
            .collect::<Result<_, StoreError>>()?;
        let (reply, outcome) = oneshot::channel();
        let append = Append { id, conditions, events, metadata: metadata.stored(id), epoch, queued: Instant::now(), reply };
        // From the queue to the answer: another task sends it, with those of others.
        let span = tracing::debug_span!(
            "append",
            otel.kind = "client",
            db.system.name = "postgresql",
            db.operation.name = "event_append",
            events = append.events.len(),
            conflict = tracing::field::Empty,
        );
        let appending = async {
            self.shared.appends.send(append).await.map_err(|_| StoreError::Closed)?;
            let appended = outcome.await.map_err(|_| StoreError::Closed)?;
            tracing::Span::current().record("conflict", matches!(appended, Ok(Appended::Missed(_))));
            appended
        };
        appending.instrument(span).await
    }
}

fn schema(error: CriteriaError) -> StoreError {
    StoreError::Schema(error.to_string())
}

fn parts<E, V>(stages: &mut impl Stages<E, V>) -> Vec<&mut dyn AnyPart<E>> {
    let mut parts = vec![];
    stages.parts(&mut parts);
    parts
}

fn refresh<E, V>(stages: &mut impl Stages<E, V>, known: &Known) -> bool {
    parts(stages).into_iter().fold(false, |refreshed, part| part.refresh(known) | refreshed)
}

/// An event, and its ids in the schema's order.
pub(crate) type WithIds<E> = (E, Vec<Option<Uuid>>);

fn with_ids<E: LogEvent>(events: Vec<E>, order: &[&'static str]) -> Result<Vec<WithIds<E>>, StoreError> {
    events
        .into_iter()
        .map(|event| {
            let ids = ids_of(&event, order)?;
            Ok((event, ids))
        })
        .collect()
}
