//! The stages in which a decision reads its states, and how far each state is folded.

use std::sync::Arc;

use crate::{
    decide::{
        state::State,
        state_cache::{Folded, StateCache},
    },
    event::LogEvent,
    position::Position,
    query::state_query::{Query, QueryError},
};

/// A state and the position up to which it is complete. The position never exceeds what was folded.
#[doc(hidden)]
pub struct Part<S> {
    initial: S,
    state: S,
    query: Arc<Query>,
    position: Position,
}

/// A [`Part`] of any state.
#[doc(hidden)]
pub trait AnyPart<E>: Send {
    /// Returns the query of the events that it folds.
    #[doc(hidden)]
    fn query(&self) -> &Arc<Query>;
    /// Returns the position up to which it is complete.
    #[doc(hidden)]
    fn position(&self) -> Position;
    /// Folds matching events, in order. From then on the part is complete up to `complete_to`.
    #[doc(hidden)]
    fn fold(&mut self, events: Vec<(Position, E)>, complete_to: Position);
    /// Takes the cached state if it is newer. Returns whether it was.
    #[doc(hidden)]
    fn refresh(&mut self, cache: &StateCache) -> bool;
    /// Keeps the state in the cache.
    #[doc(hidden)]
    fn keep(&self, cache: &StateCache, epoch: u64);
}

impl<S, E> AnyPart<E> for Part<S>
where
    S: State,
    S::Event: TryFrom<E>,
{
    fn query(&self) -> &Arc<Query> {
        &self.query
    }

    fn position(&self) -> Position {
        self.position
    }

    fn fold(&mut self, events: Vec<(Position, E)>, complete_to: Position) {
        for (position, event) in events {
            // Conversion fails only for an event type outside the state's stream, and the query names none.
            if position > self.position
                && let Ok(event) = event.try_into()
            {
                self.state.mutate(event, position);
            }
        }
        self.position = self.position.max(complete_to);
    }

    fn refresh(&mut self, cache: &StateCache) -> bool {
        let Some(Folded { state, position, .. }) = cache.newer(&self.initial, self.position) else { return false };
        (self.state, self.position) = (state, position);
        true
    }

    fn keep(&self, cache: &StateCache, epoch: u64) {
        cache.keep(&self.initial, &self.state, &self.query, self.position, epoch);
    }
}

/// The states of a decision: one state, a tuple or `Vec` of them, or a [`Dependent`].
pub trait States<E: LogEvent>: Clone + Send + Sync + 'static {
    /// The decision's view: the states; a [`Dependent`] shows both stages as a pair.
    type View: Clone + Send + Sync;
    /// The states with their positions.
    #[doc(hidden)]
    type Stages: Stages<E, Self::View>;

    /// Starts with the cached states.
    ///
    /// # Errors
    /// If a state's query does not fit the log's schema.
    #[doc(hidden)]
    fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError>;
}

/// A decision's states with their positions, stage by stage.
#[doc(hidden)]
pub trait Stages<E, S>: Send {
    /// Collects the parts of the open stages, always in the same order.
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>);
    /// Opens the next stage, which the states so far name. Returns whether one was opened that has parts.
    fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError>;
    /// Returns the states. `None` if a stage is not open.
    fn view(&self) -> Option<S>;
}

impl<S, E> States<E> for S
where
    E: LogEvent,
    S: State,
    S::Event: TryFrom<E>,
{
    type View = S;
    type Stages = Part<S>;

    fn start(self, cache: &StateCache) -> Result<Part<S>, QueryError> {
        let Folded { state, query, position } = cache.get::<S, E>(&self)?;
        Ok(Part { initial: self, state, query, position })
    }
}

impl<S, E> Stages<E, S> for Part<S>
where
    S: State,
    S::Event: TryFrom<E>,
{
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
        parts.push(self);
    }
    fn open_next(&mut self, _: &StateCache) -> Result<bool, QueryError> {
        Ok(false)
    }
    fn view(&self) -> Option<S> {
        Some(self.state.clone())
    }
}

macro_rules! tuple {
    ($($name:ident $stages:ident $n:tt),*) => {
        impl<E: LogEvent, $($name: States<E>),*> States<E> for ($($name,)*) {
            type View = ($($name::View,)*);
            type Stages = ($($name::Stages,)*);
            fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError> {
                Ok(($(self.$n.start(cache)?,)*))
            }
        }

        impl<E, $($name,)* $($stages: Stages<E, $name>),*> Stages<E, ($($name,)*)> for ($($stages,)*) {
            fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
                $(self.$n.parts(parts);)*
            }
            fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError> {
                let mut opened = false;
                $(opened |= self.$n.open_next(cache)?;)*
                Ok(opened)
            }
            fn view(&self) -> Option<($($name,)*)> {
                Some(($(self.$n.view()?,)*))
            }
        }
    };
}
tuple!(A SA 0, B SB 1);
tuple!(A SA 0, B SB 1, C SC 2);
tuple!(A SA 0, B SB 1, C SC 2, D SD 3);

/// A decision without states has no condition.
impl<E: LogEvent> States<E> for () {
    type View = ();
    type Stages = ();
    fn start(self, _: &StateCache) -> Result<(), QueryError> {
        Ok(())
    }
}

impl<E> Stages<E, ()> for () {
    fn parts<'a>(&'a mut self, _: &mut Vec<&'a mut dyn AnyPart<E>>) {}
    fn open_next(&mut self, _: &StateCache) -> Result<bool, QueryError> {
        Ok(false)
    }
    fn view(&self) -> Option<()> {
        Some(())
    }
}

impl<E: LogEvent, S: States<E>> States<E> for Vec<S> {
    type View = Vec<S::View>;
    type Stages = Vec<S::Stages>;
    fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError> {
        self.into_iter().map(|states| states.start(cache)).collect()
    }
}

impl<E, S, T: Stages<E, S>> Stages<E, Vec<S>> for Vec<T> {
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
        self.iter_mut().for_each(|stages| stages.parts(parts));
    }
    fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError> {
        self.iter_mut().try_fold(false, |opened, stages| Ok(stages.open_next(cache)? | opened))
    }
    fn view(&self) -> Option<Vec<S>> {
        self.iter().map(Stages::view).collect()
    }
}

/// Two stages: the states of the first name the states of the second.
///
/// Both stages are in the condition, and the decision sees them as a pair. For example, submitting a cart reads the cart, which names the
/// products whose inventories must be read.
#[derive(Debug, Clone)]
pub struct Dependent<First, Second, View = First> {
    first: First,
    names: fn(&View) -> Second,
}

impl<First, Second, View> Dependent<First, Second, View> {
    /// Creates both stages from the first one and a function that names the second.
    pub fn new(first: First, names: fn(&View) -> Second) -> Self {
        Self { first, names }
    }
}

#[doc(hidden)]
pub struct DependentStages<E: LogEvent, A: States<E>, B: States<E>> {
    first: A::Stages,
    names: fn(&A::View) -> B,
    /// The states that were named, and the same with their positions.
    second: Option<(B, B::Stages)>,
}

impl<E, A, B> States<E> for Dependent<A, B, A::View>
where
    E: LogEvent,
    A: States<E>,
    A::View: 'static,
    B: States<E> + PartialEq,
{
    type View = (A::View, B::View);
    type Stages = DependentStages<E, A, B>;

    fn start(self, cache: &StateCache) -> Result<Self::Stages, QueryError> {
        Ok(DependentStages { first: self.first.start(cache)?, names: self.names, second: None })
    }
}

impl<E, A, B> Stages<E, (A::View, B::View)> for DependentStages<E, A, B>
where
    E: LogEvent,
    A: States<E>,
    B: States<E> + PartialEq,
{
    fn parts<'a>(&'a mut self, parts: &mut Vec<&'a mut dyn AnyPart<E>>) {
        self.first.parts(parts);
        if let Some((_, second)) = &mut self.second {
            second.parts(parts);
        }
    }

    fn open_next(&mut self, cache: &StateCache) -> Result<bool, QueryError> {
        if self.first.open_next(cache)? {
            return Ok(true);
        }
        let Some(first) = self.first.view() else { return Ok(false) };
        let named = (self.names)(&first);
        match &mut self.second {
            // The first stage still names the same states, so what they have folded stays.
            Some((before, second)) if *before == named => second.open_next(cache),
            _ => {
                let mut second = named.clone().start(cache)?;
                let mut parts = vec![];
                second.parts(&mut parts);
                let opened = !parts.is_empty();
                self.second = Some((named, second));
                Ok(opened)
            }
        }
    }

    fn view(&self) -> Option<(A::View, B::View)> {
        let (_, second) = self.second.as_ref()?;
        Some((self.first.view()?, second.view()?))
    }
}
